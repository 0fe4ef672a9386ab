"""Runs a model without its Python code: its operations are recorded once, fused, and run from a list.

Fusion follows what operations compute, never the name of a model or a module.
"""
