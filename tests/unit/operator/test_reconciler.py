"""How decisions are executed: the order of requests, and every possible response of the API server."""

import asyncio
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import pytest
from property.builders import PLATFORM, a_finetune_body
from tunemill_api.constants import LABEL_FINETUNE, LABEL_QUEUE
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report
from tunemill_operator.kube.client import JOBS, Resource
from tunemill_operator.kube.errors import (
    ConflictError,
    ExistsError,
    KubeError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from tunemill_operator.progress.board import Board
from tunemill_operator.runtime.cache import Cache
from tunemill_operator.runtime.queue import QueueClosedError, WorkQueue
from tunemill_operator.runtime.reconciler import Reconciler
from tunemill_operator.runtime.recorder import Recorder
from tunemill_operator.runtime.resync import KindsChangedError, Resync
from tunemill_operator.runtime.warnings import Warnings
from tunemill_operator.runtime.workers import FINISH_SECONDS, work

Json = dict[str, Any]
Jump = Callable[..., Any]
KEY = ("team-a", "support")


class Counter:
    """A metric that ignores everything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Client:
    """An API server that stores Jobs and the status of one object, and fails where a test says so."""

    def __init__(self) -> None:
        self.version = 100
        self.finetune = a_finetune_body()
        self.jobs: dict[str, Json] = {}
        self.said: list[str] = []
        self.errors: dict[str, KubeError] = {}
        self.pods: list[Json] = []
        self.refusals: list[str] = []
        """What is said against the next statuses."""

    def _answer(self, what: str) -> None:
        self.said.append(what)
        if error := self.errors.pop(what, None):
            raise error

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create a Job or an event."""
        if resource is not JOBS:
            self._answer(f"event {body['reason']}")
            return body
        self._answer("create")
        return self.keep(body)

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return a Job."""
        self._answer("get")
        return self.jobs[name]

    async def delete_job(self, namespace: str, name: str, uid: str) -> Json:
        """Mark a Job as being deleted."""
        self._answer("delete")
        self.jobs[name]["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
        return self.keep(self.jobs[name])

    async def apply_status(self, namespace: str, name: str, resource_version: int, status: Json) -> Json:
        """Write the status."""
        self._answer("status")
        if self.refusals:
            raise UnavailableError(self.refusals.pop(0), 500)
        self.finetune["status"] = status
        self.version += 1
        self.finetune["metadata"]["resourceVersion"] = str(self.version)
        return deepcopy(self.finetune)

    async def pods_of(self, namespace: str, finetune: str) -> tuple[list[Json], int]:
        """List the pods."""
        self._answer("pods")
        return deepcopy(self.pods), self.version

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return no events."""
        self._answer("events")
        return []

    async def workloads_of(self, namespace: str, jobs: Iterable[str]) -> list[Json] | None:
        """Return that there is no Kueue."""
        self._answer("workloads")
        return None

    async def check_discovered(self, resource: Resource) -> None:
        """List every kind."""
        self._answer(f"discover {resource.plural}")

    async def pages(self, resource: Resource, namespace: str | None) -> Any:
        """Return everything in one page."""
        self._answer(f"list {resource.plural}")
        items = {"functioncallfinetunes": [self.finetune], "jobs": list(self.jobs.values())}
        yield deepcopy(items.get(resource.plural, [])), self.version

    def keep(self, body: Json) -> Json:
        """Store a Job as the API server does."""
        self.version += 1
        metadata = body["metadata"]
        metadata.setdefault("uid", f"uid-{metadata['name']}")
        metadata.setdefault("creationTimestamp", "2026-11-21T12:00:00Z")
        metadata["resourceVersion"] = str(self.version)
        self.jobs[metadata["name"]] = deepcopy(body)
        return deepcopy(body)


class Operation:
    """A reconciler with its dependencies."""

    def __init__(self) -> None:
        self.client = Client()
        self.cache = Cache()
        self.queue = WorkQueue(Counter(), self.cache.unserved)
        self.cache.finetunes.put(deepcopy(self.client.finetune))
        client: Any = self.client
        self.reconciler = Reconciler(
            client,
            self.cache,
            self.queue,
            Board(self.queue),
            Recorder(client, "test"),
            Warnings(client, self.queue.add),
            Counter(),
            lambda: PLATFORM,
        )

    @property
    def status(self) -> Json:
        """The last written status."""
        status: Json = self.client.finetune.get("status", {})
        return status

    async def reconcile(self) -> None:
        """Look once."""
        await self.reconciler.reconcile(KEY)


def test_a_job_is_created_before_the_status_is_written(jump: Jump) -> None:
    """The cache has both responses, so the next reconcile repeats neither."""

    async def story() -> None:
        operation = Operation()
        await operation.reconcile()
        assert operation.client.said == ["create", "status"]
        operation.client.said.clear()
        await operation.reconcile()
        assert "create" not in operation.client.said

    jump(story())


def test_jobs_of_new_objects_are_created_before_statuses_are_written(jump: Jump) -> None:
    """In a burst, statuses are written when no new object is waiting."""

    async def story() -> None:
        operation = Operation()
        newer = deepcopy(operation.client.finetune)
        newer["metadata"] |= {"name": "newer", "uid": "uid-of-newer"}
        operation.cache.finetunes.put(newer)
        operation.queue.add(KEY)
        operation.queue.add((KEY[0], "newer"))
        assert await operation.queue.get() == KEY
        await operation.reconcile()
        operation.queue.done(KEY)
        assert operation.client.said == ["create"]
        assert await operation.queue.get() == (KEY[0], "newer")
        assert await operation.queue.get() == KEY
        await operation.reconcile()
        assert operation.client.said[-1] == "status"

    jump(story())


def test_a_report_missed_by_the_watch_is_fetched_before_a_rerun(jump: Jump) -> None:
    """The watch is broken or slow: the Job is complete, but its pod has not been observed."""

    async def story() -> None:
        operation = Operation()
        await operation.reconcile()
        (job,) = operation.client.jobs.values()
        done = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-11-21T12:00:00Z"}
        job["status"] = {"conditions": [done]}
        operation.cache.jobs.put(operation.client.keep(job))
        operation.client.pods = [a_pod_of(job, a_report(Stage.PREPARE))]
        operation.client.said.clear()
        await operation.reconcile()
        assert "delete" not in operation.client.said
        assert operation.client.said[:2] == ["pods", "create"]
        assert len(operation.client.jobs) == 2

    jump(story())


def a_pod_of(job: Json, message: str) -> Json:
    """Return a succeeded pod of this Job."""
    metadata = job["metadata"]
    times = {"startedAt": "2026-11-21T12:00:00Z", "finishedAt": "2026-11-21T12:00:00Z"}
    ended = {"exitCode": 0, "message": message, **times}
    return {
        "metadata": {
            "name": f"{metadata['name']}-x1",
            "namespace": metadata["namespace"],
            "uid": "uid-of-the-pod",
            "resourceVersion": "150",
            "creationTimestamp": "2026-11-21T12:00:00Z",
            "labels": metadata["labels"],
            "ownerReferences": [{"uid": metadata["uid"], "controller": True}],
        },
        "status": {
            "phase": "Succeeded",
            "containerStatuses": [{"name": "prepare", "image": "i", "state": {"terminated": ended}}],
        },
    }


def test_events_are_recorded_only_after_the_status_was_written(jump: Jump) -> None:
    """A status that was not persisted is not announced."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = RefusedError("denied the request", 403)
        operation.client.errors["status"] = ConflictError("changed", 409)
        with pytest.raises(ConflictError):
            await operation.reconcile()
        assert operation.client.said == ["create", "status"]
        operation.client.errors["create"] = RefusedError("denied the request", 403)
        await operation.reconcile()
        assert operation.client.said[2:] == ["create", "status", "event PodRejected"]

    jump(story())


def test_a_rejected_job_is_reported_in_the_same_reconcile(jump: Jump) -> None:
    """The status has the message of the API server."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = RefusedError("must be less than or equal to memory limit", 422)
        await operation.reconcile()
        assert operation.status["failure"]["reason"] == "InvalidSpec"
        assert "memory limit" in operation.status["failure"]["message"]

    jump(story())


def test_an_existing_job_of_the_object_is_adopted(jump: Jump) -> None:
    """The operator was killed after creating it, and the cache has not observed it yet."""

    async def story() -> None:
        first = Operation()
        await first.reconcile()
        second = Operation()
        second.client.jobs = first.client.jobs
        second.client.errors["create"] = ExistsError("exists", 409)
        await second.reconcile()
        assert "failure" not in second.status
        assert len(second.cache.jobs) == 1

    jump(story())


def test_an_existing_job_of_another_owner_is_a_conflict(jump: Jump) -> None:
    """It is not modified."""

    async def story() -> None:
        operation = Operation()
        await operation.reconcile()
        (job,) = operation.client.jobs.values()
        job["metadata"]["ownerReferences"] = []
        other = Operation()
        other.client.jobs = operation.client.jobs
        other.client.errors["create"] = ExistsError("exists", 409)
        await other.reconcile()
        assert other.status["failure"]["reason"] == "NameConflict"
        assert "delete" not in other.client.said

    jump(story())


def test_an_unavailable_api_server_changes_no_status(jump: Jump) -> None:
    """The run has not failed; the queue retries."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = UnavailableError("connection refused")
        with pytest.raises(UnavailableError):
            await operation.reconcile()
        assert operation.status == {}

    jump(story())


def test_a_webhook_without_a_response_is_reported_and_retried(jump: Jump) -> None:
    """The API server itself is available: the status names the webhook."""

    async def story() -> None:
        operation = Operation()
        message = 'Internal error occurred: failed calling webhook "jobs.example.com": connection refused'
        operation.client.errors["create"] = UnavailableError(message, 500)
        await operation.reconcile()
        assert "failure" not in operation.status
        reconciling = next(each for each in operation.status["conditions"] if each["type"] == "Reconciling")
        assert reconciling["reason"] == "WebhookUnavailable"
        assert "jobs.example.com" in reconciling["message"]
        operation.client.errors.clear()
        await operation.reconcile()
        assert "troubleSince" not in operation.status

    jump(story())


def test_an_older_crd_loses_only_the_fields_it_lacks(jump: Jump, caplog: pytest.LogCaptureFixture) -> None:
    """Server-side apply rejects the whole status for one unknown field, and may not name all at once."""

    async def story() -> None:
        operation = Operation()
        words = "failed to create typed patch object (team-a/support; tunemill.dev/v1alpha1, Kind=X): errors:\n"
        operation.client.refusals = [
            (
                f'{words}  .status.stages[name="train"].key: field not declared in schema\n'
                "  .status.phase: field not declared in schema"
            ),
            f"{words}.status.run.id: field not declared in schema",
        ]
        await operation.reconcile()
        assert operation.status["conditions"]
        assert "phase" not in operation.status
        assert "id" not in operation.status["run"]
        assert all("key" not in entry for entry in operation.status["stages"])
        assert "lacks status.phase, status.stages.key" in caplog.text

    jump(story())


def test_an_apply_rejected_for_another_reason_is_retried(jump: Jump) -> None:
    """Whatever the message says about fields that are not in the status."""

    async def story() -> None:
        operation = Operation()
        operation.client.refusals = [".status.neverWritten: field not declared in schema"]
        with pytest.raises(UnavailableError):
            await operation.reconcile()

    jump(story())


def test_workloads_are_requested_and_may_be_forbidden(jump: Jump, caplog: pytest.LogCaptureFixture) -> None:
    """An outdated Role loses the reason for waiting, not the run."""

    async def story() -> None:
        operation = Operation()
        await operation.reconcile()
        (job,) = operation.client.jobs.values()
        job["spec"]["suspend"] = True
        job["metadata"]["labels"][LABEL_QUEUE] = "team-a"
        operation.cache.jobs.put(operation.client.keep(job))
        operation.client.errors["workloads"] = RefusedError("workloads.kueue.x-k8s.io is forbidden", 403)
        await operation.reconcile()
        assert operation.status["phase"] == "Queued"
        assert "workloads.kueue.x-k8s.io is forbidden" in caplog.text
        await operation.reconcile()
        assert operation.status["failure"]["reason"] == "QueueUnavailable"

    jump(story())


def test_a_terminating_namespace_is_no_failure_of_the_run(jump: Jump) -> None:
    """The object is deleted with it."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = RefusedError("unable to create: namespace is being terminated", 403)
        await operation.reconcile()
        assert "failure" not in operation.status

    jump(story())


@pytest.mark.parametrize("error", [NotFoundError("gone", 404), ConflictError("another uid", 409)])
def test_deleting_a_missing_job_succeeds(jump: Jump, error: KubeError) -> None:
    """It is removed from the cache at once."""

    async def story() -> None:
        operation = Operation()
        await operation.reconcile()
        operation.client.finetune["spec"]["suspend"] = True
        operation.client.finetune["metadata"] |= {"generation": 2, "resourceVersion": "500"}
        operation.client.version = 500
        operation.cache.finetunes.put(deepcopy(operation.client.finetune))
        operation.client.errors["delete"] = error
        await operation.reconcile()
        assert len(operation.cache.jobs) == 0

    jump(story())


def test_a_deleted_object_is_forgotten(jump: Jump) -> None:
    """No request is sent."""

    async def story() -> None:
        operation = Operation()
        operation.cache.finetunes.remove("uid-of-support")
        await operation.reconcile()
        assert operation.client.said == []

    jump(story())


def test_a_failed_event_does_not_stop_a_reconcile(jump: Jump) -> None:
    """Events are informational."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = RefusedError("denied the request", 403)
        operation.client.errors["event PodRejected"] = RefusedError("no events here", 403)
        await operation.reconcile()
        assert operation.status["failure"]["reason"] == "PodRejected"

    jump(story())


def test_a_resync_finds_changes_missed_by_the_watches(jump: Jump) -> None:
    """Otherwise the operator would wait forever for a Job that was deleted during an interruption."""

    async def story() -> None:
        operation = Operation()
        client: Any = operation.client
        counted: list[int] = []

        class Observer:
            def diverged(self, objects: int) -> None:
                counted.append(objects)

        resync = Resync(client, operation.cache, operation.queue, Observer(), [])
        await resync.fill_caches()
        await operation.reconcile()
        operation.client.jobs.clear()
        operation.client.version += 1
        task = asyncio.ensure_future(resync.run(300))
        await asyncio.sleep(400)
        assert counted[0] == 1
        assert len(operation.cache.jobs) == 0
        task.cancel()

    jump(story())


def test_objects_deleted_before_a_watch_started_are_found_at_once(jump: Jump) -> None:
    """The watch's initial list does not contain them, and the next periodic resync is minutes away."""

    async def story() -> None:
        operation = Operation()
        client: Any = operation.client
        resync = Resync(client, operation.cache, operation.queue, Counter(), [])
        await resync.fill_caches()
        await operation.reconcile()
        operation.client.jobs.clear()
        operation.client.version += 1
        task = asyncio.ensure_future(resync.run(300))
        for _ in range(5):
            await asyncio.sleep(1)
            resync.listed()
        assert len(operation.cache.jobs) == 1, "the list is still being processed"
        await asyncio.sleep(4)
        assert len(operation.cache.jobs) == 0
        task.cancel()

    jump(story())


def test_a_restarted_watch_does_not_requeue_unchanged_objects(jump: Jump) -> None:
    """Ten thousand objects would be reconciled. The periodic resync does that."""

    async def story() -> None:
        operation = Operation()
        client: Any = operation.client
        resync = Resync(client, operation.cache, operation.queue, Counter(), [])
        await resync.fill_caches()
        operation.queue.done(await operation.queue.get())
        task = asyncio.ensure_future(resync.run(300))
        resync.listed()
        operation.queue.done(await operation.queue.get())  # the first look
        await asyncio.sleep(100)
        assert "list jobs" in operation.client.said
        assert len(operation.queue) == 0
        await asyncio.sleep(300)
        assert len(operation.queue) == 1
        task.cancel()

    jump(story())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotFoundError("the server could not find the requested resource", 404), "CRD of FunctionCallFineTune"),
        (RefusedError("cannot list resource", 403), "lacks a rule"),
        (UnavailableError("connection refused"), "does not respond"),
    ],
)
def test_a_crd_missing_at_startup_is_logged_once_and_awaited(
    jump: Jump, caplog: pytest.LogCaptureFixture, error: KubeError, words: str
) -> None:
    """No crash loop, and no repeated log line."""

    async def story() -> None:
        operation = Operation()
        client: Any = operation.client
        client.errors["discover functioncallfinetunes"] = error
        resync = Resync(client, operation.cache, operation.queue, Counter(), [])
        task = asyncio.ensure_future(resync.fill_caches())
        await asyncio.sleep(1)
        client.errors["list functioncallfinetunes"] = error
        await asyncio.sleep(5)
        assert not task.done()
        await task

    with caplog.at_level("WARNING"):
        jump(story())
    assert [words in record.message for record in caplog.records] == [True]


