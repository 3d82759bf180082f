"""Decides what is to be done about one FunctionCallFineTune: the rules of the product, each in one function."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tunemill_api import gates
from tunemill_api.evaluation import OnGateFailure
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import FineTuneStatus, Phase

from tunemill_operator.engine import admission, failures, limits, sidecars
from tunemill_operator.engine.attempts import report_of
from tunemill_operator.engine.bad_nodes import avoided_nodes
from tunemill_operator.engine.case import Case, case_of
from tunemill_operator.engine.conditions import status_of, status_of_invalid
from tunemill_operator.engine.events import Announcement, announcements
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.history import history_of
from tunemill_operator.engine.objects import GONE_AFTER, FineTune, Job
from tunemill_operator.engine.observe import LOOK_AGAIN, LOOK_SELDOM, SILENT_AFTER, Observed, owned, patience
from tunemill_operator.engine.pods import SpecTooLargeError, job_of, pod_digest
from tunemill_operator.engine.profiles import RefusedError
from tunemill_operator.engine.retraining import ScheduleError, scheduled
from tunemill_operator.engine.retries import lost_job, recreations, with_job, with_recreation
from tunemill_operator.engine.situation import NOT_BETTER, Situation, at_work, phase_before
from tunemill_operator.engine.stages import forgotten
from tunemill_operator.engine.step import Step, held_up, stalled
from tunemill_operator.engine.terms import terms_of
from tunemill_operator.engine.volumes import Manifest, Platform


@dataclass(frozen=True)
class CreateJob:
    """Create this Job."""

    body: Manifest


@dataclass(frozen=True)
class DeleteJob:
    """Delete this Job and, before it goes, its pods: they get SIGTERM and save what they have."""

    job: Job


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order: actions, the status, the events."""

    actions: tuple[CreateJob | DeleteJob, ...] = ()
    status: FineTuneStatus | None = None
    """None leaves the status alone."""
    announcements: tuple[Announcement, ...] = ()
    requeue_after: timedelta | None = None
    """When to look again although nothing is seen to change."""
    needs_pods: bool = False
    """Whether the object's pods are to be listed, and the plan to be made anew, before anything is done."""


def plan(finetune: FineTune, observed: Observed, platform: Platform, now: datetime) -> Plan:
    """Return what is to be done about the object.

    Args:
        finetune: the object with the status that was written last.
        observed: its Jobs and pods.
        platform: what the operator says about pods.
        now: the time, in whole seconds.
    """
    if finetune.meta.deleting:  # the garbage collector takes the Jobs and pods
        return Plan()
    spec, before = finetune.spec, finetune.status
    if spec is None:
        return _invalid(finetune, Reason.INVALID_SPEC, finetune.spec_error, now)
    try:
        finetune, unscheduled = scheduled(finetune, spec, observed, now), ""
    except ScheduleError as error:
        unscheduled = str(error)
    try:
        terms = terms_of(finetune, spec, observed.profiles, platform.hub_endpoints)
    except RefusedError as error:
        return _refused(finetune, observed, error, now)
    case = case_of(finetune, terms, observed, platform, now)
    if unscheduled and not limits.reached(case):
        invalid = _invalid(finetune, Reason.INVALID_SPEC, unscheduled, now)
        return replace(invalid, requeue_after=limits.next_limit(case))
    step = next(step for rule in _RULES if (step := rule(case)))
    ledger = step.ledger or case.ledger
    if case.job in step.delete:
        ledger = with_job(ledger, case.work, "")
    decisions = case.decisions if ledger.done(Stage.EVALUATE) else []
    run = case.run(ledger, renewed=step.create is not None)
    history = history_of(finetune.status, run, step, ledger, case.spec.history_limit, now)
    status = status_of(case, ledger, step.situation, decisions, run, history)
    lasting = sidecars.lasting(case)
    over = [job for job in observed.jobs if lasting.get(job.meta.name, True) == timedelta(0)]
    deletions = {
        job.meta.uid: DeleteJob(job) for job in (*case.surplus(), *step.delete, *over) if not job.meta.deleting
    }
    return Plan(
        actions=(*deletions.values(), *([CreateJob(step.create)] if step.create else [])),
        status=status,
        announcements=announcements(before, status),
        requeue_after=_requeue_after(case, step, [left for left in lasting.values() if left]),
        needs_pods=step.needs_pods,
    )


