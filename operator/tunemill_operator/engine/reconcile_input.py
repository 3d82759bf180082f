"""The input of the rules: the object, the records of its stages, its Jobs and pods, and the work to do next."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from functools import cached_property

from tunemill_api import gates, keys, keys_before_forms
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import FailureStatus, FineTuneStatus, GateFacts, Phase, RunStatus

from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.groups import group_pods
from tunemill_operator.engine.objects import FineTune, Job, Pod
from tunemill_operator.engine.observe import Observed, Progress, owned
from tunemill_operator.engine.pods import image_of
from tunemill_operator.engine.resolved_spec import ResolvedSpec
from tunemill_operator.engine.retries import requested_again
from tunemill_operator.engine.stages import Ledger, Work, newest_report, read_ledger
from tunemill_operator.engine.volumes import Platform

_ALWAYS_FINAL = frozenset(
    {
        Reason.DEADLINE_EXCEEDED,
        Reason.EVICTED,
        Reason.GATE_NOT_PASSED,
        Reason.GPU_HOURS_SPENT,
        Reason.NO_PROGRESS,
        Reason.NODE_REJECTED_POD,
        Reason.OUT_OF_MEMORY,
        Reason.POD_LOST,
        Reason.STAGE_OUTPUT_MISSING,
    }
)
"""Failures that end a run without an exit code of a container. Used for a status from before the field `final`."""


@dataclass(frozen=True)
class ReconcileInput:
    """Everything that is known about one object at the time of a reconcile."""

    finetune: FineTune
    resolved: ResolvedSpec
    observed: Observed
    platform: Platform
    now: datetime
    ledger: Ledger
    gate_results: Sequence[GateFacts]
    """Results of the gates. Empty until the evaluation is done."""
    due: Work | None
    """The first work that is not done. None if all stages are done."""

    @property
    def spec(self) -> FineTuneSpec:
        """The effective spec: the user's spec with the fields of the profile."""
        return self.resolved.spec

    @cached_property
    def job(self) -> Job | None:
        """The Job of the due work."""
        job = self.observed.job(self.due.job_name(self.finetune.meta.name)) if self.due else None
        return job if job and owned(job, self.finetune) else None

    @cached_property
    def pods(self) -> tuple[Pod, ...]:
        """Pods of the Job, oldest first. With several nodes, the pods of an attempt are one."""
        if self.job is None or self.due is None:
            return ()
        starts = [time for stage in self.due.stages if (time := self.ledger.entries[stage].started_at)]
        return group_pods(self.observed.pods_of(self.job), self.job.nodes, max(starts, default=None), self.now)

    @property
    def live(self) -> tuple[Job, ...]:
        """The Job, if it is not finished; else nothing."""
        return (self.job,) if self.job and not self.job.finished else ()

    @property
    def job_is_current(self) -> bool:
        """Whether the Job was created for the current generation and request. If so, its failure is not retried.

        A Job whose annotations were removed counts as current. Otherwise it would be replaced again and again.
        """
        finetune, job = self.finetune, self.job
        if job is None:
            return False
        return not job.generation or (job.generation, job.requested) == (finetune.generation, finetune.requested)

    @property
    def final_failure(self) -> FailureStatus | None:
        """The failure that has ended the run. None if there is none, or after an edit or a request."""
        failure, before = self.finetune.status.failure, self.finetune.status
        if (
            failure is None
            or not _ended_with(before, failure)
            or failure.observed_generation != self.finetune.generation
        ):
            return None
        if before.run is not None and before.run.request_token:
            return failure if self.finetune.run_started else None
        # An older operator recorded no token. The key of prepare depends on the spec and the request.
        keys_before = {entry.name: entry.key for entry in before.stages}
        same = keys_before.get(Stage.PREPARE) == self.ledger.wanted[Stage.PREPARE]
        return failure if same else None

    def trouble_since(self, cause: Cause) -> datetime:
        """Return when a transient problem started to block the run."""
        before = self.finetune.status
        if before.trouble_since:
            return before.trouble_since
        return self.stalled_since if before.failure and before.failure.reason == cause.reason else self.now

    @property
    def stalled_since(self) -> datetime:
        """When the object became Stalled. Now, if it is not Stalled."""
        stalled = next((each for each in self.finetune.status.conditions if each.type == "Stalled"), None)
        return stalled.last_transition_time if stalled and stalled.status == "True" else self.now

    @property
    def live_progress(self) -> Progress | None:
        """The newest progress report, if it is from a running pod of the Job."""
        progress = self.observed.progress
        alive = {pod.meta.uid for pod in self.pods if not pod.terminal}
        return progress if progress and progress.pod in alive else None

    @property
    def silence(self) -> timedelta | None:
        """Time since the running stage last reported progress. None if it is unknown.

        It is unknown for a stage that has never reported: its reports may be blocked, or it may be a custom image
        without progress. Time in which the endpoint was not available does not count.
        """
        heard = newest_report(self.ledger, self.live_progress, self.finetune.status)
        listening = self.platform.listening_since
        if heard is None or heard.last_updated_time is None or listening is None:
            return None
        return self.now - max(heard.last_updated_time, listening)

    @cached_property
    def run_inputs(self) -> str:
        """Hash of the fields of the spec on which the stages depend."""
        return keys.run_inputs(self.ledger.entries[Stage.PREPARE].inputs, self.spec)

    @cached_property
    def run_id(self) -> str:
        """ID of the run: the recorded one while its inputs are the same, else the first digits of the inputs."""
        before = self.finetune.status.run
        if before and before.inputs == self.run_inputs:
            return before.id
        # An operator that recorded no inputs computed the id in a different way.
        if before and not before.inputs and before.id == keys_before_forms.run_id(self.spec, self.finetune.requested):
            return before.id
        return self.run_inputs[:8]

    def run(self, ledger: Ledger, *, renewed: bool) -> RunStatus:
        """Return the run for the status. `renewed` says that a Job with the current image is created."""
        before = self.finetune.status.run
        same = before if before and before.id == self.run_id else None
        prepared = ledger.facts.prepared if ledger.done(Stage.PREPARE) else None
        return RunStatus(
            id=self.run_id,
            inputs=self.run_inputs,
            request_token=self.finetune.request_token,
            started_at=same.started_at if same else self.now,
            base_model_revision=prepared.base_model_revision if prepared else "",
            dataset_digest=prepared.dataset_digest if prepared else "",
            image=same.image if same and same.image and not renewed else image_of(self.spec, self.platform),
            preemptions=ledger.preemptions(),
            gpu_seconds=_shown_seconds(ledger, self.now),
        )

    def obsolete_jobs(self) -> tuple[Job, ...]:
        """Return the Jobs to delete: active ones that are not due, and finished ones whose key is obsolete.

        A finished Job of a later stage is kept until the key of that stage is known.
        """
        works = self.ledger.works()
        kept = {
            work.job_name(self.finetune.meta.name)
            for work in works
            if work == self.due or all(self.ledger.done(stage) for stage in work.stages)
        }
        known = {work.label for work in works}
        return tuple(
            job
            for job in self.observed.jobs
            if owned(job, self.finetune) and job.meta.name not in kept and (not job.finished or job.label in known)
        )

    def reports_complete(self, job: Job) -> bool:
        """Return whether all pods of a finished Job, and so their reports, have been observed.

        Jobs and pods are watched on separate streams, one of which may lag. A pod that has not been observed yet may
        still exist, and a stage must not be repeated because its report is late.
        """
        pods = self.observed.pods_of(job)
        if self.observed.pods_listed or not pods or not all(pod.terminal for pod in pods):
            return self.observed.pods_listed
        return not job.complete or any(pod.phase == "Succeeded" and not pod.index for pod in pods)

    def with_due_work(self) -> "DueInput | None":
        """Return the input of the rules for the next Job; None if all stages are done."""
        if self.due is None:
            return None
        return DueInput(**{item.name: getattr(self, item.name) for item in fields(self)}, work=self.due)


