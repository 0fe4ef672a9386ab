"""Hostile clients and faults against real servers: `make test-hostile` prints what each one cost others."""
