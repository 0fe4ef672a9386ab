"""Shared parts of the black-box tests: a real launcher, an HTTP client, tiny models and their reference answers."""
