"""Exceptions of the package. All derive from `GridworkError`.

>>> from gridwork import GridworkError, InvalidRequest
>>> error = InvalidRequest("`temperature` must be >= 0", field="temperature")
>>> isinstance(error, (GridworkError, ValueError)), error.field
(True, 'temperature')
"""


class GridworkError(Exception):
    """Base of all exceptions of this package."""


class InvalidRequest(GridworkError, ValueError):
    """An argument or a request that is refused before it costs anything.

    `field` is the name of the argument, or of the parameter as the HTTP API spells it; None where no single one is
    wrong. `code` is the server's word for the kind of error, such as `validation` or `context_length_exceeded`.
    """

    def __init__(self, message: str, *, field: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.code = code


class ModelError(GridworkError):
    """A model that is not there, or that cannot be served. The message says what to do."""


class EngineDied(GridworkError):
    """The server has ended, or has lost the request. The message has the server's own reason, where it gave one."""


class RequestFailed(GridworkError):
    """The server could not answer a request that was right. `status` is the HTTP status."""

    def __init__(self, message: str, *, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
