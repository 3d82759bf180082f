"""Fault injection and a record of requests, with which tests and the demo check how clients handle errors.

`/_local/faults` and `/_local/requests` provide both over HTTP, with the admin token.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Fault(BaseModel):
    """A fault for the next matching requests."""

    model_config = ConfigDict(extra="forbid")
    method: str = ""
    """HTTP method; empty matches all."""
    path: str
    """A regular expression, searched for in the decoded path."""
    times: int = Field(default=1, ge=-1)
    """The number of requests that it still affects; -1 for all."""
    status: int | None = Field(default=None, ge=400, le=599)
    """The HTTP status of the response. Without it, the request is served after the delay."""
    headers: dict[str, str] = {}
    error_code: str = ""
    message: str = "fault on demand"
    delay_seconds: float = Field(default=0, ge=0)
    drop_connection: bool = False
    """Close the connection instead of answering."""
    drop_after_bytes: int | None = Field(default=None, ge=0)
    """Close the connection after this many bytes of a downloaded file."""

    @field_validator("path")
    @classmethod
    def _is_a_regular_expression(cls, path: str) -> str:
        try:
            re.compile(path)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return path

    def matches(self, method: str, path: str) -> bool:
        """Return whether the fault affects this request."""
        return self.times != 0 and self.method in {"", method} and re.search(self.path, path) is not None


@dataclass(frozen=True)
class Request:
    """A recorded request. `status` is 0 if the connection was closed without a response."""

    method: str
    path: str
    status: int
    user: str


@dataclass
class Faults:
    """The pending faults and the recorded requests, oldest first. Limited in size, because a demo may run for days."""

    waiting: list[Fault] = field(default_factory=list)
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=10_000))

    def take(self, method: str, path: str) -> Fault | None:
        """Return the first fault that affects this request, and count it down."""
        for fault in self.waiting:
            if fault.matches(method, path):
                fault.times = max(fault.times - 1, -1)
                return fault
        return None
