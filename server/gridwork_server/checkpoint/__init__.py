"""Recognizes quantized weights as model folders store them."""
