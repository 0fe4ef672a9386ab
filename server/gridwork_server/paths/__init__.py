"""The ways to run a model: `paged`, `batched` and `solo`. Which one is found out by trying, never by a model's name."""
