"""The shard: loads a Transformers model into a paged cache and runs the steps that the router sends."""

__version__ = "0.1.0"
