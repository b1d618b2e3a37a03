"""Data sets, in the row form of the hub or embedded, and the order in which samples come."""
