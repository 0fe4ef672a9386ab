"""Tensor parallelism: the group of ranks, and how a model is split over it."""
