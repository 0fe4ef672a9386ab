"""Quantized weights as model folders store them."""
