"""OpenTelemetry spans of reconciles, in one trace with those of the stages. Import it only if tracing is enabled.

The IDs of a run's root span are derived from the object and the run. So every replica continues the trace, and stages
can refer to the span before it exists. Spans are created when a reconcile has ended, because only then its run is
known.
"""

from collections.abc import Mapping

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from tunemill_api.span_export import below, open_provider
from tunemill_api.traces import SpanRef

from tunemill_operator.runtime.reconciliation import Reconciliation, Request, current


class Tracing:
    """Creates spans of reconciles and their requests."""

    def __init__(self) -> None:
        """Raises ValueError if an OpenTelemetry variable is invalid."""
        self._ids = _Ids()
        self._provider = open_provider("tunemill-operator", "tunemill-operator", self._ids)
        self._tracer = self._provider.get_tracer("tunemill-operator")

    def close(self) -> None:
        """Export the last spans."""
        self._provider.shutdown()

    def requested(self, request: Request) -> None:
        """Record a request for the span of its reconcile. Other requests are not traced."""
        if reconciliation := current.get():
            reconciliation.requests.append(request)

    def reconciled(self, result: str, seconds: float) -> None:
        """Create the spans of the finished reconcile. A reconcile without requests has no span."""
        done = current.get()
        if done is None or not done.run or not done.requests:
            return
        run, start, end = SpanRef.of_run(done.uid, done.run), done.started, done.started + seconds
        attributes = _attributes(done)
        if done.begins_run:
            self._ids.given = run
            self._tracer.start_span("run", start_time=_nanoseconds(start), attributes=attributes).end(_nanoseconds(end))
        span = self._tracer.start_span(
            "reconcile",
            context=below(run),
            start_time=_nanoseconds(start),
            attributes={**attributes, "tunemill.result": result, "tunemill.reconcile.id": done.id},
        )
        if result == "error":
            span.set_status(StatusCode.ERROR)
        for request in done.requests:
            child = self._tracer.start_span(
                request.method,
                context=set_span_in_context(span),
                kind=SpanKind.CLIENT,
                start_time=_nanoseconds(request.started),
                attributes={
                    "http.request.method": request.method,
                    "url.path": request.path,
                    "http.response.status_code": request.code,
                },
            )
            if not 0 < request.code < 400:
                child.set_status(StatusCode.ERROR)
            child.end(_nanoseconds(request.started + request.seconds))
        span.end(_nanoseconds(end))


class _Ids(RandomIdGenerator):
    """Generates random IDs, except for one span with given IDs."""

    given: SpanRef | None = None

    def generate_span_id(self) -> int:
        given, self.given = self.given, None  # the SDK asks for the trace first
        return given.span if given else super().generate_span_id()

    def generate_trace_id(self) -> int:
        return self.given.trace if self.given else super().generate_trace_id()


def _attributes(done: Reconciliation) -> Mapping[str, str]:
    namespace, name = done.key
    return {
        "k8s.namespace.name": namespace,
        "tunemill.finetune": name,
        "tunemill.run.id": done.run,
        "tunemill.stage": done.stage,
        "tunemill.phase": done.phase,
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
