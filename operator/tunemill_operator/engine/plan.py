"""Decides what to do for one FunctionCallFineTune. Each rule is one function.

The functions are pure: they return actions, a status and events, and the reconciler carries them out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tunemill_api import gates
from tunemill_api.evaluation import OnGateFailure
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import FineTuneStatus, Phase

from tunemill_operator.engine import admission, failures, group_rules, limits, sidecars
from tunemill_operator.engine.attempts import report_of
from tunemill_operator.engine.bad_nodes import avoided_nodes
from tunemill_operator.engine.conditions import status_of, status_of_invalid
from tunemill_operator.engine.events import Event, events_between
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.group_objects import companions_of
from tunemill_operator.engine.history import history_of
from tunemill_operator.engine.objects import NODE_LOST_AFTER, FineTune, Job
from tunemill_operator.engine.observe import (
    FIRST_CHECK_AFTER,
    MAX_RECHECK_INTERVAL,
    RECHECK_INTERVAL,
    Observed,
    owned,
    recheck_interval,
)
from tunemill_operator.engine.pods import SpecTooLargeError, job_of, pod_digest
from tunemill_operator.engine.profiles import RefusedError
from tunemill_operator.engine.reconcile_input import DueInput, ReconcileInput, reconcile_input_of
from tunemill_operator.engine.resolved_spec import resolve_spec
from tunemill_operator.engine.retraining import apply_schedule
from tunemill_operator.engine.retries import job_was_deleted, recreations, with_job, with_recreation
from tunemill_operator.engine.stages import without_outputs
from tunemill_operator.engine.status_summary import NOT_BETTER, StatusSummary, phase_before, running_summary
from tunemill_operator.engine.step import Step, blocked_by, stalled
from tunemill_operator.engine.volumes import Manifest, Platform


@dataclass(frozen=True)
class CreateJob:
    """Create this Job."""

    body: Manifest
    companions: tuple[Manifest, ...] = ()
    """Objects that its pods need, which are created before it if they do not exist."""


@dataclass(frozen=True)
class DeleteJob:
    """Delete this Job and, first, its pods. The pods get SIGTERM and save a checkpoint.

    The companions of the Job are deleted, too.
    """

    job: Job


@dataclass(frozen=True)
class Plan:
    """What to do, in this order: actions, status, events."""

    actions: tuple[CreateJob | DeleteJob, ...] = ()
    status: FineTuneStatus | None = None
    """None: the status is not written."""
    events: tuple[Event, ...] = ()
    requeue_after: timedelta | None = None
    """When to reconcile again without a change of the objects."""
    needs_pods: bool = False
    """Whether to list the object's pods and plan again before anything is done."""


def plan(finetune: FineTune, observed: Observed, platform: Platform, now: datetime) -> Plan:
    """Return the actions, the status and the events for the object.

    Args:
        finetune: the object with the status that was written last.
        observed: its Jobs and pods.
        platform: the operator's settings for stage pods.
        now: the time, in whole seconds.
    """
    if finetune.meta.deleting:  # the garbage collector deletes the Jobs and pods
        return Plan()
    spec, before = finetune.spec, finetune.status
    if spec is None:
        return _reject_spec(finetune, Reason.INVALID_SPEC, finetune.spec_error, now)
    schedule = apply_schedule(finetune, spec, observed, now)
    finetune = schedule.finetune
    try:
        resolved = resolve_spec(
            finetune, spec, observed.profiles, platform.hub_endpoints, sigstore=platform.sigstore is not None
        )
    except RefusedError as error:
        return _reject_profile(finetune, observed, error, now)
    inputs = reconcile_input_of(finetune, resolved, observed, platform, now)
    if schedule.error and not limits.reached(inputs):
        invalid = _reject_spec(finetune, Reason.INVALID_SPEC, schedule.error, now)
        return replace(invalid, requeue_after=limits.next_limit(inputs))
    return _plan_of(inputs, _next_step(inputs), before)


