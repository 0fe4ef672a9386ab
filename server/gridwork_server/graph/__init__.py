"""Runs a model without its Python code: its operations are recorded once, fused, and run from a list.

What is fused is found by what is computed with what, never by the name of a model or a module.
"""
