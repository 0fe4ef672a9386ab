"""Defines the error that this package shows to users."""


class PrepareError(Exception):
    """A model cannot be prepared. The message says what was tried, why it failed and what to do."""