def undecidable(finetune: FineTune, error: str, now: datetime) -> Plan:
    """Return what is to be done about an object for which `plan` raised an exception: say so in its status."""
    return _invalid(finetune, Reason.INTERNAL_ERROR, f"the operator cannot handle this object: {error}", now)


def _gate_not_passed(case: Case) -> Step | None:
    """What misses a gate is not published; the result waits for another gate, as a draft if it is to be one."""
    on_failure, pushed = case.spec.evaluation.on_gate_failure, case.ledger.facts.published
    if gates.passed(case.decisions) or (on_failure is OnGateFailure.DRAFT and case.due):
        return None
    message = f"not passed: {gates.missed(case.decisions)}"
    if pushed and pushed.draft:
        message += f". A draft is at {pushed.url}"
    cause = Cause("publish", Reason.GATE_NOT_PASSED, message)
    phase = Phase.FAILED if on_failure is OnGateFailure.FAIL else Phase.HELD
    return stalled(case, cause, phase=phase, delete=case.live)


def _not_better(case: Case) -> Step | None:
    """What is no better than the published model does not take its place, and nobody has to act."""
    figures = case.ledger.facts.evaluation if case.ledger.done(Stage.EVALUATE) else None
    if figures is None or case.due is None or not gates.passed(case.decisions):
        return None
    why = gates.is_not_better(case.spec, figures)
    if not why:
        return None
    return Step(Situation(Phase.SUCCEEDED, NOT_BETTER, why), delete=case.live)


def _published(case: Case) -> Step | None:
    """When every stage is done, there is nothing left to do."""
    facts = case.ledger.facts.published
    if case.due or facts is None:
        return None
    return Step(Situation(Phase.SUCCEEDED, "Published", f"{facts.repository} at {facts.revision[:12]}"))


def _suspended(case: Case) -> Step | None:
    """spec.suspend stops what runs, and starts nothing."""
    if not case.spec.suspend:
        return None
    live = [job.meta.name for job in case.observed.jobs if not job.finished]
    message = f"stopping {', '.join(live)} and saving a checkpoint" if live else "spec.suspend is true"
    situation = Situation(Phase.SUSPENDED, "Suspended", message, suspended=not live)
    return Step(situation, delete=case.live, ledger=with_job(case.ledger, case.work, ""))


def _node_lost(case: Case) -> Step | None:
    """A pod whose node does not answer may still work, or may not: nothing begins beside it."""
    lost = case.observed.lost_pods(case.now)
    return stalled(case, failures.of_lost_node(case.work, lost[0]), requeue_after=LOOK_AGAIN) if lost else None


def _output_lost(case: Case) -> Step | None:
    """A stage that misses what an earlier one left in the workspace sends the run back to prepare."""
    job, attempts = case.job, case.ledger.entries[Stage.PREPARE].attempts
    if job is None or job.meta.deleting or not case.pods or attempts > case.spec.retry.limit:
        return None
    reports = [report_of(container) for container in case.pods[-1].stages]
    if not any(
        report and report.failure and report.failure.reason is Reason.STAGE_OUTPUT_MISSING for report in reports
    ):
        return None
    # The ended Jobs too: their pods would still report the outputs that are gone. The witness of the loss goes last.
    others = [item for item in case.observed.jobs if owned(item, case.finetune) and item != job]
    situation = Situation(
        Phase.PENDING,
        Reason.STAGE_OUTPUT_MISSING,
        "outputs are missing from the workspace: the run starts again with prepare",
    )
    return Step(situation, delete=(*others, job), ledger=forgotten(case.ledger))


def _in_the_way(case: Case) -> Step | None:
    """Nothing is begun while something else of this object may still be at work."""
    if case.job:
        return None
    orphan = case.observed.job(case.name)
    if orphan and not orphan.meta.owner:
        message = f"Job {orphan.meta.name} belongs to a deleted object"
        return stalled(case, Cause(case.work.stages[0], Reason.NAME_CONFLICT, message), requeue_after=LOOK_AGAIN)
    jobs = [job.meta.name for job in case.observed.busy_jobs()]
    names = [
        *jobs,
        *([orphan.meta.name] if orphan and orphan.finished else []),
        *(pod.meta.name for pod in case.observed.stray_pods()),
    ]
    if not names:
        return None
    situation = Situation(phase_before(case.work), "Stopping", f"waiting for {', '.join(names)} to stop")
    return Step(situation, requeue_after=LOOK_AGAIN)


