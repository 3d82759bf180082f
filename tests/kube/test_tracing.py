"""A run as one trace, from the operator to its pods."""

from pathlib import Path

from api.collector import a_collector
from kube.operators import start
from kube.plane import Namespace, Plane
from tunemill_api.traces import SpanRef


def test_a_run_is_one_trace_that_its_pods_continue(plane: Plane, namespace: Namespace, tmp_path: Path) -> None:
    """The run's span is the parent of all reconciles, with their requests as children, and is passed to every stage."""
    with a_collector() as collector:
        operator = start(
            plane.kubeconfig,
            tmp_path / "operator.log",
            "--no-leader-election",
            f"--namespaces={namespace.name}",
            environment={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint},
        )
        body = namespace.apply("traced")
        status = namespace.wait_for("traced", "Succeeded")
        assert operator.stop() == 0
        span = SpanRef.of_run(body["metadata"]["uid"], status["run"]["id"])
        (run,) = collector.named("run")
        assert (run.trace, run.id) == (f"{span.trace:032x}", f"{span.span:016x}")
        reconciles = collector.named("reconcile")
        assert {item.parent for item in reconciles} == {run.id}
        assert {item.trace for item in collector.spans} == {run.trace}
        assert max(reconciles, key=lambda item: item.start).attributes["tunemill.phase"] == "Succeeded"
        made = [item for item in collector.named("POST") if item.attributes["url.path"].endswith("/jobs")]
        assert len(made) == 3
        assert {item.parent for item in made} <= {item.id for item in reconciles}
        for pod in namespace.pods("traced"):
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
                env = {item["name"]: item["value"] for item in container["env"]}
                assert env["TRACEPARENT"] == span.traceparent
                assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == collector.endpoint
