"""The configuration: its schema, and the way from overrides to a checked `Config`."""