def plan_after_error(finetune: FineTune, error: str, now: datetime) -> Plan:
    """Return the plan for an object for which `plan` raised an exception: the status shows the error."""
    return _reject_spec(finetune, Reason.INTERNAL_ERROR, f"the operator cannot handle this object: {error}", now)


def _next_step(inputs: ReconcileInput) -> Step:
    """Return the result of the first rule that applies."""
    if step := _gate_not_passed(inputs) or _not_better(inputs):
        return step
    due = inputs.with_due_work()
    if due is None:
        return _all_stages_done(inputs)
    return next(step for rule in _RULES if (step := rule(due)))


def _plan_of(inputs: ReconcileInput, step: Step, before: FineTuneStatus) -> Plan:
    """Return the plan for a step; `before` is the status that was written last."""
    ledger = step.ledger or inputs.ledger
    if inputs.due and inputs.job in step.delete:
        ledger = with_job(ledger, inputs.due, "")
    gate_results = inputs.gate_results if ledger.done(Stage.EVALUATE) else []
    run = inputs.run(ledger, renewed=step.create is not None)
    history = history_of(inputs.finetune.status, run, step, ledger, inputs.spec.history_limit, inputs.now)
    status = status_of(inputs, ledger, step.summary, gate_results, run, history)
    sidecar_jobs = sidecars.lasting(inputs)
    expired = [job for job in inputs.observed.jobs if sidecar_jobs.get(job.meta.name, True) == timedelta(0)]
    deletions = {
        job.meta.uid: DeleteJob(job)
        for job in (*inputs.obsolete_jobs(), *step.delete, *expired)
        if not job.meta.deleting
    }
    return Plan(
        actions=(*deletions.values(), *([CreateJob(step.create, companions_of(step.create))] if step.create else [])),
        status=status,
        events=events_between(before, status),
        requeue_after=_requeue_after(inputs, step, [left for left in sidecar_jobs.values() if left]),
        needs_pods=step.needs_pods,
    )


def _gate_not_passed(inputs: ReconcileInput) -> Step | None:
    """A model that does not pass the gates is not published. It is held, pushed as a draft, or the run fails."""
    on_failure, pushed = inputs.spec.evaluation.on_gate_failure, inputs.ledger.facts.published
    if gates.passed(inputs.gate_results) or (on_failure is OnGateFailure.DRAFT and inputs.due):
        return None
    message = f"not passed: {gates.missed(inputs.gate_results)}"
    if pushed and pushed.draft:
        message += f". A draft is at {pushed.url}"
    cause = Cause("publish", Reason.GATE_NOT_PASSED, message)
    phase = Phase.FAILED if on_failure is OnGateFailure.FAIL else Phase.HELD
    return stalled(inputs, cause, phase=phase, delete=inputs.live)


def _not_better(inputs: ReconcileInput) -> Step | None:
    """A model that is not better than the published one does not replace it. The run has succeeded."""
    figures = inputs.ledger.facts.evaluation if inputs.ledger.done(Stage.EVALUATE) else None
    if figures is None or inputs.due is None or not gates.passed(inputs.gate_results):
        return None
    why = gates.is_not_better(inputs.spec, figures)
    if not why:
        return None
    return Step(StatusSummary(Phase.SUCCEEDED, NOT_BETTER, why), delete=inputs.live)


def _all_stages_done(inputs: ReconcileInput) -> Step:
    """The model is published: nothing is left to do."""
    facts = inputs.ledger.facts.published
    if facts is None:
        raise ValueError("publish has succeeded without a result")
    return Step(StatusSummary(Phase.SUCCEEDED, "Published", f"{facts.repository} at {facts.revision[:12]}"))


def _suspended(inputs: DueInput) -> Step | None:
    """spec.suspend stops the running Job and prevents new ones."""
    if not inputs.spec.suspend:
        return None
    live = [job.meta.name for job in inputs.observed.jobs if not job.finished]
    message = f"stopping {', '.join(live)} and saving a checkpoint" if live else "spec.suspend is true"
    summary = StatusSummary(Phase.SUSPENDED, "Suspended", message, suspended=not live)
    return Step(summary, delete=inputs.live, ledger=with_job(inputs.ledger, inputs.work, ""))


