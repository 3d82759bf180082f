"""What the rules decide on: the object, what is recorded about its stages, and the Job that is due."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property

from tunemill_api import gates, keys, keys_before_forms
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import FailureStatus, FineTuneStatus, GateFacts, Phase, RunStatus

from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import FineTune, Job, Pod
from tunemill_operator.engine.observe import Observed, Progress, owned
from tunemill_operator.engine.pods import image_of
from tunemill_operator.engine.retries import requested_again
from tunemill_operator.engine.stages import Ledger, Work, newest_report, recall
from tunemill_operator.engine.terms import Terms
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
"""Failures that end a run without an exit code of a container. Operators before the field `final` wrote them."""


@dataclass(frozen=True)
class Case:
    """One object at one moment."""

    finetune: FineTune
    terms: Terms
    observed: Observed
    platform: Platform
    now: datetime
    ledger: Ledger
    decisions: Sequence[GateFacts]
    """How the gates were decided; empty before the evaluation is there."""
    due: Work | None
    """The first work that is not done."""

    @property
    def spec(self) -> FineTuneSpec:
        """What the run goes by: what the user wrote, completed by the profile."""
        return self.terms.spec

    @property
    def work(self) -> Work:
        """The due work; only for rules after the one that handles that there is none."""
        if self.due is None:
            raise AssertionError("every stage is done")
        return self.due

    @cached_property
    def name(self) -> str:
        """The due Job's name."""
        return self.work.job_name(self.finetune.meta.name)

    @cached_property
    def job(self) -> Job | None:
        """The due Job."""
        job = self.observed.job(self.name) if self.due else None
        return job if job and owned(job, self.finetune) else None

    @cached_property
    def pods(self) -> tuple[Pod, ...]:
        """The due Job's pods, oldest first."""
        return self.observed.pods_of(self.job) if self.job else ()

    @property
    def live(self) -> tuple[Job, ...]:
        """The due Job, while it may still run a pod."""
        return (self.job,) if self.job and not self.job.finished else ()

    @property
    def as_asked(self) -> bool:
        """Whether the due Job was made for the object as it is: if so, its failure is not tried again unasked.

        A Job from which something has removed the annotations counts as such, or it would be replaced for ever.
        """
        finetune, job = self.finetune, self.job
        if job is None:
            return False
        return not job.generation or (job.generation, job.asked) == (finetune.generation, finetune.asked)

    @property
    def final_failure(self) -> FailureStatus | None:
        """The failure that has ended the run; None when there is none, or when somebody has edited or asked since."""
        failure, before = self.finetune.status.failure, self.finetune.status
        if (
            failure is None
            or not _ended_with(before, failure)
            or failure.observed_generation != self.finetune.generation
        ):
            return None
        if before.run is not None and before.run.request_token:
            return failure if self.finetune.begun else None
        # An older operator recorded no token: the key of prepare holds what was asked for.
        keys_before = {entry.name: entry.key for entry in before.stages}
        same = keys_before.get(Stage.PREPARE) == self.ledger.wanted[Stage.PREPARE]
        return failure if same else None

    def trouble_since(self, cause: Cause) -> datetime:
        """Return since when trouble that may pass by itself keeps the run from continuing."""
        before = self.finetune.status
        if before.trouble_since:
            return before.trouble_since
        return self.stalled_since if before.failure and before.failure.reason == cause.reason else self.now

    @property
    def stalled_since(self) -> datetime:
        """Since when the object is Stalled; now when it is not."""
        stalled = next((each for each in self.finetune.status.conditions if each.type == "Stalled"), None)
        return stalled.last_transition_time if stalled and stalled.status == "True" else self.now

    @property
    def live_progress(self) -> Progress | None:
        """The newest progress report, if it is from a pod of the due Job that still works."""
        progress = self.observed.progress
        alive = {pod.meta.uid for pod in self.pods if not pod.terminal}
        return progress if progress and progress.pod in alive else None

    @property
    def silence(self) -> timedelta | None:
        """For how long the stage at work has reported nothing; None where nothing can be concluded from it.

        That is so for a stage that was never heard: its reports may not get through, or it is not of our making. Time
        in which nobody listened does not count.
        """
        heard = newest_report(self.ledger, self.live_progress, self.finetune.status)
        listening = self.platform.listening_since
        if heard is None or heard.last_updated_time is None or listening is None:
            return None
        return self.now - max(heard.last_updated_time, listening)

    @cached_property
    def run_inputs(self) -> str:
        """What the spec asks of all stages, as a hash."""
        return keys.run_inputs(self.ledger.entries[Stage.PREPARE].inputs, self.spec)

    @cached_property
    def run_id(self) -> str:
        """The run's id: the recorded one as long as the same is asked for, else the first digits of the inputs."""
        before = self.finetune.status.run
        if before and before.inputs == self.run_inputs:
            return before.id
        # An operator that recorded no inputs computed the id in another way.
        if before and not before.inputs and before.id == keys_before_forms.run_id(self.spec, self.finetune.asked):
            return before.id
        return self.run_inputs[:8]

    def run(self, ledger: Ledger, *, renewed: bool) -> RunStatus:
        """Return the run for the status; `renewed` says that a Job is created with the present image."""
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

    def surplus(self) -> tuple[Job, ...]:
        """Return the Jobs to delete: live ones that nobody waits for, ended ones whose key is no longer wanted.

        An ended Job of a later stage stays while it is not known which key that stage will have.
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

    def settled(self, job: Job) -> bool:
        """Tell whether all is seen that the pods of an ended Job have said.

        Jobs and pods are watched on streams of their own, of which one may lag or have died: what has not come is not
        yet what is not there, and a stage whose report was only late must not be done again.
        """
        pods = self.observed.pods_of(job)
        return self.observed.pods_listed or (bool(pods) and all(pod.terminal for pod in pods))


def case_of(finetune: FineTune, terms: Terms, observed: Observed, platform: Platform, now: datetime) -> Case:
    """Return the case of an object whose spec can be read."""
    spec = terms.spec
    ledger = recall(finetune, spec, observed, now)
    evaluation = ledger.facts.evaluation if ledger.done(Stage.EVALUATE) else None
    decisions = gates.decide(spec.evaluation.gates, evaluation) if evaluation else []
    if not finetune.begun:
        ledger = requested_again(ledger, {job.meta.name for job in observed.jobs})
    case = Case(finetune, terms, observed, platform, now, ledger, decisions, ledger.due())
    before = finetune.status.failure
    if before and _ended_with(finetune.status, before) and case.final_failure is None:
        return replace(case, ledger=ledger.pardoned())
    return case


def _ended_with(status: FineTuneStatus, failure: FailureStatus) -> bool:
    """Tell whether a run has ended with the failure in its status."""
    if failure.final is not None:
        return failure.final
    # What a container reported or ended with has an exit code; what keeps a pod from starting has none.
    by_itself = failure.exit_code is None and failure.reason not in _ALWAYS_FINAL
    return status.phase in {Phase.FAILED, Phase.HELD} and not by_itself


def _shown_seconds(ledger: Ledger, now: datetime) -> int:
    """Return the GPU time for the status: a run that goes on is no reason to write more than once a minute."""
    seconds = int(ledger.gpu_seconds(now))
    return seconds - seconds % 60 if ledger.at_work() else seconds
