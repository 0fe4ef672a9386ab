"""One model type of every kind, and models with Python code of their own, on the server's own runner."""
