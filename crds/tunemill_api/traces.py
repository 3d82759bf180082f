"""How the spans of operator and stages become one trace a run, and when there are any at all."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

ENV_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables. Without one of them no module of OpenTelemetry is imported."""
ENV_TRACEPARENT: Final = "TRACEPARENT"
"""On stage containers: the span of the run, in the form of W3C Trace Context."""


@dataclass(frozen=True)
class SpanRef:
    """A span, for those that are to be its children."""

    trace: int
    """128 bits."""
    span: int
    """64 bits."""

    @classmethod
    def of_run(cls, uid: str, run_id: str) -> Self:
        """Return the first span of a run: whichever operator looks at the object finds the same one."""
        digest = hashlib.sha256(f"{uid}/{run_id}".encode()).digest()
        return cls(int.from_bytes(digest[:16]), int.from_bytes(digest[16:24]))

    @classmethod
    def parse(cls, traceparent: str) -> Self | None:
        """Return the span that a traceparent names; None when it names none."""
        found = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", traceparent)
        return cls(int(found[1], 16), int(found[2], 16)) if found else None

    @property
    def traceparent(self) -> str:
        """The form in which it is handed on; always sampled, so that no part of a run is missing."""
        return f"00-{self.trace:032x}-{self.span:016x}-01"


def endpoints(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say where traces go; empty when nobody wants any."""
    return {name: environment[name] for name in ENV_ENDPOINTS if environment.get(name)}
