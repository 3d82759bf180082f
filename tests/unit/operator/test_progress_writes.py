"""How often progress is written to statuses, with the real board, queue and reconciler. Time is simulated."""

import asyncio
import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from property.builders import PLATFORM, a_finetune_body, text
from tunemill_api.constants import LABEL_FINETUNE
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainerStatus
from tunemill_dev.played import a_report
from tunemill_operator.kube.client import JOBS, Resource
from tunemill_operator.kube.errors import UnavailableError
from tunemill_operator.progress.board import Board, ProgressReport
from tunemill_operator.progress.turns import Pace, Turns
from tunemill_operator.runtime.cache import Cache, Key
from tunemill_operator.runtime.queue import WorkQueue
from tunemill_operator.runtime.reconciler import Reconciler
from tunemill_operator.runtime.recorder import Recorder
from tunemill_operator.runtime.warnings import Warnings
from tunemill_operator.runtime.workers import work

Json = dict[str, Any]
Jump = Callable[..., Any]
TRAININGS = 300
FEWER = 60
FEWER_PACE = Pace(seconds=10, per_second=2)
"""As much too fast for sixty trainings as the default is for three hundred."""


class Silent:
    """A metric that ignores everything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Fleet:
    """An operator with running trainings, and an API server with a delay for each status."""

    def __init__(self, trainings: int, pace: Pace | None = None, *, answer_seconds: float = 0.02) -> None:
        self.writes: list[tuple[float, str, Json]] = []
        """When each status was written, of which object, and what it said."""
        self.answer_seconds = answer_seconds
        self.cache = Cache()
        self.queue = WorkQueue(Silent(), self.cache.unserved)
        self.board = Board(self.queue, pace)
        self.names = [f"training-{number}" for number in range(trainings)]
        self._bodies: dict[str, Json] = {}
        self._jobs: dict[str, Json] = {}
        self._version = 1000
        client: Any = self
        self.reconciler = Reconciler(
            client,
            self.cache,
            self.queue,
            self.board,
            Recorder(client, "test"),
            Warnings(client, self.queue.add),
            Silent(),
            lambda: PLATFORM,
        )

    @contextlib.asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """Bring all objects to training, and run the workers while the context lasts."""
        for name in self.names:
            self._bodies[name] = a_finetune_body(name)
            self.cache.finetunes.put(self._bodies[name])
            await self.reconciler.reconcile(("team-a", name))
            self._play(name, Stage.PREPARE, {"terminated": _ended(a_report(Stage.PREPARE))}, "Succeeded")
            self._complete(name)
            await self.reconciler.reconcile(("team-a", name))
            self._play(name, Stage.TRAIN, {"running": {"startedAt": text(_long_ago())}}, "Running")
            await self.reconciler.reconcile(("team-a", name))
        self.writes.clear()
        at_work = asyncio.ensure_future(work(self.queue, self.reconciler.reconcile, 16, []))
        try:
            yield
        finally:
            at_work.cancel()
            await asyncio.gather(at_work, return_exceptions=True)

    def report(self, name: str, percent: int) -> None:
        """Report progress of a training."""
        status = TrainerStatus(progress_percentage=percent)
        now = datetime.now(UTC)
        self.board.post(("team-a", name), f"uid-of-{name}-train", ProgressReport(trainer_status=status), now)

    def fail(self, name: str) -> None:
        """End the pod of a training with an OOM kill."""
        ended = {"exitCode": 137, "reason": "OOMKilled", **_ended("")} | {"exitCode": 137}
        self._play(name, Stage.TRAIN, {"terminated": ended}, "Failed")
        self.queue.add(("team-a", name))

    def shown(self, name: str) -> str:
        """Return the progress in the status."""
        progress: str = self._bodies[name].get("status", {}).get("progress", "")
        return progress

    def most_in_a_second(self) -> int:
        """Return the most writes within any second."""
        times = [time for time, _, _ in self.writes]
        return max((sum(1 for other in times if time <= other < time + 1) for time in times), default=0)

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create a Job or an event."""
        if resource is not JOBS:
            return body
        metadata = body["metadata"]
        self._jobs[metadata["labels"][LABEL_FINETUNE]] = job = {
            **body,
            "metadata": {**metadata, **self._stored(metadata["name"])},
        }
        return job

    async def delete_job(self, namespace: str, name: str, uid: str) -> Json:
        """Mark a Job as being deleted."""
        return {"kind": "Status"}

    async def apply_status(self, namespace: str, name: str, resource_version: int, status: Json) -> Json:
        """Write a status."""
        await asyncio.sleep(self.answer_seconds)
        self.writes.append((asyncio.get_running_loop().time(), name, status))
        body = self._bodies[name]
        metadata = {**body["metadata"], "resourceVersion": self._stored(name)["resourceVersion"]}
        self._bodies[name] = {**body, "metadata": metadata, "status": status}
        return self._bodies[name]

    def _play(self, name: str, stage: Stage, state: Json, phase: str) -> None:
        """Show the operator a pod of the object's newest Job."""
        job = next(job for job in self.cache.jobs.of(("team-a", name)) if job.label == stage.value)
        metadata = {
            "namespace": "team-a",
            "labels": {LABEL_FINETUNE: name},
            "ownerReferences": [{"uid": job.meta.uid, "controller": True}],
            **self._stored(f"{name}-{stage.value}"),
        }
        container = {"name": stage.value, "image": "i", "state": state}
        self.cache.pods.put(
            {"metadata": metadata, "status": {"phase": phase, "containerStatuses": [container]}},
        )

    def _complete(self, name: str) -> None:
        """Complete the object's newest Job."""
        job = self._jobs[name]
        done = {"type": "Complete", "status": "True", "lastTransitionTime": text(_long_ago())}
        metadata = {**job["metadata"], "resourceVersion": self._stored(name)["resourceVersion"]}
        self.cache.jobs.put({**job, "metadata": metadata, "status": {"conditions": [done]}})

    def _stored(self, name: str) -> Json:
        self._version += 1
        return {
            "name": name,
            "uid": f"uid-of-{name}",
            "resourceVersion": str(self._version),
            "creationTimestamp": text(_long_ago()),
        }


