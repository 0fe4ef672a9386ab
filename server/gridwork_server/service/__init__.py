"""The gRPC side of the shard: its server, the model's thread, and tokenizers that are Python code."""
