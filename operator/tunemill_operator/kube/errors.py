"""Errors of requests to the API server.

KubeError
 ├── NotFoundError       404: the object, or the kind, does not exist
 ├── ConflictError       409: the object has changed
 │    └── ExistsError    409 AlreadyExists: an object with this name exists
 ├── RefusedError        400, 403, 413, 422: the same request will be rejected again
 └── UnavailableError    401 (an expired token), 429, 5xx, lost connection, timeout: a retry may succeed
"""


class KubeError(Exception):
    """A request to the API server failed."""

    def __init__(self, message: str, code: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        """HTTP status. 0 without an answer."""
        self.retry_after = retry_after
        """Seconds in the Retry-After header."""

    @property
    def namespace_ends(self) -> bool:
        """Whether the request failed because the namespace is being deleted."""
        return "is being terminated" in str(self)

    @property
    def webhook_fails(self) -> bool:
        """Whether a required admission webhook does not respond."""
        return "webhook" in str(self) and "failed" in str(self)


class NotFoundError(KubeError):
    """The object, or its kind, does not exist."""


class ConflictError(KubeError):
    """The object has changed, or has a different uid."""


class ExistsError(ConflictError):
    """An object with this name exists."""


class RefusedError(KubeError):
    """The API server rejected the request. A retry does not help."""


class UnavailableError(KubeError):
    """The API server did not answer. A retry may help."""


def error_of(code: int, reason: str, message: str, retry_after: float | None = None) -> KubeError:
    """Return the error for an answer of the API server.

    Args:
        code: the HTTP status.
        reason: the Status object's reason, for example AlreadyExists.
        message: the Status object's message.
        retry_after: the Retry-After header in seconds.
    """
    if code == 404:
        return NotFoundError(message, code)
    if code == 409:
        return ExistsError(message, code) if reason == "AlreadyExists" else ConflictError(message, code)
    if code in {401, 429} or code >= 500:
        return UnavailableError(message, code, retry_after)
    return RefusedError(message, code)