def _absent(case: Case) -> Step | None:
    """The due Job is created, unless the API server has just refused it."""
    if case.job:
        return None
    if case.observed.refusal:
        cause = failures.of_refusal(case.work, case.name, case.observed.refusal)
        return held_up(case, cause, phase_before(case.work), patience(case.now - case.stalled_since))
    ledger, message = case.ledger, f"Job {case.name} is being created"
    if case.finetune.begun and lost_job(ledger, case.work, case.name):
        times = recreations(ledger, case.work) + 1
        if times > case.spec.retry.limit:
            return stalled(case, failures.of_deleted_job(case.work, case.name, times))
        ledger = with_recreation(ledger, case.work)
        message = f"Job {case.name} was deleted by another client and is created again"
    try:
        body = job_of(
            case.finetune,
            case.spec,
            case.work,
            ledger,
            case.run_id,
            case.platform,
            avoid_nodes=avoided_nodes(ledger, case.work),
        )
    except SpecTooLargeError as error:
        return stalled(case, Cause(case.work.stages[0], Reason.INVALID_SPEC, str(error)))
    ledger = with_job(ledger, case.work, case.name)
    return Step(Situation(phase_before(case.work), "Starting", message), create=body, ledger=ledger)


def _going(case: Case) -> Step | None:
    """A Job that is being deleted is waited for; a live one whose pod is to be another is deleted."""
    job = case.job
    if job is None:
        return None
    if job.meta.deleting:
        ledger = with_job(case.ledger, case.work, "") if _is_outdated(case, job) else None
        situation = Situation(phase_before(case.work), "Stopping", f"waiting for Job {job.meta.name} to stop")
        return Step(situation, ledger=ledger)
    if not job.finished and _is_outdated(case, job):
        message = f"Job {job.meta.name} is replaced: {_why_another(case)}"
        return Step(Situation(phase_before(case.work), "Replacing", message), delete=(job,))
    return None


def _is_outdated(case: Case, job: Job) -> bool:
    """Tell whether an edit, or a pod that needed too much memory, asks for another pod than the Job has.

    An upgrade of the operator replaces no Job that runs: without an edit the digest is not even looked at, and that of
    another version says nothing about a pod that has started.
    """
    if not case.as_asked and job.pod_digest != (wanted := pod_digest(case.spec, case.work)):
        started = any(container.started_at for pod in case.pods for container in pod.stages)
        if not started or _version(job.pod_digest) == _version(wanted):
            return True
    if case.work.label != "train":
        return False
    if job.memory_kills is not None:
        return job.memory_kills != case.ledger.memory_kills()
    causes = [cause for pod in case.pods if (cause := failures.of_pod(pod))]
    return any(cause.reason is Reason.OUT_OF_MEMORY for cause in causes)


def _version(digest: str) -> str:
    """Return the version of the form of what a digest is made from; empty for the first form, which had none."""
    version, dash, _ = digest.partition("-")
    return version if dash else ""


def _why_another(case: Case) -> str:
    causes = [cause for pod in case.pods if (cause := failures.of_pod(pod))]
    if causes and causes[-1].reason is Reason.OUT_OF_MEMORY:
        return f"{causes[-1].message}; the next pod computes half as much at once"
    return "spec.compute, spec.podTemplates, spec.queue or the name of a Secret changed"


def _ended(case: Case) -> Step | None:
    """A Job that has ended without the due result has failed, or is done again when the object changed since."""
    job = case.job
    if job is None or not job.finished:
        return None
    if not case.settled(job):
        return Step(at_work(case), needs_pods=True)
    if not case.as_asked:
        return Step(Situation(phase_before(case.work), "Retrying", f"Job {job.meta.name} is retried"), delete=(job,))
    if job.failed:
        return stalled(case, failures.of_failed_job(case.work, job, case.pods))
    return _unreported(case, job)


