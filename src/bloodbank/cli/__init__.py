"""The `bb` command: publish events, ask why they happened, watch them, and see whether all is well."""
