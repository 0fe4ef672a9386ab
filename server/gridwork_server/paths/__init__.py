"""Runs models by one of the paths `paged`, `batched` and `solo`. The path is found by trying, never by a model's
name."""
