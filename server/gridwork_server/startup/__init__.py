"""Makes starting fast: defers imports, and caches what importing Transformers computes."""
