"""Reconcile: observe, plan, act, write one status, record events."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from typing import Protocol

from tunemill_api.status import FineTuneStatus

from tunemill_operator.engine.group_objects import companion_names
from tunemill_operator.engine.objects import FineTune, Job
from tunemill_operator.engine.observe import (
    KueueState,
    Observed,
    Progress,
    Refusal,
    jobs_without_admission,
    not_started,
)
from tunemill_operator.engine.plan import CreateJob, DeleteJob, Plan, plan, plan_after_error
from tunemill_operator.engine.volumes import Platform
from tunemill_operator.engine.workloads import Workload, workload_of
from tunemill_operator.kube.client import JOBS, NETWORK_POLICIES, SERVICES, Json, KubeClient
from tunemill_operator.kube.errors import ConflictError, ExistsError, NotFoundError, RefusedError, UnavailableError
from tunemill_operator.kube.undeclared import undeclared, without
from tunemill_operator.runtime.cache import Cache, Key
from tunemill_operator.runtime.queue import WorkQueue
from tunemill_operator.runtime.reconciliation import Reconciliation, current
from tunemill_operator.runtime.recorder import Recorder
from tunemill_operator.runtime.warnings import Warnings

log = logging.getLogger(__name__)

_COMPANIONS = {"Service": SERVICES, "NetworkPolicy": NETWORK_POLICIES}
"""Resources of the objects that the pods of a Job on several nodes need, by kind."""


class ProgressBoard(Protocol):
    """Keeps the latest progress report of every object, and limits how often progress is written."""

    def latest(self, key: Key) -> Progress | None:
        """Return the latest report about the object."""

    def turn(self, key: Key) -> AbstractContextManager[bool]:
        """Return whether the status may be written for progress alone, while the context lasts."""

    def wait_for_turn(self, key: Key) -> None:
        """Reconcile the object again when its status may be written for progress alone."""

    def forget(self, key: Key) -> None:
        """Remove the reports about a deleted object."""


class ReconcileObserver(Protocol):
    """Counts the effects of reconciles."""

    def job_created(self, finetune: FineTune, seconds: float) -> None:
        """A Job was created this many seconds after its object."""

    def status_written(self, before: FineTuneStatus, after: FineTuneStatus) -> None:
        """A status was written."""


@dataclass(frozen=True)
class Reconciler:
    """Reconciles FunctionCallFineTunes. The same state leads to the same actions."""

    client: KubeClient
    cache: Cache
    queue: WorkQueue
    board: ProgressBoard
    recorder: Recorder
    warnings: Warnings
    observer: ReconcileObserver
    platform: Callable[[], Platform]

    async def reconcile(self, key: Key) -> None:
        """Reconcile the object with this key.

        Raises:
            KubeError: a request failed. The next reconcile starts from the state at that time.
        """
        with self.board.turn(key) as progress_turn:
            await self._reconcile(key, progress_turn=progress_turn)

    async def _reconcile(self, key: Key, *, progress_turn: bool) -> None:
        finetune = self.cache.finetune(key)
        if finetune is None:
            self.board.forget(key)
            self.warnings.expect(key, {})
            return
        record = current.get() or Reconciliation(key)
        record.uid = finetune.meta.uid
        record.at(finetune.status)
        now = datetime.now(UTC).replace(microsecond=0)
        observed = await self._observe(key, finetune)
        decided = await self._decide(finetune, observed, now)
        if decided.needs_pods:
            self.cache.pods.complete(key, *await self.client.pods_of(*key))
            observed = replace(observed, pods=self.cache.pods.of(key), pods_listed=True)
            decided = await self._decide(finetune, observed, now)
        record.at(decided.status or finetune.status)
        refusal = await self._act(decided)
        waiting = not_started(self.cache.jobs.of(key), self.cache.pods.of(key))
        self.warnings.expect(key, {view.meta.uid: view.meta.created_at for view in waiting})
        if refusal:
            decided = await self._decide(finetune, replace(observed, refusal=refusal), now)
            record.at(decided.status or finetune.status)
        elif decided.actions and self.queue.urgent_pending(key) and self.cache.jobs.of(key):
            self.queue.add(key)  # what was done is message after new objects have their Jobs
            return
        # A new process does not know yet whether the recorded problem still exists.
        withheld = _would_remove_failure(finetune, decided) and self.warnings.awaits_first_answer(key)
        if decided.status is not None and decided.status != finetune.status and not withheld:
            if progress_turn or not _only_progress(finetune.status, decided.status):
                record.begins_run = await self._write(finetune, decided, decided.status, now)
            else:
                self.board.wait_for_turn(key)
        if decided.requeue_after is not None:
            self.queue.add_after(key, decided.requeue_after.total_seconds())

    async def _decide(self, finetune: FineTune, observed: Observed, now: datetime) -> Plan:
        """Return the plan. If `plan` raises an exception, write the error to the status and raise it again."""
        platform = self.platform()
        try:
            return plan(finetune, observed, platform, now)
        except Exception as error:
            failed = plan_after_error(finetune, f"{type(error).__name__}: {error}", now)
            if failed.status is not None and failed.status != finetune.status:
                await self._write(finetune, failed, failed.status, now)
            raise

    async def _observe(self, key: Key, finetune: FineTune) -> Observed:
        observed = Observed(
            self.cache.jobs.of(key),
            self.cache.pods.of(key),
            warning_events=self.warnings.about(key),
            progress=self.board.latest(key),
            profiles=tuple(self.cache.profiles),
        )
        if unknown := [job.meta.uid for job in jobs_without_admission(finetune, observed)]:
            return replace(observed, kueue=await self._queueing(key[0], unknown))
        return observed

    async def _queueing(self, namespace: str, jobs: Iterable[str]) -> KueueState | None:
        try:
            found = await self.client.workloads_of(namespace, jobs)
        except RefusedError as error:
            log.warning("Workloads of Kueue cannot be listed: %s", error)
            return None
        return KueueState(installed=found is not None, workloads=tuple(_workloads(found or ())))

    async def _act(self, decided: Plan) -> Refusal | None:
        """Carry out the actions. Return why the API server rejected a Job, or None."""
        for action in decided.actions:
            match action:
                case DeleteJob(job):
                    await self._delete(job)
                    log.info("deleted Job %s", job.meta.name)
                case CreateJob(body, companions):
                    for item in companions:
                        if refusal := await self._create_companion(item):
                            return refusal
                    if refusal := await self._create(body):
                        return refusal
        return None

    async def _delete(self, job: Job) -> None:
        meta = job.meta
        try:
            answer = await self.client.delete_job(meta.namespace, meta.name, meta.uid)
        except (NotFoundError, ConflictError):  # deleted or replaced, and the cache is behind
            self.cache.jobs.remove(meta.uid)
            return
        if answer.get("kind") == "Job":
            self.cache.jobs.put(answer)
        for kind, name in companion_names(meta.name).items() if job.nodes > 1 else ():
            with contextlib.suppress(NotFoundError):
                await self.client.delete(_COMPANIONS[kind], meta.namespace, name)

    async def _create_companion(self, body: Json) -> Refusal | None:
        """Create an object that the pods of a Job need. It may exist, from an operator that was then restarted."""
        try:
            await self.client.create(_COMPANIONS[body["kind"]], body["metadata"]["namespace"], body)
        except ExistsError:
            return None
        except (RefusedError, UnavailableError) as error:
            return _refusal(error)
        return None

    async def _create(self, body: Json) -> Refusal | None:
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        try:
            created = await self.client.create(JOBS, namespace, body)
        except ExistsError:
            return self._adopt(body, await self.client.get(JOBS, namespace, name))
        except (RefusedError, UnavailableError) as error:
            return _refusal(error)
        self.cache.jobs.put(created)
        log.info("created Job %s", name)
        finetune = self.cache.finetune((namespace, body["metadata"]["ownerReferences"][0]["name"]))
        if finetune is not None:
            waited = datetime.now(UTC) - finetune.meta.created_at
            self.observer.job_created(finetune, waited.total_seconds())
        return None

    def _adopt(self, wanted: Json, found: Json) -> Refusal | None:
        """Return a refusal if the existing Job does not belong to the object. Otherwise add it to the cache."""
        uid = wanted["metadata"]["ownerReferences"][0]["uid"]
        if any(owner["uid"] == uid for owner in found["metadata"].get("ownerReferences", [])):
            self.cache.jobs.put(found)
            return None
        return Refusal(409, "a Job of that name exists", taken=True)

    async def _write(self, finetune: FineTune, decided: Plan, status: FineTuneStatus, now: datetime) -> bool:
        """Write the status and record the events. Return whether it started a new run."""
        body = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        try:
            answer = await self._apply(finetune, body)
        except NotFoundError:  # the object was deleted meanwhile
            return False
        self.cache.finetunes.put(answer)
        self.observer.status_written(finetune.status, status)
        for event in decided.events:
            await self.recorder.record(finetune, event, now)
        before = finetune.status.run
        return status.run is not None and (before is None or before.id != status.run.id)

    async def _apply(self, finetune: FineTune, body: Json) -> Json:
        """Write the status, without fields that the cluster's CRD does not have."""
        meta = finetune.meta
        while True:
            try:
                return await self.client.apply_status(meta.namespace, meta.name, meta.resource_version, body)
            except UnavailableError as error:
                fields = undeclared(str(error))
                if not fields:
                    raise
                lacking = ", status.".join(fields)
                log.warning("the CRD is older than the operator and lacks status.%s: apply the operator's CRD", lacking)
                shortened = reduce(without, fields, body)
                if shortened == body:
                    raise
                body = shortened