def _long_ago() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=10)


def _ended(message: str) -> Json:
    return {"exitCode": 0, "message": message, "startedAt": text(_long_ago()), "finishedAt": text(_long_ago())}


def test_simultaneous_reports_are_written_at_a_limited_rate(jump: Jump) -> None:
    """300 reports: at most ten writes a second, each object once, with its newest report."""

    async def story() -> None:
        fleet = Fleet(TRAININGS)
        async with fleet.training():
            for name in fleet.names:
                fleet.report(name, 1)
            for name in fleet.names:
                fleet.report(name, 2)
            await asyncio.sleep(60)
            assert fleet.most_in_a_second() <= 11
            assert Counter(name for _, name, _ in fleet.writes) == dict.fromkeys(fleet.names, 1)
            assert {fleet.shown(name) for name in fleet.names[1:]} == {"2%"}

    jump(story())


def test_the_rate_limit_delays_all_objects_equally(jump: Jump) -> None:
    """With a report every second, each object is written every 30 seconds with its newest report."""

    async def story() -> None:
        fleet = Fleet(FEWER, FEWER_PACE)
        async with fleet.training():
            begun = asyncio.get_running_loop().time()
            for second in range(1, 96):
                for name in fleet.names:
                    fleet.report(name, second)
                await asyncio.sleep(1)
            times = defaultdict(list)
            for time, name, status in fleet.writes:
                times[name].append(time)
                newest = time - fleet.answer_seconds - begun
                assert newest - 0.01 <= status["trainerStatus"]["progressPercentage"] <= newest + 1.01
            assert {len(each) for each in times.values()} <= {3, 4}
            assert len(times) == FEWER
            gaps = [after - before for each in times.values() for before, after in itertools.pairwise(each)]
            assert 29 <= min(gaps) <= max(gaps) <= 31
            assert fleet.most_in_a_second() <= 3

    jump(story())


def test_a_few_objects_are_written_at_the_interval_per_object(jump: Jump) -> None:
    """The first report is written at once."""

    async def story() -> None:
        fleet = Fleet(2, Pace(seconds=10, per_second=10))
        async with fleet.training():
            begun = asyncio.get_running_loop().time()
            for second in range(35):
                for name in fleet.names:
                    fleet.report(name, second)
                await asyncio.sleep(1)
            written = [time - begun for time, name, _ in fleet.writes if name == fleet.names[0]]
            assert [round(time) for time in written] == [0, 10, 20, 30]

    jump(story())