@dataclass(frozen=True)
class DueInput(ReconcileInput):
    """The input of the rules for a run with work to do."""

    work: Work
    """The first work that is not done."""

    @cached_property
    def job_name(self) -> str:
        """Name of the Job for the work, whether it exists or not."""
        return self.work.job_name(self.finetune.meta.name)


def reconcile_input_of(
    finetune: FineTune, resolved: ResolvedSpec, observed: Observed, platform: Platform, now: datetime
) -> ReconcileInput:
    """Return the input for an object with a valid spec."""
    spec = resolved.spec
    ledger = read_ledger(finetune, spec, observed, now)
    evaluation = ledger.facts.evaluation if ledger.done(Stage.EVALUATE) else None
    gate_results = gates.decide(spec.evaluation.gates, evaluation) if evaluation else []
    if not finetune.run_started:
        ledger = requested_again(ledger, {job.meta.name for job in observed.jobs})
    inputs = ReconcileInput(finetune, resolved, observed, platform, now, ledger, gate_results, ledger.due())
    before = finetune.status.failure
    if before and _ended_with(finetune.status, before) and inputs.final_failure is None:
        return replace(inputs, ledger=ledger.with_reset_counters())
    return inputs


def _ended_with(status: FineTuneStatus, failure: FailureStatus) -> bool:
    """Return whether the run has ended with the failure in its status."""
    if failure.final is not None:
        return failure.final
    # Failures of a container have an exit code. Failures that prevent a pod from starting have none.
    can_recover = failure.exit_code is None and failure.reason not in _ALWAYS_FINAL
    return status.phase in {Phase.FAILED, Phase.HELD} and not can_recover


def _shown_seconds(ledger: Ledger, now: datetime) -> int:
    """Return the GPU time for the status. It is rounded to minutes for a running stage to limit status writes."""
    seconds = int(ledger.gpu_seconds(now))
    return seconds - seconds % 60 if ledger.running_stage() else seconds
