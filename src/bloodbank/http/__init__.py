"""The HTTP API: publish, read back, ask why."""
