"""Reads a model folder: its configuration, code and weights, and loads the model."""
