"""Everything that can go wrong and that a client or an operator is told about.

An error carries the code and HTTP status of the contract; it knows neither Litestar nor
sockets. `http` turns it into a response, `realtime` into a reply.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

from msgspec import Struct


class StartupError(Exception):
    """The server can't start; its message is one line for the operator, exit code 1."""


class DataDirectoryInUse(StartupError):
    """Another server works on this data directory."""


class FieldError(Struct, frozen=True):
    """One thing wrong with one field of a request; `field` is a dotted camelCase path."""

    field: str
    message: str


class DomainError(Exception):
    """The base of all errors that a client sees."""

    code: ClassVar[str]
    status: ClassVar[int]
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        details: Sequence[FieldError] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.retry_after_seconds = retry_after_seconds


class ValidationFailed(DomainError):
    """The request is malformed; the details name the fields and the rules."""

    code = "validation_error"
    status = 400

    @classmethod
    def of(cls, field: str, message: str) -> Self:
        return cls(f"{field}: {message}", details=[FieldError(field, message)])


class BodyRefused(ValidationFailed):
    """The body is given up before its end, and the connection with it."""


class Unauthenticated(DomainError):
    """No token, or one that is bad, expired or revoked."""

    code = "unauthenticated"
    status = 401


class Forbidden(DomainError):
    """The caller's role may not do this."""

    code = "forbidden"
    status = 403


class NotFound(DomainError):
    """No such thing, or not visible to the caller: never tell which."""

    code = "not_found"
    status = 404


class MethodNotAllowed(DomainError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"
    status = 405


class Conflict(DomainError):
    """The request contradicts what is stored."""

    code = "conflict"
    status = 409


class NotAvailable(DomainError):
    """This server is not set up for it; asking again changes nothing."""

    code = "not_available"
    status = 409


class TooLarge(DomainError):
    """The body is over the limit."""

    code = "too_large"
    status = 413


class UnsupportedMediaType(DomainError):
    """The body is not JSON where JSON is needed."""

    code = "unsupported_media_type"
    status = 415


class RangeNotSatisfiable(DomainError):
    """The range that was asked for has nothing of a file of `size_bytes`."""

    code = "range_not_satisfiable"
    status = 416

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"The file has {size_bytes} bytes")
        self.size_bytes = size_bytes


class RateLimited(DomainError):
    """Too many requests; carries `retry_after_seconds`."""

    code = "rate_limited"
    status = 429
    retryable = True


class InternalError(DomainError):
    """A defect of the server; the log has the traceback under the request id."""

    code = "internal_error"
    status = 500


class InsufficientStorage(DomainError):
    """The disk, or the store of attachments, is full; what was sent is not kept."""

    code = "insufficient_storage"
    status = 507


class Unavailable(DomainError):
    """The database is away or the server is shutting down."""

    code = "unavailable"
    status = 503
    retryable = True
