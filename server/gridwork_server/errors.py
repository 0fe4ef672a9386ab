"""Errors whose message is for the person who started the server."""


class ModelError(Exception):
    """A model cannot be served. The message says what was wrong, where, and what to do."""


class LimitError(Exception):
    """The router's limits cannot be met. The message says which, and what to change."""


class PathError(Exception):
    """A model cannot run on a path. The message says which property of the model is in the way."""