def test_other_reconciles_do_not_write_progress(jump: Jump) -> None:
    """The limit also applies to resyncs and Job events, and no report is lost."""

    async def story() -> None:
        fleet = Fleet(FEWER, FEWER_PACE)
        async with fleet.training():
            for percent in range(1, 6):
                for name in fleet.names:
                    fleet.report(name, percent)
                    fleet.queue.add(("team-a", name))
                await asyncio.sleep(1)
            assert fleet.most_in_a_second() <= 3
            assert len(fleet.writes) <= 11
            await asyncio.sleep(60)
            assert {fleet.shown(name) for name in fleet.names} == {"5%"}

    jump(story())


def test_gpu_time_is_written_at_the_same_limited_rate(jump: Jump) -> None:
    """It grows every minute for every object, and a resync would write all at once."""

    async def story() -> None:
        fleet = Fleet(FEWER, FEWER_PACE)
        async with fleet.training():
            for name, body in fleet._bodies.items():
                fleet._version += 1
                run = {**body["status"]["run"], "gpuSeconds": 60}
                metadata = {**body["metadata"], "resourceVersion": str(fleet._version)}
                fleet._bodies[name] = {**body, "metadata": metadata, "status": {**body["status"], "run": run}}
                fleet.cache.finetunes.put(fleet._bodies[name])
                fleet.queue.add(("team-a", name))
            await asyncio.sleep(60)
            assert fleet.most_in_a_second() <= 3
            assert {body["status"]["run"]["gpuSeconds"] for body in fleet._bodies.values()} <= {600, 660}

    jump(story())


def test_a_failure_is_written_at_once(jump: Jump) -> None:
    """However many objects wait for their progress to be written."""

    async def story() -> None:
        fleet = Fleet(FEWER, FEWER_PACE)
        async with fleet.training():
            for name in fleet.names:
                fleet.report(name, 1)
            await asyncio.sleep(0.5)
            last, begun = fleet.names[-1], asyncio.get_running_loop().time()
            assert last not in {name for _, name, _ in fleet.writes}
            fleet.fail(last)
            await asyncio.sleep(0.5)
            (written,) = [(time, status) for time, name, status in fleet.writes if name == last]
            assert written[0] - begun < 0.1
            assert (
                next(entry for entry in written[1]["stages"] if entry["name"] == "train")["cutShort"] == "OutOfMemory"
            )

    jump(story())


def test_writes_do_not_accumulate_while_the_api_server_is_slow(jump: Jump) -> None:
    """After an outage there are still fewer than twenty writes a second."""

    async def story() -> None:
        fleet = Fleet(TRAININGS, answer_seconds=8.0)
        async with fleet.training():
            for name in fleet.names:
                fleet.report(name, 1)
            await asyncio.sleep(10)
            fleet.answer_seconds = 0.02
            await asyncio.sleep(120)
            assert fleet.most_in_a_second() <= 20
            assert {fleet.shown(name) for name in fleet.names} == {"1%"}

    jump(story())


def test_a_failed_progress_write_is_retried_within_the_rate_limit(jump: Jump) -> None:
    """The object does not lose its turn."""

    async def story() -> None:
        fleet = Fleet(1)
        async with fleet.training():
            apply, failures = fleet.apply_status, 2

            async def failing(*arguments: Any) -> Json:
                nonlocal failures
                if failures:
                    failures -= 1
                    raise UnavailableError("not now", 503)
                return await apply(*arguments)

            fleet.apply_status = failing  # type: ignore[method-assign]
            fleet.report(fleet.names[0], 7)
            await asyncio.sleep(9)
            assert failures == 1
            await asyncio.sleep(30)
            assert fleet.shown(fleet.names[0]) == "7%"
            assert len(fleet.writes) == 1

    jump(story())


def test_a_deleted_object_leaves_the_write_queue(jump: Jump) -> None:
    """A new object of the same name starts over."""

    async def story() -> None:
        ready: list[Key] = []
        turns = Turns(Pace(seconds=10, per_second=1), ready.append)
        for name in "abc":
            turns.wait(("team-a", name))
        assert ready == [("team-a", "a")]
        turns.forget(("team-a", "b"))
        assert len(turns) == 1
        assert turns.begin(("team-a", "a"))
        turns.end(("team-a", "a"))
        assert not turns.begin(("team-a", "a"))
        await asyncio.sleep(1)
        assert ready == [("team-a", "a"), ("team-a", "c")]
        turns.forget(("team-a", "a"))
        turns.forget(("team-a", "c"))
        turns.wait(("team-a", "a"))
        await asyncio.sleep(1)
        assert ready[2:] == [("team-a", "a")]

    jump(story())
