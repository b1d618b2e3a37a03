"""A run on disk: its folder, files, lock, environment, log and mirror."""
