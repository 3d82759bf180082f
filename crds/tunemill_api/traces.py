"""How the spans of operator and stages form one trace per run, and when tracing is enabled."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

ENV_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Standard variables of OpenTelemetry. If none is set, no module of OpenTelemetry is imported."""
ENV_TRACEPARENT: Final = "TRACEPARENT"
"""On stage containers: the span of the run, in the W3C Trace Context format."""


@dataclass(frozen=True)
class SpanRef:
    """Reference to a span, used as the parent of other spans."""

    trace: int
    """Trace ID, 128 bits."""
    span: int
    """Span ID, 64 bits."""

    @classmethod
    def of_run(cls, uid: str, run_id: str) -> Self:
        """Return the root span of a run. It is a hash of uid and run, so every operator finds the same one."""
        digest = hashlib.sha256(f"{uid}/{run_id}".encode()).digest()
        return cls(int.from_bytes(digest[:16]), int.from_bytes(digest[16:24]))

    @classmethod
    def parse(cls, traceparent: str) -> Self | None:
        """Return the span of a traceparent, or None if it is not valid."""
        found = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", traceparent)
        return cls(int(found[1], 16), int(found[2], 16)) if found else None

    @property
    def traceparent(self) -> str:
        """The span as a traceparent. It is always marked as sampled, so that no part of a run is missing."""
        return f"00-{self.trace:032x}-{self.span:016x}-01"


def endpoints(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that set the endpoint for traces. Empty if tracing is disabled."""
    return {name: environment[name] for name in ENV_ENDPOINTS if environment.get(name)}
