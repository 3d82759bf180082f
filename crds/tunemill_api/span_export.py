"""Exports spans to a collector with OTLP over HTTP. Import it only if `traces.endpoints` returns an endpoint.

OpenTelemetry is a dependency of the operator and the trainer, not of the API package.
"""

import logging
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from tunemill_api.traces import SpanRef

EXPORT_SECONDS = 3.0
"""Maximum time in seconds that an ending process waits to export its last spans."""

log = logging.getLogger(__name__)


def open_provider(service: str, distribution: str, ids: IdGenerator | None = None) -> TracerProvider:
    """Return a provider that exports spans in a background thread. The caller must shut it down.

    Args:
        service: the name of the program in traces.
        distribution: the installed Python distribution whose version traces show.
        ids: generates the ids of traces and spans. Random by default.

    Raises:
        ValueError: one of OpenTelemetry's variables has an invalid value.
    """
    # OpenTelemetry logs every failed attempt. The exporter below logs only the first one.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    resource = Resource.create({"service.name": service, "service.version": version(distribution)})
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_ExportLogger(OTLPSpanExporter(timeout=EXPORT_SECONDS))))
    return provider


def below(parent: SpanRef) -> Context:
    """Return a context in which new spans are children of `parent`."""
    context = SpanContext(parent.trace, parent.span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(context))


class _ExportLogger(SpanExporter):
    """Logs once when spans cannot be exported, and once when they can again. Export failures do not stop the work."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._lost = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export the spans. Spans that cannot be exported are dropped."""
        result = self._inner.export(spans)
        lost = result is not SpanExportResult.SUCCESS
        if lost and not self._lost:
            log.warning(
                "traces cannot be exported to the endpoint of OTEL_EXPORTER_OTLP_ENDPOINT; continuing without them"
            )
        elif self._lost and not lost:
            log.info("traces are exported again")
        self._lost = lost
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Export the buffered spans."""
        return self._inner.force_flush(timeout_millis)
