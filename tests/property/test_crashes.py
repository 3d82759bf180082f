"""Every request of a run goes wrong once, one after the other, in every way: the outcome is the one without a fault.

The operator's own reconciler works on the model of Kubernetes. The cases are enumerated, not random: a scenario runs
once to count its requests, and then once for each request and each way to fail.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from enum import Enum
from typing import Any

import pytest
from property.builders import PLATFORM
from property.simulator import World, current_stage
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_operator.kube.client import JOBS, NETWORK_POLICIES, SERVICES, Resource
from tunemill_operator.kube.errors import ConflictError, ExistsError, KubeError, NotFoundError, UnavailableError
from tunemill_operator.progress.board import Board
from tunemill_operator.runtime import reconciler as module
from tunemill_operator.runtime.cache import Cache
from tunemill_operator.runtime.queue import WorkQueue
from tunemill_operator.runtime.reconciler import Reconciler
from tunemill_operator.runtime.recorder import Recorder
from tunemill_operator.runtime.warnings import Warnings

Json = dict[str, Any]
KEY = ("team-a", "support")
ROUNDS = 200
"""No story takes so long."""
REST = 3
"""Rounds in which nothing happens any more."""


class Fault(Enum):
    """The outcome of a failed request."""

    DIES_BEFORE = "the operator is killed before it makes the request"
    DIES_AFTER = "the operator is killed when the request was carried out, before it hears of it"
    REFUSED = "the API server is not there for a moment"
    LOST = "the request is carried out, and its answer is lost"
    LATE = "another writer was faster"


class DiedError(BaseException):
    """The process died: the rest of its work is skipped."""


class Server:
    """Responds to the operator's requests from the world; one of them fails."""

    def __init__(self, world: World, number: int | None, fault: Fault | None) -> None:
        self.world = world
        self.requests: list[str] = []
        self._number = number
        self._fault = fault

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create a Job; events are only counted."""
        if resource in (SERVICES, NETWORK_POLICIES):
            return self._answer(f"create {body['kind']}", lambda: self._make_companion(body))
        if resource is not JOBS:
            return self._answer("record", lambda: body)
        name = body["metadata"]["name"]

        def make() -> Json:
            if name in self.world.jobs:
                raise ExistsError(f"Job {name} exists", 409)
            self.world._create_job(body)
            return deepcopy(self.world.jobs[name])

        return self._answer(f"create {name}", make)

    def _make_companion(self, body: Json) -> Json:
        name = f"{body['kind']}/{body['metadata']['name']}"
        if name in self.world.companions:
            raise ExistsError(f"{name} exists", 409)
        self.world.companions[name] = body
        return body

    async def delete(self, resource: Resource, namespace: str, name: str) -> None:
        """Delete a companion of a Job."""

        def delete() -> None:
            kind = "Service" if resource is SERVICES else "NetworkPolicy"
            if self.world.companions.pop(f"{kind}/{name}", None) is None:
                raise NotFoundError(f"no {kind} {name}", 404)

        self._answer(f"delete {resource.plural}", delete)

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return a Job."""
        return self._answer(f"get {name}", lambda: deepcopy(self.world.jobs[name]))

    async def delete_job(self, namespace: str, name: str, uid: str) -> Json:
        """Mark a Job as being deleted."""

        def delete() -> Json:
            if name not in self.world.jobs or self.world.jobs[name]["metadata"]["uid"] != uid:
                raise NotFoundError(f"no Job {name}", 404)
            self.world._delete_job(name)
            return {"kind": "Job", **deepcopy(self.world.jobs[name])}

        return self._answer(f"delete {name}", delete)

    async def apply_status(self, namespace: str, name: str, resource_version: int, status: Json) -> Json:
        """Write the status, if the version of the object is current."""

        def write() -> Json:
            metadata = self.world.finetune_body["metadata"]
            if int(metadata["resourceVersion"]) != resource_version:
                raise ConflictError("the object has changed", 409)
            self.world.finetune_body["status"] = status
            self.world._touch(self.world.finetune_body)
            return deepcopy(self.world.finetune_body)

        return self._answer("status", write)

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return no events."""
        return self._answer("events", list)

    def _answer(self, what: str, do: Callable[[], Any]) -> Any:
        self.requests.append(what)
        fault = self._fault if len(self.requests) - 1 == self._number else None
        if fault is Fault.DIES_BEFORE:
            raise DiedError
        if fault is Fault.REFUSED:
            raise UnavailableError("the API server is not there")
        if fault is Fault.LATE and what == "status":
            raise ConflictError("the object has changed", 409)
        answer = do()
        if fault is Fault.DIES_AFTER:
            raise DiedError
        if fault is Fault.LOST:
            raise UnavailableError("the answer is lost")
        return answer


class _Quiet:
    """A metric that ignores everything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Operator:
    """A sequence of processes, each with its own memory."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._begin()

    async def look(self) -> bool:
        """See what there is, and reconcile; after a failed request once more, with what was seen before it.

        Returns whether it has lived through it.
        """
        self._see()
        for _ in range(2):
            try:
                await self._reconciler.reconcile(KEY)
                break
            except DiedError:
                self._begin()
                return False
            except KubeError:
                continue
        return True

    def _begin(self) -> None:
        client: Any = self._server
        self._cache, queue = Cache(), WorkQueue(_Quiet())
        recorder = Recorder(client, "test")
        self._reconciler = Reconciler(
            client, self._cache, queue, Board(queue), recorder, Warnings(client, queue.add), _Quiet(), lambda: PLATFORM
        )

    def _see(self) -> None:
        world, cache = self._server.world, self._cache
        objects = {"": world.finetune_body}
        for store, bodies in ((cache.finetunes, objects), (cache.jobs, world.jobs), (cache.pods, world.pods)):
            for body in bodies.values():
                known = store.get(body["metadata"]["uid"])
                if known is None or known.meta.resource_version < int(body["metadata"]["resourceVersion"]):
                    store.put(deepcopy(body))
            present = {body["metadata"]["uid"] for body in bodies.values()}
            for view in list(store):
                if view.meta.uid not in present:
                    store.remove(view.meta.uid)


class Story:
    """Events besides the operator: containers proceed, and each twist happens once, when its condition holds."""

    def __init__(self, *twists: tuple[Callable[[World], Any], Callable[[World], None]]) -> None:
        self.twists = twists

    def play(self, number: int | None = None, fault: Fault | None = None) -> "Outcome":
        """Tell it, with a fault of one request."""
        return asyncio.run(self._play(number, fault))

    async def _play(self, number: int | None, fault: Fault | None) -> "Outcome":
        world, starts = World(), Counter[str]()
        server = Server(world, number, fault)
        operator = Operator(server)
        waiting, quiet = list(self.twists), 0
        for _ in range(ROUNDS):
            before, quiet = world.version, quiet + 1
            world.seconds += 1
            _clock.world = world
            while not await operator.look():  # the next process begins before anything else happens
                pass
            assert len(world.observed().running_jobs()) <= 1, "two Jobs of one object may run a stage"
            world.job_controller()
            if waiting and waiting[0][0](world):
                waiting.pop(0)[1](world)
                continue
            for pod in world.live_pods():
                earlier = current_stage(pod)
                world.notice(pod)
                world.succeed(pod)
                world.start(pod)
                present = current_stage(pod)
                if present not in (None, earlier):
                    starts[present or ""] += 1
            quiet = quiet if world.version == before else 0
            if quiet == REST and not waiting:
                break
        assert not waiting, f"the story stops before its end: {world.status.phase}"
        return Outcome(world, starts, server.requests)


class Outcome:
    """The end of a story."""

    def __init__(self, world: World, starts: Counter[str], requests: list[str]) -> None:
        self.requests = requests
        status = world.status
        conditions = sorted((each.type, each.status, each.reason) for each in status.conditions)
        self.facts = {
            "phase": status.phase,
            "conditions": conditions,
            "jobs created": sorted(world.created),
            "starts": dict(starts),
            "published": status.published is not None,
        }


class _Clock:
    """The operator's clock is the world's."""

    world: World

    def now(self, _: object) -> Any:
        return self.world.now

    def __getattr__(self, name: str) -> Any:
        import datetime

        return getattr(datetime.datetime, name)


_clock = _Clock()


def runs(stage: Stage) -> Callable[[World], bool]:
    """Return whether a stage runs."""
    return lambda world: any(current_stage(pod) is stage for pod in world.live_pods())


def in_phase(phase: str) -> Callable[[World], bool]:
    """Return whether the object is in this phase."""
    return lambda world: world.status.phase == phase


def fails_with(reason: Reason) -> Callable[[World], None]:
    """Let the running container fail."""
    return lambda world: world.fail(world.live_pods()[0], reason)


def all_train(world: World) -> bool:
    """Return whether both pods of a group train."""
    return [pod.get("joined") for pod in world.live_pods()] == [True, True]


STRICT = {"evaluation": {"gates": [{"metric": "exact_match", "min": "0.95"}]}}
LENIENT = {"evaluation": {"gates": [{"metric": "exact_match", "min": "0.5"}]}}
STORIES = {
    "all goes well": Story(),
    "another rate while it trains": Story(
        (runs(Stage.TRAIN), lambda world: world.edit(training={"learningRate": "2e-4"}))
    ),
    "other data while it evaluates": Story(
        (runs(Stage.EVALUATE), lambda world: world.edit(dataset={"uri": "s3://team-a-data/support/other.jsonl"}))
    ),
    "suspended while it trains, and resumed": Story(
        (runs(Stage.TRAIN), lambda world: world.edit(suspend=True)),
        (in_phase("Suspended"), lambda world: world.edit(suspend=False)),
    ),
    "its node is drained": Story((runs(Stage.TRAIN), lambda world: world.drain(world.live_pods()[0]))),
    "S3 is away for a while": Story((runs(Stage.PREPARE), fails_with(Reason.S3_UNREACHABLE))),
    "the data is invalid, and corrected": Story(
        (runs(Stage.PREPARE), fails_with(Reason.DATASET_MALFORMED)),
        (in_phase("Failed"), lambda world: world.edit(dataset={"uri": "s3://team-a-data/support/corrected.jsonl"})),
    ),
    "a gate holds it, and is lowered": Story(
        (runs(Stage.PREPARE), lambda world: world.edit(**STRICT)),
        (in_phase("Held"), lambda world: world.edit(**LENIENT)),
    ),
    "two nodes from now on, of which one is drained": Story(
        (runs(Stage.PREPARE), lambda world: world.edit(compute={"nodes": 2})),
        (all_train, lambda world: world.drain(world.live_pods()[1])),
    ),
    "published elsewhere afterwards": Story(
        (in_phase("Succeeded"), lambda world: world.edit(publish={"repository": "acme/other"}))
    ),
}


@pytest.fixture(autouse=True)
def use_the_clock_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reconciler use the world's clock."""
    monkeypatch.setattr(module, "datetime", _clock)


@pytest.mark.slow
@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("fault", Fault)
def test_a_failed_request_does_not_change_the_result_of_a_run(name: str, fault: Fault) -> None:
    """The same Jobs, starts of each stage, and conditions at the end."""
    story = STORIES[name]
    undisturbed = story.play()
    assert undisturbed.facts["phase"] == "Succeeded", undisturbed.facts
    for number, request in enumerate(undisturbed.requests):
        disturbed = story.play(number, fault)
        assert disturbed.facts == undisturbed.facts, f"{fault.value}: request {number}, {request}"


def test_the_stories_cover_every_kind_of_request() -> None:
    """Every request of the operator to the API server occurs."""
    said = {request.split()[0] for story in STORIES.values() for request in story.play().requests}
    assert {"create", "delete", "status", "record"} <= said
