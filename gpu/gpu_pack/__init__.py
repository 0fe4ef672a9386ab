"""Makes the pack for a machine with a GPU that has no network: wheels, programs and sources."""
