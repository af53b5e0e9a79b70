"""Errors as messages, and back: the one place where the two meet."""

from .errors import LoractlError, error_from_code
from .messages import Failed


def failed(error: LoractlError) -> Failed:
    """The one error reply."""
    return Failed(code=error.code, message=error.message, retryable=error.retryable, fault=error.fault)


def error_of(reply: Failed) -> LoractlError:
    """The error that the other side raised."""
    return error_from_code(reply.code, reply.message)