def _node_lost(inputs: DueInput) -> Step | None:
    """A pod on a node that does not respond may still be running, so nothing else is started."""
    lost = inputs.observed.lost_pods(inputs.now)
    return (
        stalled(inputs, failures.of_lost_node(inputs.work, lost[0]), requeue_after=RECHECK_INTERVAL) if lost else None
    )


def _output_lost(inputs: DueInput) -> Step | None:
    """If a stage cannot find the output of an earlier one, the run starts again with prepare."""
    job, attempts = inputs.job, inputs.ledger.entries[Stage.PREPARE].attempts
    if job is None or job.meta.deleting or not inputs.pods or attempts > inputs.spec.retry.limit:
        return None
    reports = [report_of(container) for container in inputs.pods[-1].stages]
    if not any(
        report and report.failure and report.failure.reason is Reason.STAGE_OUTPUT_MISSING for report in reports
    ):
        return None
    # Finished Jobs are deleted, too: the reports of their pods refer to the missing outputs. This Job is deleted last,
    # so that the failure is still known if the operator restarts in between.
    others = [item for item in inputs.observed.jobs if owned(item, inputs.finetune) and item != job]
    summary = StatusSummary(
        Phase.PENDING,
        Reason.STAGE_OUTPUT_MISSING,
        "outputs are missing from the workspace: the run starts again with prepare",
    )
    return Step(summary, delete=(*others, job), ledger=without_outputs(inputs.ledger))


def _wait_for_other_jobs(inputs: DueInput) -> Step | None:
    """No Job is created while another Job or pod of the object may still be running."""
    if inputs.job:
        return None
    orphan = inputs.observed.job(inputs.job_name)
    if orphan and not orphan.meta.owner:
        message = f"Job {orphan.meta.name} belongs to a deleted object"
        return stalled(
            inputs, Cause(inputs.work.stages[0], Reason.NAME_CONFLICT, message), requeue_after=RECHECK_INTERVAL
        )
    jobs = [job.meta.name for job in inputs.observed.running_jobs()]
    names = [
        *jobs,
        *([orphan.meta.name] if orphan and orphan.finished else []),
        *(pod.meta.name for pod in inputs.observed.orphaned_pods()),
    ]
    if not names:
        return None
    summary = StatusSummary(phase_before(inputs.work), "Stopping", f"waiting for {', '.join(names)} to stop")
    return Step(summary, requeue_after=RECHECK_INTERVAL)


def _create_job(inputs: DueInput) -> Step | None:
    """The due Job is created, unless the API server has just refused it."""
    if inputs.job:
        return None
    if inputs.observed.refusal:
        cause = failures.of_refusal(inputs.work, inputs.job_name, inputs.observed.refusal)
        return blocked_by(inputs, cause, phase_before(inputs.work), recheck_interval(inputs.now - inputs.stalled_since))
    ledger, message = inputs.ledger, f"Job {inputs.job_name} is being created"
    if inputs.finetune.run_started and job_was_deleted(ledger, inputs.work, inputs.job_name):
        times = recreations(ledger, inputs.work) + 1
        if times > inputs.spec.retry.limit:
            return stalled(inputs, failures.of_deleted_job(inputs.work, inputs.job_name, times))
        ledger = with_recreation(ledger, inputs.work)
        message = f"Job {inputs.job_name} was deleted by another client and is created again"
    try:
        body = job_of(
            inputs.finetune,
            inputs.spec,
            inputs.work,
            ledger,
            inputs.run_id,
            inputs.platform,
            avoid_nodes=avoided_nodes(ledger, inputs.work),
        )
    except SpecTooLargeError as error:
        return stalled(inputs, Cause(inputs.work.stages[0], Reason.INVALID_SPEC, str(error)))
    ledger = with_job(ledger, inputs.work, inputs.job_name)
    return Step(StatusSummary(phase_before(inputs.work), "Starting", message), create=body, ledger=ledger)


