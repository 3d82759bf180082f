"""The pods of a Job with several nodes, as one pod per attempt.

The pods of such a Job are a group: they start together, end together and start again together. An attempt begins when
all of them run. The Job controller replaces each pod that has ended, so that pods of two attempts may exist at once.
The rest of the engine sees an attempt as one pod, with the cause for which the group ended.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tunemill_api.failures import FINAL_EXIT_CODES, ExitCode, Reason
from tunemill_api.stage_report import Stage

from tunemill_operator.engine.objects import FIRST, Container, Ended, Pod, reports_of


@dataclass(frozen=True)
class _Attempt:
    """Pods that ran together."""

    start: datetime
    """When the last of them started."""
    pods: Mapping[int, Pod]
    """The pods that still exist, by index."""


def attempts_of(pods: Sequence[Pod], nodes: int, since: datetime | None, now: datetime) -> tuple[Pod, ...]:
    """Return one pod for each attempt, oldest first.

    Args:
        pods: the pods of a Job.
        nodes: how many of them run together. With 1, each pod is an attempt.
        since: a time at which all pods of the recorded attempt ran. None if there is none. Pods that ended before it
            are left out.
        now: the time.
    """
    return tuple(pods) if nodes == 1 else tuple(_view(each, nodes, now) for each in _attempts(pods, nodes, since))


def group_pods(pods: Sequence[Pod], nodes: int, since: datetime | None, now: datetime) -> tuple[Pod, ...]:
    """Return the attempts, failed pods that took part in none, and the pods that start as one pod, which comes last.

    The arguments are those of `attempts_of`.
    """
    if nodes == 1:
        return tuple(pods)
    attempts = _attempts(pods, nodes, since)
    taken = {pod.meta.uid for attempt in attempts for pod in attempt.pods.values()}
    rest = [pod for pod in pods if pod.meta.uid not in taken and not _ended_before(pod, since)]
    views = [_view(attempt, nodes, now) for attempt in attempts]
    views += [pod for pod in rest if pod.stages_ended and _exit_code(pod) != ExitCode.PEER_LOST]
    starting = {pod.index: pod for pod in rest if not pod.stages_ended}
    views.sort(key=lambda pod: (pod.meta.created_at, pod.meta.name))
    return (*views, *([_starting(starting.values())] if starting else []))


def started(pod: Pod) -> datetime | None:
    """Return when the first stage of a pod started. None if none has."""
    return min((item.started_at for item in pod.stages if item.started_at), default=None)


def _attempts(pods: Sequence[Pod], nodes: int, since: datetime | None) -> list[_Attempt]:
    """Return the attempts, oldest first: the one that is recorded, and later ones.

    All pods of an attempt are new: one that has lost its group never joins another group.
    """
    found: list[_Attempt] = []
    if since and (members := _running_at(since, pods)):
        known = max((time for pod in members.values() if (time := started(pod))), default=since)
        found.append(_Attempt(known if len(members) == nodes else since, members))
    taken = {pod.meta.uid for attempt in found for pod in attempt.pods.values()}
    fresh = [pod for pod in pods if pod.meta.uid not in taken and not _ended_before(pod, since)]
    for time in sorted({time for pod in fresh if (time := started(pod)) and not (since and time <= since)}):
        members = _running_at(time, [pod for pod in fresh if pod.meta.uid not in taken])
        # Other pods may have been deleted. What the first one has done shows that they ran.
        if len(members) == nodes or (FIRST in members and _done(members[FIRST])):
            found.append(_Attempt(time, members))
            taken |= {pod.meta.uid for pod in members.values()}
    return found


def _running_at(time: datetime, pods: Sequence[Pod]) -> dict[int, Pod]:
    """Return the pods whose stages ran at a time, by index."""
    return {
        pod.index: pod
        for pod in pods
        if pod.index is not None and (start := started(pod)) and start <= time and not _ended_before(pod, time)
    }


def _ended_before(pod: Pod, time: datetime | None) -> bool:
    if time is None or not pod.stages_ended or (start := started(pod)) is None:
        return False
    return (pod.stages_ended_at or start) < time


def _view(attempt: _Attempt, nodes: int, now: datetime) -> Pod:
    """Return an attempt as one pod. It has ended when all its pods have."""
    members = attempt.pods
    pod = members.get(FIRST) or members[min(members)]
    if pod.index == FIRST and pod.stages_ended and pod.failed_stage is None and len(_done(pod)) == len(pod.stages):
        first, *rest = pod.stages
        return replace(pod, containers=(replace(first, started_at=attempt.start), *rest))
    running = replace(pod.stages[0], name=Stage.TRAIN.value, started_at=attempt.start, ended=None)
    if not all(item.stages_ended or item.lost(now) for item in members.values()):
        return replace(pod, phase="Running", reason="", message="", disrupted="", ends_by=None, containers=(running,))
    culprit = _culprit(members, nodes)
    end = max((time for item in members.values() if (time := item.stages_ended_at)), default=None)
    if culprit is None:  # a pod was deleted
        ended: Ended | None = Ended(int(ExitCode.INTERRUPTED), "", "", end)
        failed, culprit = None, pod
    else:
        failed = culprit.failed_stage
        ended = replace(failed.ended, finished_at=end) if failed and failed.ended else None
    is_over = all(item.terminal or item.lost(now) for item in members.values())
    return replace(
        culprit,
        phase="Failed" if is_over else "Running",
        containers=_stages(running, _done(pod) if pod.index == FIRST else (), failed, ended),
        ends_by=None,
    )


def _stages(
    running: Container, done: Sequence[Container], failed: Container | None, ended: Ended | None
) -> tuple[Container, ...]:
    """Return the stages of an attempt that has ended: those that the first pod has done, and the one that failed."""
    if done:
        train = replace(done[0], started_at=running.started_at)
        time = done[0].ended.finished_at if done[0].ended else running.started_at
        if ended and failed and failed.name != Stage.EVALUATE:
            # Another pod failed at the end of train, which the first one had done.
            reports = [item.model_copy(update={"stage": Stage.EVALUATE}) for item in reports_of(failed) if item.failure]
            ended = replace(ended, message=reports[-1].termination_message() if reports else ended.message)
        return train, replace(running, name=Stage.EVALUATE.value, started_at=time, ended=ended)
    if failed is None or failed.name == running.name:
        return (replace(running, ended=ended),)
    # The first pod, which could report that train is done, was deleted.
    train = replace(running, ended=Ended(0, "Completed", "", failed.started_at))
    return train, replace(failed, ended=ended)


def _starting(pods: Iterable[Pod]) -> Pod:
    """Return the pods that wait for each other as one pod that has not started."""
    pod = min(pods, key=lambda pod: (not pod.unschedulable, pod.index or FIRST))
    return replace(
        pod, phase="Pending", containers=tuple(replace(item, started_at=None, ended=None) for item in pod.containers)
    )


def _done(pod: Pod) -> tuple[Container, ...]:
    """Return the stages that a pod has done and reported, in order."""
    return tuple(
        item
        for item in pod.stages
        if item.ended
        and item.ended.exit_code == 0
        and any(report.stage == item.name and not report.failure for report in reports_of(item))
    )


def _culprit(pods: Mapping[int, Pod], nodes: int) -> Pod | None:
    """Return the pod for which a group ended: the one with the lowest index among those with the clearest cause.

    A pod that has lost another one is never the cause while there is another. None if a pod was deleted.
    """
    ranked = sorted((_clarity(pod), index) for index, pod in pods.items())
    clarity, index = ranked[0]
    return None if clarity >= _PEER_LOST and len(pods) < nodes else pods[index]


_PEER_LOST = 6
"""Rank of a pod that lost another one."""


def _clarity(pod: Pod) -> int:
    """Return how surely a pod is the cause for which its group ended. The lowest is the surest.

    A platform that stops a pod may break others before they notice, so it comes before failures that a retry can fix.
    """
    code = _exit_code(pod)
    ranks = (
        code in FINAL_EXIT_CODES,
        pod.reason == "Evicted",
        _needed_memory(pod),
        pod.disrupted,
        code not in (0, None, ExitCode.INTERRUPTED, ExitCode.PEER_LOST),
        code in (None, ExitCode.INTERRUPTED),
        code == ExitCode.PEER_LOST,
    )
    return next((rank for rank, applies in enumerate(ranks) if applies), len(ranks))


def _needed_memory(pod: Pod) -> bool:
    container = pod.failed_stage
    if container is None or container.ended is None:
        return False
    failures = [report.failure for report in reports_of(container) if report.failure]
    return container.ended.reason == "OOMKilled" or any(item.reason is Reason.OUT_OF_MEMORY for item in failures)


def _exit_code(pod: Pod) -> int | None:
    """Return the exit code of a pod's stages. None if it has none: the pod was rejected, or its node is lost."""
    container = pod.failed_stage
    if container is not None and container.ended is not None:
        return container.ended.exit_code
    return 0 if pod.phase == "Succeeded" or len(_done(pod)) == len(pod.stages) > 0 else None
