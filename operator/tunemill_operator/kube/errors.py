"""What can go wrong between the operator and the API server.

KubeError
 ├── NotFoundError       404: the object, or the kind, does not exist
 ├── ConflictError       409: somebody else was faster
 │    └── ExistsError    409 AlreadyExists: an object of that name is there
 ├── RefusedError        400, 403, 413, 422: the same request will be refused again
 └── UnavailableError    401 (an expired token), 429, 5xx, connection lost, timed out: it may succeed later
"""


class KubeError(Exception):
    """A request to the API server failed."""

    def __init__(self, message: str, code: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        """HTTP status, 0 when there was no answer."""
        self.retry_after = retry_after
        """Seconds that the API server asks to wait."""

    @property
    def namespace_ends(self) -> bool:
        """Whether the namespace is being deleted, and everything in it: then a failure is none."""
        return "is being terminated" in str(self)

    @property
    def webhook_fails(self) -> bool:
        """Whether an admission webhook that has to be asked does not answer."""
        return "webhook" in str(self) and "failed" in str(self)


class NotFoundError(KubeError):
    """The object, or its kind, does not exist."""


class ConflictError(KubeError):
    """The object has changed, or its uid is another."""


class ExistsError(ConflictError):
    """An object of that name exists."""


class RefusedError(KubeError):
    """The API server does not take the request, now or later."""


class UnavailableError(KubeError):
    """The API server could not answer."""


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
