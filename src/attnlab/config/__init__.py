"""The configuration: schema, mechanisms, from overrides to a checked `Config`."""
