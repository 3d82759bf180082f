"""Spans of a stage and of its longer parts, below the span of the run; without an endpoint for them, nothing at all."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.traces import ENV_TRACEPARENT, SpanRef, endpoints

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_log = logging.getLogger(__name__)

_tracer: "Tracer | None" = None
"""Of this process, while its stage runs; a stage is traced from whichever depth of the code its parts lie in."""


@contextlib.contextmanager
def stage(stage: Stage, run: RunSpec) -> Iterator[None]:
    """Trace what happens in the block as this stage; the last spans are sent at its end."""
    global _tracer  # noqa: PLW0603 - see there
    if not endpoints(os.environ):
        yield
        return
    from tunemill_api.span_export import below, open_provider

    try:
        provider = open_provider("tunemill-trainer")
    except ValueError as error:
        _log.warning("nothing is traced: one of the variables OTEL_… cannot be used: %s", error)
        yield
        return
    parent = SpanRef.parse(os.environ.get(ENV_TRACEPARENT, ""))
    attributes = {
        "k8s.namespace.name": run.namespace,
        "tunemill.finetune": run.name,
        "tunemill.run.id": run.run_id,
        "tunemill.stage": stage.value,
    }
    _tracer = provider.get_tracer("tunemill-trainer")
    try:
        with _tracer.start_as_current_span(
            stage.value, context=below(parent) if parent else None, attributes=attributes, record_exception=False
        ):
            yield
    finally:
        _tracer = None
        provider.shutdown()


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Trace what happens in the block, or in the function that this decorates, as a part of the stage."""
    if _tracer is None:
        yield
        return
    # A failure is told by the stage's report; a traceback would say no more to whoever looks at times.
    with _tracer.start_as_current_span(name, record_exception=False):
        yield
