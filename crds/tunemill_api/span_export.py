"""Sends spans to a collector by OTLP over HTTP; to be imported only where `traces.endpoints` names one.

OpenTelemetry is installed with the operator and the trainer; reading the API needs none of it.
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
"""A process that ends waits for its last spans: not long, for a collector that does not answer."""

log = logging.getLogger(__name__)


def open_provider(service: str, ids: IdGenerator | None = None) -> TracerProvider:
    """Return what makes spans and sends them from a thread of its own; whoever ends has to shut it down.

    Raises:
        ValueError: when one of OpenTelemetry's variables has a value that it cannot read.
    """
    # They log every attempt; the exporter below says once that nothing arrives.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    resource = Resource.create({"service.name": service, "service.version": version(service)})
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Telling(OTLPSpanExporter(timeout=EXPORT_SECONDS))))
    return provider


def below(parent: SpanRef) -> Context:
    """Return the context whose spans become children of that one."""
    context = SpanContext(parent.trace, parent.span, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(context))


class _Telling(SpanExporter):
    """Logs once that spans do not arrive, and once that they do again: traces are a courtesy."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._lost = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans; those that cannot be sent are lost."""
        result = self._inner.export(spans)
        lost = result is not SpanExportResult.SUCCESS
        if lost and not self._lost:
            log.warning("traces do not arrive at the endpoint of OTEL_EXPORTER_OTLP_ENDPOINT; the work goes on")
        elif self._lost and not lost:
            log.info("traces arrive again")
        self._lost = lost
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what is kept back."""
        return self._inner.force_flush(timeout_millis)
