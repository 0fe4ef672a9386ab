"""Encoders: models that turn whole sequences into vectors, label scores or tokens, without a cache."""
