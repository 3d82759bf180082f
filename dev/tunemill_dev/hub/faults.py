"""Failures on demand and the record of requests: what tests and the demo use to show how clients cope.

`/_local/faults` and `/_local/requests` are the same over HTTP, for those who hold the admin token.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Fault(BaseModel):
    """What goes wrong with the next requests that match."""

    model_config = ConfigDict(extra="forbid")
    method: str = ""
    """GET, POST, …; empty for all."""
    path: str
    """A regular expression, searched for in the decoded path."""
    times: int = Field(default=1, ge=-1)
    """How many requests still meet it; -1 for all."""
    status: int | None = Field(default=None, ge=400, le=599)
    """The answer; without it the request is served after the delay."""
    headers: dict[str, str] = {}
    error_code: str = ""
    message: str = "fault on demand"
    delay_seconds: float = Field(default=0, ge=0)
    drop_connection: bool = False
    """Close the connection instead of answering."""
    drop_after_bytes: int | None = Field(default=None, ge=0)
    """Close the connection when so many bytes of a downloaded file were sent."""

    @field_validator("path")
    @classmethod
    def _is_a_regular_expression(cls, path: str) -> str:
        try:
            re.compile(path)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return path

    def matches(self, method: str, path: str) -> bool:
        """Whether this request meets the fault."""
        return self.times != 0 and self.method in {"", method} and re.search(self.path, path) is not None


@dataclass(frozen=True)
class Request:
    """One answered request; `status` is 0 where the connection was dropped instead."""

    method: str
    path: str
    status: int
    user: str


@dataclass
class Faults:
    """The faults that wait, and the requests that came, oldest first. Bounded, as a demo may run for days."""

    waiting: list[Fault] = field(default_factory=list)
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=10_000))

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault that this request meets, counted down."""
        for fault in self.waiting:
            if fault.matches(method, path):
                fault.times = max(fault.times - 1, -1)
                return fault
        return None