def _unreported(case: Case, job: Job) -> Step:
    """A Job that is complete while nobody knows what its stages did is done again, or is not one of ours."""
    if case.pods:
        return stalled(case, failures.of_unreported(case.work, job))
    times = recreations(case.ledger, case.work) + 1
    if times > case.spec.retry.limit:
        return stalled(case, failures.of_lost_report(case.work, job, times))
    message = f"the pods of Job {job.meta.name} and their report no longer exist: the Job is retried"
    situation = Situation(phase_before(case.work), "Retrying", message)
    return Step(situation, delete=(job,), ledger=with_recreation(case.ledger, case.work))


def _held_back(case: Case) -> Step | None:
    """A Job that Kueue holds back waits; where there is no queue to take it, somebody has to act."""
    job = case.job
    if job is None or not job.suspended:
        return None
    since = admission.waits_since(case, job)
    again = SILENT_AFTER if case.now - since <= admission.TAKEN_WITHIN else patience(case.now - since)
    if cause := admission.without_queue(case, job):
        return stalled(case, cause, requeue_after=again)
    return Step(admission.waiting(case, job), requeue_after=again)


def _at_work(case: Case) -> Step:
    """A live Job runs, or cannot begin."""
    if case.job and (cause := failures.blocking(case.spec, case.work, case.job, case.observed)):
        # Watches and events tell when it continues.
        return held_up(case, cause, at_work(case).phase, LOOK_SELDOM)
    return Step(at_work(case))


_RULES: tuple[Callable[[Case], Step | None], ...] = (
    _gate_not_passed,
    _not_better,
    _published,
    _suspended,
    limits.concluded,
    limits.overdue,
    limits.gpu_hours_spent,
    limits.evicted,
    limits.out_of_memory,
    limits.silent,
    limits.bad_node,
    _node_lost,
    _output_lost,
    sidecars.failed_stage,
    _in_the_way,
    _absent,
    _going,
    _ended,
    limits.no_other_node,
    _held_back,
    _at_work,
)
"""The first rule that has something to say decides."""


def _stays_ended(finetune: FineTune) -> bool:
    """Tell whether a run has ended with a failure which nobody has edited or asked away."""
    failure = finetune.status.failure
    same = failure is not None and failure.observed_generation == finetune.generation
    return failure is not None and failure.final is True and same and finetune.begun


def _refused(finetune: FineTune, observed: Observed, error: RefusedError, now: datetime) -> Plan:
    """A wish that a profile does not allow is told, and what was asked for before it is stopped.

    Nothing would bound that any more: a wish that is refused would be the way around every limit.
    """
    refused = _invalid(finetune, error.reason, str(error), now, stops=not finetune.begun)
    live = [job for job in observed.jobs if owned(job, finetune) and not job.finished and not job.meta.deleting]
    return refused if finetune.begun else replace(refused, actions=tuple(DeleteJob(job) for job in live))


def _invalid(finetune: FineTune, reason: Reason, error: str, now: datetime, *, stops: bool = False) -> Plan:
    """A spec that the operator cannot go by is told, and what runs is left alone unless it stops."""
    if _stays_ended(finetune):
        return Plan()
    cause = Cause("prepare", reason, error)
    failure = cause.status(finetune.generation, final=False)
    situation = Situation(Phase.FAILED, str(cause.reason), failure.message, failure=failure)
    status = status_of_invalid(finetune, situation, now, stops=stops)
    return Plan(status=status, announcements=announcements(finetune.status, status))


def _requeue_after(case: Case, step: Step, ends: list[timedelta]) -> timedelta | None:
    """Return when to look again: when the rule says so, when a Job may be ended, and when what runs reaches a limit."""
    waits = [step.requeue_after, limits.next_limit(case), *ends]
    if (retrain := case.finetune.status.retrain) and retrain.next_time and step.is_at_rest:
        waits.append(retrain.next_time - case.now)
    # No watch tells of a node that is silent.
    busy = [pod for pod in case.observed.pods if pod.meta.serves_finetune and not pod.stages_ended]
    waits += [pod.ends_by + GONE_AFTER - case.now for pod in busy if pod.ends_by]
    return min((max(wait, timedelta(seconds=1)) for wait in waits if wait), default=None)
