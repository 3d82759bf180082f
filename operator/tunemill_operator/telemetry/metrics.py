"""All metrics. Names of client-go and controller-runtime are used where they exist, so that their dashboards work."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from tunemill_api.status import FineTuneStatus, Phase

from tunemill_operator.engine.events import new_node_failures
from tunemill_operator.engine.objects import FineTune
from tunemill_operator.runtime.reconciliation import Request

CONTROLLER = "functioncallfinetune"
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG_SECONDS = (60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 259200)

_NODES = 200
"""Maximum number of nodes with a separate label value."""


class Metrics:
    """The operator's metrics, in a separate registry."""

    def __init__(self, version: str, host: str) -> None:
        """Create the metrics for this version of the operator and this host of the API server."""
        self._host = host
        self.registry = registry = CollectorRegistry()
        Info("tunemill_operator_build", "The operator's version.", registry=registry).info({"version": version})
        ProcessCollector(registry=registry)
        self.queue = QueueMetrics(registry)
        self._reconciles = Counter(
            "controller_runtime_reconcile_total",
            "Reconciles by result: success, conflict or error.",
            ["controller", "result"],
            registry=registry,
        )
        self._reconcile_errors = Counter(
            "controller_runtime_reconcile_errors_total", "Reconciles that failed.", ["controller"], registry=registry
        )
        self._reconcile_seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Duration of reconciles.",
            ["controller"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._requests = Counter(
            "rest_client_requests_total", "Requests to the API server.", ["code", "host", "method"], registry=registry
        )
        self._request_seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Duration of requests to the API server.",
            ["host", "verb"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._leader = Gauge(
            "leader_election_master_status", "1 if this process is the leader, else 0.", ["name"], registry=registry
        )
        self._first_job_seconds = Histogram(
            "tunemill_first_job_latency_seconds",
            "Time from the creation of an object to its first Job.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._run_seconds = Histogram(
            "tunemill_run_duration_seconds",
            "Duration of runs, by their final phase.",
            ["result"],
            buckets=_LONG_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            "tunemill_failures_total",
            "Failures by stage, reason and actor: User, Platform or Nobody.",
            ["stage", "reason", "actor"],
            registry=registry,
        )
        self._attempts = Counter(
            "tunemill_stage_attempts_total", "Pods that started a stage.", ["stage"], registry=registry
        )
        self._cut_short = Counter(
            "tunemill_pods_cut_short_total",
            "Pods that ended early, by stage and cause, for example Preempted, NoProgress or OutOfMemory.",
            ["stage", "why"],
            registry=registry,
        )
        self._restarts = Counter(
            "tunemill_group_restarts_total",
            "Restarts of all pods of a run on several nodes together, by stage and cause, for example Preempted.",
            ["stage", "cause"],
            registry=registry,
        )
        self._suspect_nodes = Counter(
            "tunemill_suspect_node_failures_total",
            "Pods that failed for a reason that points to their node, by node and reason. Nodes beyond the first "
            f'{_NODES} are counted together as "other".',
            ["node", "reason"],
            registry=registry,
        )
        self._known_nodes: set[str] = set()
        self._gpu_seconds = Counter(
            "tunemill_gpu_seconds_total", "GPU time of train and evaluate in seconds.", registry=registry
        )
        self._divergence = Counter(
            "tunemill_cache_divergence_total", "Changes that a watch missed and a list showed.", registry=registry
        )
        self._unreadable = Counter(
            "tunemill_unreadable_objects_total",
            "Versions of objects that were ignored because they are unreadable.",
            ["resource"],
            registry=registry,
        )
        self._last_event = Gauge(
            "tunemill_watch_last_event_timestamp_seconds",
            "Unix time of the last event of a watch.",
            ["resource"],
            registry=registry,
        )
        self._reports = Counter(
            "tunemill_progress_reports_total",
            "Requests to the progress endpoint by HTTP status.",
            ["code"],
            registry=registry,
        )

    def observe_phases(self, phases: Callable[[], Iterable[str]]) -> None:
        """Count the objects by phase at every scrape."""
        self.registry.register(_Phases(phases))

    def reconciled(self, result: str, seconds: float) -> None:
        """A key was reconciled."""
        self._reconciles.labels(CONTROLLER, result).inc()
        self._reconcile_seconds.labels(CONTROLLER).observe(seconds)
        if result == "error":
            self._reconcile_errors.labels(CONTROLLER).inc()

    def requested(self, request: Request) -> None:
        """A request to the API server ended."""
        self._requests.labels(str(request.code) if request.code else "<error>", self._host, request.method).inc()
        self._request_seconds.labels(self._host, request.method).observe(request.seconds)

    def leading(self, lease: str, leads: bool) -> None:
        """Leadership started or ended."""
        self._leader.labels(lease).set(int(leads))

    def job_created(self, finetune: FineTune, seconds: float) -> None:
        """A Job was created. The metric counts only the first Job of a new object."""
        if finetune.generation == 1 and finetune.status.run is None:
            self._first_job_seconds.observe(seconds)

    def status_written(self, before: FineTuneStatus, after: FineTuneStatus) -> None:
        """A status was written: count what has changed."""
        failure = after.failure
        if failure and (before.failure is None or before.failure.reason != failure.reason):
            self._failures.labels(failure.stage, str(failure.reason), str(failure.actor)).inc()
        known = {entry.name: entry for entry in before.stages}
        for entry in after.stages:
            old = known.get(entry.name)
            attempts = old.attempts if old else 0
            if entry.attempts > attempts:
                self._attempts.labels(entry.name).inc(entry.attempts - attempts)
            if entry.cut_short and (old is None or (old.attempts, old.cut_short) != (entry.attempts, entry.cut_short)):
                self._cut_short.labels(entry.name, entry.cut_short).inc()
            for cause, times in entry.restarts.items():
                if (new := times - (old.restarts.get(cause, 0) if old else 0)) > 0:
                    self._restarts.labels(entry.name, cause).inc(new)
        for _, node, failures in new_node_failures(before, after):
            self._suspect_nodes.labels(self._node_label(node.name), node.reason).inc(failures)
        if after.run:
            used = before.run.gpu_seconds if before.run and before.run.id == after.run.id else 0
            self._gpu_seconds.inc(max(0, after.run.gpu_seconds - used))
        if after.phase != before.phase and after.run and after.phase in {Phase.SUCCEEDED, Phase.FAILED, Phase.HELD}:
            ended = max(condition.last_transition_time for condition in after.conditions)
            self._run_seconds.labels(after.phase).observe((ended - after.run.started_at).total_seconds())

    def _node_label(self, node: str) -> str:
        """Return the name of the node, up to a number of nodes: autoscalers create new names all the time."""
        if len(self._known_nodes) < _NODES:
            self._known_nodes.add(node)
        return node if node in self._known_nodes else "other"

    def seen(self, resource: str) -> None:
        """A watch event arrived."""
        self._last_event.labels(resource).set_to_current_time()

    def diverged(self, objects: int) -> None:
        """A comparison found objects that watches had missed."""
        self._divergence.inc(objects)

    def unreadable(self, resource: str) -> None:
        """A version of an object was ignored because it is unreadable."""
        self._unreadable.labels(resource).inc()

    def progress_answered(self, code: int) -> None:
        """The progress endpoint answered."""
        self._reports.labels(str(code)).inc()


class QueueMetrics:
    """Metrics of the work queue, with the names of client-go."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["name"], registry=registry)

        self._registry = registry
        self._adds = counter("workqueue_adds_total", "Keys that were added.")
        self._retries = counter("workqueue_retries_total", "Keys that were added again after a failure.")
        self._waited = Histogram(
            "workqueue_queue_duration_seconds",
            "Time that keys wait in the queue.",
            ["name"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._worked = Histogram(
            "workqueue_work_duration_seconds",
            "Processing time of keys.",
            ["name"],
            buckets=_SECONDS,
            registry=registry,
        )

    def observe(self, depth: Callable[[], int], processing: Callable[[], list[float]], workers: int) -> None:
        """Read the queue at every scrape: the number of waiting keys, and how long others have been processed."""

        def gauge(name: str, text: str, value: Callable[[], float], label: str = "name") -> None:
            Gauge(name, text, [label], registry=self._registry).labels(CONTROLLER).set_function(value)

        gauge("workqueue_depth", "Number of waiting keys.", depth)
        gauge(
            "workqueue_unfinished_work_seconds",
            "Total processing time of the keys in progress.",
            lambda: sum(processing()),
        )
        gauge(
            "workqueue_longest_running_processor_seconds",
            "Longest processing time of a key in progress.",
            lambda: max(processing(), default=0.0),
        )
        gauge("controller_runtime_active_workers", "Number of active workers.", lambda: len(processing()), "controller")
        gauge("controller_runtime_max_concurrent_reconciles", "Number of workers.", lambda: workers, "controller")

    def added(self) -> None:
        """A key was added."""
        self._adds.labels(CONTROLLER).inc()

    def taken(self, waited: float) -> None:
        """A key was taken from the queue."""
        self._waited.labels(CONTROLLER).observe(waited)

    def finished(self, worked: float) -> None:
        """A key was processed."""
        self._worked.labels(CONTROLLER).observe(worked)

    def retried(self) -> None:
        """A key was added again after a failure."""
        self._retries.labels(CONTROLLER).inc()


class _Phases(Collector):
    """Counts objects by phase at every scrape."""

    def __init__(self, phases: Callable[[], Iterable[str]]) -> None:
        self._phases = phases

    def collect(self) -> Iterable[Metric]:
        """Return a value for each phase, including zero, so that alerts need not handle absent series."""
        tally = Tally(phase or Phase.PENDING.value for phase in self._phases())
        family = GaugeMetricFamily("tunemill_finetunes", "FunctionCallFineTunes by phase.", labels=["phase"])
        for phase in Phase:
            family.add_metric([phase.value], tally[phase.value])
        yield family
