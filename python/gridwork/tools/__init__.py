"""Commands of `gridwork` that are written in Python. Each module has `register`, which describes its command."""
