"""The gRPC side of the shard: its server, the worker behind it, and tokenizers that are Python code."""
