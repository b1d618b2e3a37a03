"""The process: device, other processes, random numbers, signals, network."""