def test_without_the_profile_crd_objects_are_served_until_it_is_installed(
    jump: Jump, caplog: pytest.LogCaptureFixture
) -> None:
    """With older CRDs only profiles are unavailable. Once theirs is installed, the process restarts."""

    async def story() -> None:
        operation = Operation()
        client: Any = operation.client
        client.errors["discover finetuneprofiles"] = NotFoundError("not among its kinds", 404)
        resync = Resync(client, operation.cache, operation.queue, Counter(), [])
        await resync.fill_caches()
        assert not resync.profiles_served
        assert "list finetuneprofiles" not in client.said
        with pytest.raises(KindsChangedError, match="FineTuneProfile was installed"):
            await resync.run(300)

    with caplog.at_level("WARNING"):
        jump(story())
    assert "the CRD of FineTuneProfile is not installed" in caplog.text


def test_a_crd_deleted_before_its_watch_starts_is_detected_within_seconds(jump: Jump) -> None:
    """Otherwise the watch would never start, without any message."""

    async def story() -> None:
        operation = Operation()
        client: Any = operation.client
        resync = Resync(client, operation.cache, operation.queue, Counter(), [])
        await resync.fill_caches()
        client.errors["list functioncallfinetunes"] = NotFoundError("404 page not found", 404)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(KindsChangedError, match="was removed"):
            await resync.run(300)
        assert asyncio.get_running_loop().time() - begun < 10

    jump(story())