def _refusal(error: RefusedError | UnavailableError) -> Refusal | None:
    """Return why the API server rejected an object. None if its namespace is being deleted.

    Raises:
        UnavailableError: the API server did not answer.
    """
    if isinstance(error, UnavailableError) and not error.webhook_fails:
        raise error
    if isinstance(error, RefusedError) and error.namespace_ends:
        return None
    return Refusal(error.code, str(error), taken=False)


def _workloads(bodies: Iterable[Json]) -> Iterator[Workload]:
    """Yield the Workloads that can be parsed. Users may be allowed to create some."""
    for body in bodies:
        try:
            yield workload_of(body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("a Workload of Kueue cannot be read and is ignored: %s: %s", type(error).__name__, error)


def _would_remove_failure(finetune: FineTune, decided: Plan) -> bool:
    """Return whether the status would lose a failure that blocks the run, without an action or a request."""
    before, after = finetune.status.failure, decided.status
    return (
        before is not None
        and after is not None
        and after.failure is None
        and not before.final
        and before.observed_generation == finetune.generation
        and finetune.run_started
        and not decided.actions
    )


def _only_progress(before: FineTuneStatus, after: FineTuneStatus) -> bool:
    """Return whether only the progress and the GPU time have changed."""
    return _without_progress(before) == _without_progress(after)


def _without_progress(status: FineTuneStatus) -> FineTuneStatus:
    run = status.run and status.run.model_copy(update={"gpu_seconds": 0})
    return status.model_copy(update={"run": run, "trainer_status": None, "progress": "", "eta": ""})