def _replace_outdated_job(inputs: DueInput) -> Step | None:
    """Wait for a Job that is being deleted. Delete an active Job whose pod is outdated."""
    job = inputs.job
    if job is None:
        return None
    if job.meta.deleting:
        ledger = with_job(inputs.ledger, inputs.work, "") if _is_outdated(inputs, job) else None
        summary = StatusSummary(phase_before(inputs.work), "Stopping", f"waiting for Job {job.meta.name} to stop")
        return Step(summary, ledger=ledger)
    if not job.finished and _is_outdated(inputs, job):
        message = f"Job {job.meta.name} is replaced: {_replacement_reason(inputs)}"
        return Step(StatusSummary(phase_before(inputs.work), "Replacing", message), delete=(job,))
    return None


def _is_outdated(inputs: DueInput, job: Job) -> bool:
    """Return whether an edit, or a pod that exceeded its memory limit, requires another pod than the Job has.

    An upgrade of the operator replaces no running Job: without an edit the digest is ignored, and digests of another
    version are ignored once a pod has started.
    """
    if not inputs.job_is_current and job.pod_digest != (wanted := pod_digest(inputs.spec, inputs.work)):
        pods = inputs.observed.pods_of(job)
        started = any(container.started_at for pod in pods for container in pod.stages)
        if not started or _version(job.pod_digest) == _version(wanted):
            return True
    if inputs.work.label != "train":
        return False
    if job.memory_kills is not None:
        return job.memory_kills != inputs.ledger.memory_kills()
    causes = [cause for pod in inputs.pods if (cause := failures.of_pod(pod))]
    return any(cause.reason is Reason.OUT_OF_MEMORY for cause in causes)


def _version(digest: str) -> str:
    """Return the version of a digest's canonical form; empty for the first form, which had none."""
    version, dash, _ = digest.partition("-")
    return version if dash else ""


def _replacement_reason(inputs: DueInput) -> str:
    causes = [cause for pod in inputs.pods if (cause := failures.of_pod(pod))]
    if causes and causes[-1].reason is Reason.OUT_OF_MEMORY:
        return f"{causes[-1].message}; the next pod computes half as much at once"
    return "spec.compute, spec.podTemplates, spec.queue or the name of a Secret changed"


def _handle_finished_job(inputs: DueInput) -> Step | None:
    """A finished Job without the result has failed, or is retried if the object has changed since it was created."""
    job = inputs.job
    if job is None or not job.finished:
        return None
    if not inputs.reports_complete(job):
        return Step(running_summary(inputs), needs_pods=True)
    if not inputs.job_is_current:
        return Step(
            StatusSummary(phase_before(inputs.work), "Retrying", f"Job {job.meta.name} is retried"), delete=(job,)
        )
    if job.failed:
        return stalled(inputs, failures.of_failed_job(inputs.work, job, inputs.pods))
    return _handle_missing_report(inputs, job)


def _handle_missing_report(inputs: DueInput, job: Job) -> Step:
    """A complete Job without a report is retried if its pods no longer exist; else its image is incompatible."""
    if inputs.pods:
        return stalled(inputs, failures.of_unreported(inputs.work, job))
    times = recreations(inputs.ledger, inputs.work) + 1
    if times > inputs.spec.retry.limit:
        return stalled(inputs, failures.of_lost_report(inputs.work, job, times))
    message = f"the pods of Job {job.meta.name} and their report no longer exist: the Job is retried"
    summary = StatusSummary(phase_before(inputs.work), "Retrying", message)
    return Step(summary, delete=(job,), ledger=with_recreation(inputs.ledger, inputs.work))


def _wait_for_queue(inputs: DueInput) -> Step | None:
    """A suspended Job waits for Kueue. If its queue does not exist, the object is Stalled."""
    job = inputs.job
    if job is None or not job.suspended:
        return None
    since = admission.waits_since(inputs, job)
    again = (
        FIRST_CHECK_AFTER if inputs.now - since <= admission.WORKLOAD_TIMEOUT else recheck_interval(inputs.now - since)
    )
    if cause := admission.without_queue(inputs, job):
        return stalled(inputs, cause, requeue_after=again)
    return Step(admission.waiting(inputs, job), requeue_after=again)


