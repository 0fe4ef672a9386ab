"""Defines the error that this package shows to users."""

from loguru import logger


class PrepareError(Exception):
    """A model cannot be prepared. The message says what was tried, why it failed and what to do."""


def folder_error(error: Exception, own_code: str, otherwise: str) -> PrepareError:
    """The error to raise for one that a model folder's files or its own code caused, which may be of any class.
    `own_code` is the message where the folder needs its own Python code, `otherwise` that of all other causes."""
    logger.opt(exception=error).debug("the folder cannot be used")
    return PrepareError(own_code if "trust_remote_code" in str(error) else otherwise)