def test_an_operator_with_profiles_disabled_requests_none(jump: Jump) -> None:
    """It needs no permission beyond its namespaces."""

    async def story() -> None:
        operation = Operation()
        client: Any = operation.client
        resync = Resync(client, operation.cache, operation.queue, Counter(), ["team-a"], profiles=False)
        await resync.fill_caches()
        assert "discover finetuneprofiles" not in client.said
        assert "list finetuneprofiles" not in client.said

    jump(story())


def test_an_internal_error_for_one_object_does_not_affect_others(jump: Jump) -> None:
    """It is logged and retried with backoff."""

    async def story() -> None:
        queue = WorkQueue(Counter())
        seen: list[str] = []

        async def reconcile(key: tuple[str, str]) -> None:
            seen.append(key[1])
            if key[1] == "bad":
                raise ZeroDivisionError

        task = asyncio.ensure_future(work(queue, reconcile, 2, [Counter()]))
        queue.add(("a", "bad"))
        queue.add(("a", "good"))
        await asyncio.sleep(1000)
        assert seen.count("good") == 1
        assert 10 < seen.count("bad") < 40
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    jump(story())


def test_a_running_reconcile_is_finished_before_shutdown(jump: Jump) -> None:
    """Within two seconds, after which a new leader may start. No new key is taken."""

    async def story() -> None:
        queue = WorkQueue(Counter())
        ended: list[str] = []

        async def reconcile(key: tuple[str, str]) -> None:
            await asyncio.sleep(1 if key[1] == "quick" else 100)
            ended.append(key[1])

        task = asyncio.ensure_future(work(queue, reconcile, 2, [Counter()]))
        for name in ("quick", "slow", "never"):
            queue.add(("a", name))
        await asyncio.sleep(0.5)
        started = asyncio.get_running_loop().time()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asyncio.get_running_loop().time() - started <= FINISH_SECONDS
        assert ended == ["quick"]
        with pytest.raises(QueueClosedError):
            await queue.get()

    jump(story())


def test_views_of_jobs_have_the_name_of_their_object() -> None:
    """From the label, so that Jobs of a deleted and recreated object are found."""
    cache = Cache()
    body = {
        "metadata": {
            "namespace": "team-a",
            "name": "job",
            "uid": "job",
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-21T12:00:00Z",
            "labels": {LABEL_FINETUNE: "support"},
        }
    }
    assert cache.jobs.put(body) == KEY


def test_an_internal_error_is_reported_in_the_status(jump: Jump, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stalled with the error, written once. It is retried, and recovers when the error no longer occurs."""

    async def story() -> None:
        operation = Operation()
        with monkeypatch.context() as defect:

            def plan(*_: Any) -> Any:
                raise OverflowError("date value out of range")

            defect.setattr("tunemill_operator.runtime.reconciler.plan", plan)
            for _ in range(3):
                with pytest.raises(OverflowError):
                    await operation.reconcile()
        stalled = next(item for item in operation.status["conditions"] if item["type"] == "Stalled")
        assert stalled["status"] == "True"
        assert "date value out of range" in stalled["message"]
        assert operation.client.said.count("status") == 1
        await operation.reconcile()
        assert operation.status["phase"] == "Pending"
        assert len(operation.client.jobs) == 1

    jump(story())