def _job_is_running(inputs: DueInput) -> Step:
    """An active Job is running, or something prevents its pod from starting."""
    if inputs.job and (cause := failures.blocking(inputs.spec, inputs.work, inputs.job, inputs.observed)):
        # A watch or an event triggers the next reconcile when the pod starts.
        return blocked_by(inputs, cause, running_summary(inputs).phase, MAX_RECHECK_INTERVAL)
    return Step(running_summary(inputs))


_RULES: tuple[Callable[[DueInput], Step | None], ...] = (
    # The run stops, or stays stopped.
    _suspended,
    limits.keep_final_failure,
    limits.max_runtime_exceeded,
    limits.gpu_hours_spent,
    limits.evicted,
    group_rules.peers_lost,
    limits.out_of_memory,
    limits.no_progress,
    # The pod of the Job has failed, and the Job controller does not handle it.
    limits.bad_node,
    _node_lost,
    _output_lost,
    sidecars.failed_stage,
    group_rules.half_ended,
    # There is no Job yet. The rules below this group have one.
    _wait_for_other_jobs,
    group_rules.name_with_dots,
    group_rules.waits_for_next_start,
    _create_job,
    _replace_outdated_job,
    _handle_finished_job,
    # The Job is active.
    limits.no_other_node,
    group_rules.could_not_start,
    _wait_for_queue,
    _job_is_running,
)
"""The rules for a run with work to do. The first one that returns a step decides; the last one always does."""


def _has_final_failure(finetune: FineTune) -> bool:
    """Return whether the run has a final failure, without an edit or a request since."""
    failure = finetune.status.failure
    same = failure is not None and failure.observed_generation == finetune.generation
    return failure is not None and failure.final is True and same and finetune.run_started


def _reject_profile(finetune: FineTune, observed: Observed, error: RefusedError, now: datetime) -> Plan:
    """Report a spec that the profile does not allow, and stop the Jobs of the previous spec.

    Otherwise users could keep a run without limits by editing its spec to one that is rejected.
    """
    refused = _reject_spec(finetune, error.reason, str(error), now, stops=not finetune.run_started)
    live = [job for job in observed.jobs if owned(job, finetune) and not job.finished and not job.meta.deleting]
    return refused if finetune.run_started else replace(refused, actions=tuple(DeleteJob(job) for job in live))


def _reject_spec(finetune: FineTune, reason: Reason, error: str, now: datetime, *, stops: bool = False) -> Plan:
    """Report an invalid spec. Running Jobs are left alone; `stops` says that the caller deletes them."""
    if _has_final_failure(finetune):
        return Plan()
    cause = Cause("prepare", reason, error)
    failure = cause.status(finetune.generation, final=False)
    summary = StatusSummary(Phase.FAILED, str(cause.reason), failure.message, failure=failure)
    status = status_of_invalid(finetune, summary, now, stops=stops)
    return Plan(status=status, events=events_between(finetune.status, status))


def _requeue_after(inputs: ReconcileInput, step: Step, ends: list[timedelta]) -> timedelta | None:
    """Return the earliest time at which a rule, a Job with a sidecar, a limit, the schedule or a node needs a look."""
    waits = [step.requeue_after, limits.next_limit(inputs), group_rules.time_to_start(inputs), *ends]
    if (retrain := inputs.finetune.status.retrain) and retrain.next_time and step.has_ended:
        waits.append(retrain.next_time - inputs.now)
    # No watch event reports a node that does not respond.
    busy = [pod for pod in inputs.observed.pods if pod.meta.serves_finetune and not pod.stages_ended]
    waits += [pod.ends_by + NODE_LOST_AFTER - inputs.now for pod in busy if pod.ends_by]
    return min((max(wait, timedelta(seconds=1)) for wait in waits if wait), default=None)
