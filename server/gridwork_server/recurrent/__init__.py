"""Layers that keep a recurrent state: one flat batch of tokens, with each sequence's state in a slot of a pool."""
