"""How decisions are carried out: in this order, and from whatever answer the API server gives."""

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
    """Counts nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Client:
    """An API server that keeps Jobs and the status of one object, and fails where a test says so."""

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
        """Name every kind."""
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
    """A reconciler and all that it works with."""

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
        """The status that was written last."""
        status: Json = self.client.finetune.get("status", {})
        return status

    async def reconcile(self) -> None:
        """Look once."""
        await self.reconciler.reconcile(KEY)


def test_a_job_is_created_before_the_status_is_written(jump: Jump) -> None:
    """And the answers are taken in, so that the next look does neither again."""

    async def story() -> None:
        operation = Operation()
        await operation.reconcile()
        assert operation.client.said == ["create", "status"]
        operation.client.said.clear()
        await operation.reconcile()
        assert "create" not in operation.client.said

    jump(story())


def test_while_new_objects_wait_for_their_jobs_statuses_are_written_later(jump: Jump) -> None:
    """A burst of objects gets its Jobs first; their statuses are written when no new object is waiting."""

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


def test_a_report_that_no_watch_has_brought_is_fetched_before_a_stage_is_done_again(jump: Jump) -> None:
    """Its watch has died, or lags: the Job is seen to be complete, and of its pod nothing."""

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
    """Return a pod of this Job that has ended well."""
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


def test_events_follow_the_status_and_only_if_it_was_written(jump: Jump) -> None:
    """What was not persisted is not announced."""

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


def test_a_refused_job_becomes_a_failure_in_the_same_look(jump: Jump) -> None:
    """The API server's words arrive in the status."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = RefusedError("must be less than or equal to memory limit", 422)
        await operation.reconcile()
        assert operation.status["failure"]["reason"] == "InvalidSpec"
        assert "memory limit" in operation.status["failure"]["message"]

    jump(story())


def test_a_job_that_exists_and_is_ours_is_taken_in(jump: Jump) -> None:
    """The operator was killed after it had created the Job, and the cache has not seen it yet."""

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


def test_a_job_that_exists_and_is_not_ours_is_a_conflict(jump: Jump) -> None:
    """It is not touched."""

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


def test_an_api_server_that_is_away_leaves_the_status_alone(jump: Jump) -> None:
    """It is no failure of the run; the queue tries again."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = UnavailableError("connection refused")
        with pytest.raises(UnavailableError):
            await operation.reconcile()
        assert operation.status == {}

    jump(story())


def test_a_webhook_that_does_not_answer_is_told_and_tried_again(jump: Jump) -> None:
    """The API server itself is there: the status names the webhook that does not respond."""

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


def test_a_crd_that_is_older_than_the_operator_costs_only_the_fields_that_it_lacks(
    jump: Jump, caplog: pytest.LogCaptureFixture
) -> None:
    """Server-side apply refuses the whole status for one of them, and does not always name all at once."""

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


def test_an_apply_that_fails_for_another_reason_is_tried_again_later(jump: Jump) -> None:
    """Whatever the message says about fields that are not in the status."""

    async def story() -> None:
        operation = Operation()
        operation.client.refusals = [".status.neverWritten: field not declared in schema"]
        with pytest.raises(UnavailableError):
            await operation.reconcile()

    jump(story())


def test_what_kueue_says_is_asked_for_and_may_be_refused(jump: Jump, caplog: pytest.LogCaptureFixture) -> None:
    """A Role from before there were queues costs what would have been said, not the run."""

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


def test_a_namespace_that_is_going_away_is_no_failure(jump: Jump) -> None:
    """The object goes with it."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = RefusedError("unable to create: namespace is being terminated", 403)
        await operation.reconcile()
        assert "failure" not in operation.status

    jump(story())


@pytest.mark.parametrize("error", [NotFoundError("gone", 404), ConflictError("another uid", 409)])
def test_a_job_that_is_gone_already_need_not_be_deleted(jump: Jump, error: KubeError) -> None:
    """The cache learns of it at once."""

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
    """Nothing is asked of the API server."""

    async def story() -> None:
        operation = Operation()
        operation.cache.finetunes.remove("uid-of-support")
        await operation.reconcile()
        assert operation.client.said == []

    jump(story())


def test_an_event_that_cannot_be_recorded_stops_nothing(jump: Jump) -> None:
    """Events are for people."""

    async def story() -> None:
        operation = Operation()
        operation.client.errors["create"] = RefusedError("denied the request", 403)
        operation.client.errors["event PodRejected"] = RefusedError("no events here", 403)
        await operation.reconcile()
        assert operation.status["failure"]["reason"] == "PodRejected"

    jump(story())


def test_a_resync_finds_what_the_watches_have_missed(jump: Jump) -> None:
    """A Job that vanished in a gap would be waited for for ever."""

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


def test_what_vanished_before_a_watch_was_taken_up_is_found_at_once(jump: Jump) -> None:
    """The watch's own list does not tell of it; the next comparison of the period is minutes away."""

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


def test_a_watch_that_is_taken_up_anew_has_nobody_look_at_what_is_as_it_was(jump: Jump) -> None:
    """Among ten thousand objects that would be ten thousand looks; once a period there are as many."""

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
def test_what_is_missing_at_the_start_is_said_once_and_waited_for(
    jump: Jump, caplog: pytest.LogCaptureFixture, error: KubeError, words: str
) -> None:
    """No crash loop, and no flood of the same line."""

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


def test_a_cluster_without_profiles_is_served_until_it_has_some(jump: Jump, caplog: pytest.LogCaptureFixture) -> None:
    """CRDs that are older than the operator cost nothing but the profiles; once theirs has come, a process begins."""

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


def test_a_crd_that_goes_before_its_watch_begins_is_noticed_within_seconds(jump: Jump) -> None:
    """The watch would never begin, and nobody would ever hear of it."""

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


def test_an_operator_that_is_to_do_without_profiles_asks_for_none(jump: Jump) -> None:
    """It needs no right that reaches beyond its namespaces."""

    async def story() -> None:
        operation = Operation()
        client: Any = operation.client
        resync = Resync(client, operation.cache, operation.queue, Counter(), ["team-a"], profiles=False)
        await resync.fill_caches()
        assert "discover finetuneprofiles" not in client.said
        assert "list finetuneprofiles" not in client.said

    jump(story())


def test_a_defect_that_one_object_brings_out_stops_no_other(jump: Jump) -> None:
    """It is logged and tried again, later and later."""

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


def test_what_is_being_reconciled_is_finished_before_the_end(jump: Jump) -> None:
    """Within two seconds, after which a new leader may be at work; no new key is begun."""

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


def test_views_of_jobs_carry_the_name_of_their_object() -> None:
    """By the label: so a Job is found when its object has been deleted and made anew."""
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


def test_an_object_that_brings_out_a_defect_says_so_in_its_status(jump: Jump, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stalled with the error, written once; it is tried again, and goes on by itself when the defect is gone."""

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
