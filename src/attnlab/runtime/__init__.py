"""What surrounds a run: device, other processes, random numbers, signals, network."""
