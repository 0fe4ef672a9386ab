"""Modules whose result depends on the length of the sequence: finds them, and gives each token its own length."""
