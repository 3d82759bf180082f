"""Which work is wanted, and what is recorded about the four stages.

A stage is done when it is recorded, in the status or in a container's termination message, as succeeded for the key
that the spec asks for now. What an edit changes follows from that: only stages of another key are not done any more.

The key of a stage that has begun stays what is recorded as long as its inputs are the same. Only other stages get a key
by the present `keys.RECIPES`. So an upgrade neither repeats what is done nor disturbs what runs (docs/adr/0011).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from tunemill_api import gates, keys, keys_before_forms
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import (
    CutShort,
    EvaluationFacts,
    FineTuneStatus,
    PreparedFacts,
    PublishedFacts,
    Rival,
    StageState,
    StageStatus,
    TrainedFacts,
    TrainerStatus,
)

from tunemill_operator.engine.attempts import FACT_OF, ON_GPU, at_rest, folded, read, run_seconds
from tunemill_operator.engine.objects import FineTune, Job
from tunemill_operator.engine.observe import Observed, Progress, owned
from tunemill_operator.engine.retraining import rival_of


@dataclass(frozen=True)
class Work:
    """What one Job does."""

    label: str
    """`prepare`, `train` or `publish`: the value of the stage label."""
    stages: tuple[Stage, ...]
    """The stages in the order of their containers."""
    key: str
    """The key that the Job works towards."""

    def job_name(self, finetune: str) -> str:
        """Return the Job's name. It follows from the key, so that the same work never gets two Jobs."""
        return f"{finetune}-{self.label}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Facts:
    """What the stages found and made."""

    prepared: PreparedFacts | None = None
    trained: TrainedFacts | None = None
    evaluation: EvaluationFacts | None = None
    published: PublishedFacts | None = None


@dataclass(frozen=True)
class Ledger:
    """What is recorded about the stages, and which keys the spec asks for."""

    entries: Mapping[Stage, StageStatus] = field(default_factory=dict)
    """One entry a stage. A stage whose key is not known yet keeps the entry of the spec before the edit."""
    facts: Facts = Facts()
    """Of the entries that succeeded."""
    wanted: Mapping[Stage, str] = field(default_factory=dict)
    """The key of each stage; those after prepare are known once prepare has succeeded."""
    rival: Rival | None = None
    """What the new model is compared with; None before its key is known, and where nothing was ever compared."""

    def done(self, stage: Stage) -> bool:
        """Tell whether the stage has succeeded for the key that the spec asks for."""
        return stage in self.wanted and self.entries[stage].state is StageState.SUCCEEDED

    def works(self) -> tuple[Work, ...]:
        """Return what the Jobs have to do, as far as it is known, in order."""
        works = [Work("prepare", (Stage.PREPARE,), self.wanted[Stage.PREPARE])]
        if Stage.TRAIN in self.wanted:
            works.append(Work("train", (Stage.TRAIN, Stage.EVALUATE), self.wanted[Stage.EVALUATE]))
            works.append(Work("publish", (Stage.PUBLISH,), self.wanted[Stage.PUBLISH]))
        return tuple(works)

    def due(self) -> Work | None:
        """Return the first work that is not done; None when all is."""
        return next((work for work in self.works() if not all(self.done(stage) for stage in work.stages)), None)

    def first_open(self) -> Stage:
        """Return the stage that is at work or comes next; the last one when all are done."""
        return next((stage for stage in Stage if not self.done(stage)), Stage.PUBLISH)

    def running_seconds(self, now: datetime) -> float:
        """Return how long the containers of the run's stages have worked together."""
        return sum(entry.earlier_seconds + run_seconds(entry, entry.finished_at or now) for entry in self._of_run())

    def gpu_seconds(self, now: datetime) -> float:
        """Return the GPU time of the run: the running time of the containers times the GPUs of their pods."""
        return sum(
            entry.earlier_gpu_seconds + entry.gpus * run_seconds(entry, entry.finished_at or now)
            for entry in self._of_run()
        )

    def preemptions(self) -> int:
        """Return how many pods of the run were stopped from outside."""
        return sum(entry.preemptions for entry in self._of_run())

    def memory_kills(self) -> int:
        """Return how many pods that train and evaluate needed more memory than they may have."""
        return sum(self.entries[stage].memory_kills for stage in ON_GPU if stage in self.wanted)

    def at_work(self) -> StageStatus | None:
        """Return the entry of the stage whose container runs."""
        return next((entry for entry in self._of_run() if entry.state is StageState.RUNNING), None)

    def with_stall(self, entry: StageStatus) -> "Ledger":
        """Return the ledger with one more pod of the stage that is stopped because it makes no progress."""
        stalled = entry.model_copy(update={"stalls": entry.stalls + 1, "cut_short": CutShort.NO_PROGRESS})
        return replace(self, entries={**self.entries, Stage(entry.name): stalled})

    def pardoned(self) -> "Ledger":
        """Return the ledger after somebody asked to try again: what counts against the retry limit begins anew."""
        update = {"stalls": 0, "memory_kills": 0, "suspect_nodes": []}
        return replace(self, entries={s: entry.model_copy(update=update) for s, entry in self.entries.items()})

    def _of_run(self) -> list[StageStatus]:
        return [self.entries[stage] for stage in self.wanted]


def recall(finetune: FineTune, spec: FineTuneSpec, observed: Observed, now: datetime) -> Ledger:
    """Return what the status and the containers' reports say about the stages of this spec."""
    ledger = recorded(finetune.status)
    identities = _Identities(finetune, spec, observed, ledger.entries)
    prepare = identities.prepare()
    job = _job(Work("prepare", (Stage.PREPARE,), prepare.key), finetune, observed)
    ledger = _followed(ledger, Stage.PREPARE, prepare, job, observed, 0, now)
    if ledger.facts.prepared is None:
        entries = {stage: at_rest(entry, now) for stage, entry in ledger.entries.items()}
        return replace(ledger, entries={**entries, Stage.PREPARE: ledger.entries[Stage.PREPARE]})
    train = identities.train(prepare, ledger.facts.prepared.key)
    rival = rival_of(finetune.status, spec, train.key)
    ledger = replace(ledger, rival=rival)
    evaluate = identities.evaluate(train, rival)
    job = _job(Work("train", (Stage.TRAIN, Stage.EVALUATE), evaluate.key), finetune, observed)
    ledger = _followed(ledger, Stage.TRAIN, train, job, observed, spec.compute.gpus, now)
    ledger = _followed(ledger, Stage.EVALUATE, evaluate, job, observed, spec.compute.gpus, now)
    figures = ledger.facts.evaluation
    publish = identities.publish(evaluate, draft=figures is not None and gates.is_draft(spec.evaluation, figures))
    job = _job(Work("publish", (Stage.PUBLISH,), publish.key), finetune, observed)
    return _followed(ledger, Stage.PUBLISH, publish, job, observed, 0, now)


@dataclass(frozen=True)
class _Identity:
    """What a stage is asked for, and its key."""

    inputs: str
    key: str


@dataclass(frozen=True)
class _Identities:
    """Says which key each stage has: the recorded one, or one by the present recipes."""

    finetune: FineTune
    spec: FineTuneSpec
    observed: Observed
    entries: Mapping[Stage, StageStatus]
    """What the status has."""

    def prepare(self) -> _Identity:
        """Return the identity of prepare, which has no recipe before the data is looked at."""
        inputs = keys.prepare_inputs(self.spec, self.finetune.asked)
        return self._of(
            Stage.PREPARE, inputs, inputs, lambda: keys_before_forms.prepare_key(self.spec, self.finetune.asked)
        )

    def train(self, prepare: _Identity, prepared: str) -> _Identity:
        """Return the identity of train; `prepared` is the key of what prepare made."""
        inputs = keys.train_inputs(prepare.inputs, prepared, self.spec)
        present = keys.train_key(prepared, self.spec)
        return self._of(Stage.TRAIN, inputs, present, lambda: keys_before_forms.train_key(prepared, self.spec))

    def evaluate(self, train: _Identity, rival: Rival | None) -> _Identity:
        """Return the identity of evaluate."""
        inputs = keys.evaluate_inputs(train.inputs, self.spec, rival)
        present = keys.evaluate_key(train.key, self.spec, rival)
        if self.entries[Stage.TRAIN].key != train.key:
            return _Identity(inputs, present)
        return self._of(
            Stage.EVALUATE, inputs, present, lambda: keys_before_forms.evaluate_key(train.key, self.spec, rival)
        )

    def publish(self, evaluate: _Identity, *, draft: bool) -> _Identity:
        """Return the identity of publish, or of the draft in its place."""
        inputs = keys.publish_inputs(evaluate.inputs, self.spec, draft=draft)
        present = keys.publish_key(evaluate.key, self.spec, draft=draft)
        if self.entries[Stage.EVALUATE].key != evaluate.key:
            return _Identity(inputs, present)
        return self._of(
            Stage.PUBLISH,
            inputs,
            present,
            lambda: keys_before_forms.publish_key(evaluate.key, self.spec, draft=draft),
        )

    def _of(self, stage: Stage, inputs: str, present: str, older: Callable[[], str]) -> _Identity:
        """Return the identity of a stage. Its recorded key holds if it has begun and is asked for the same.

        Args:
            stage: which one.
            inputs: what the spec asks for now.
            present: the key by the present recipes.
            older: returns the key as an operator that recorded no inputs computed it.
        """
        known = self.entries[stage]
        same = known.inputs == inputs if known.inputs else known.key == older()
        return _Identity(inputs, known.key if same and self._begun(stage) else present)

    def _begun(self, stage: Stage) -> bool:
        """Tell whether a Job was created for what is recorded about a stage."""
        stages = ON_GPU if stage in ON_GPU else (stage,)  # one Job is for all of them
        if any(self.entries[each].job or self.entries[each].attempts for each in stages):
            return True
        # An operator that recorded no inputs named a Job only once it had seen it.
        work = Work(stages[0], stages, self.entries[stages[-1]].key)
        return _job(work, self.finetune, self.observed) is not None


def recorded(status: FineTuneStatus) -> Ledger:
    """Return the ledger as the status has it, before it is known which keys are wanted."""
    entries = {entry.name: entry for entry in status.stages}
    published = status.published and status.published.model_copy(update={"serving": status.serving})
    return Ledger(
        entries={stage: entries.get(stage, StageStatus(name=stage, state=StageState.PENDING)) for stage in Stage},
        facts=Facts(status.prepared, status.trained, status.evaluation, status.draft or published),
    )


def forgotten(ledger: Ledger) -> Ledger:
    """Return the ledger of a run whose outputs are gone from the workspace: it starts again with prepare.

    Attempts and running time stay, so that the retry limit and the deadline bound it.
    """
    return Ledger(
        entries={
            stage: folded(entry).model_copy(update={"state": StageState.PENDING, "executed": None, "job": ""})
            for stage, entry in ledger.entries.items()
        },
        wanted={Stage.PREPARE: ledger.wanted[Stage.PREPARE]},
    )


def newest_report(ledger: Ledger, progress: Progress | None, status: FineTuneStatus) -> TrainerStatus | None:
    """Return the newest figures of the stage at work: train and evaluate share a pod, but not their progress.

    Args:
        ledger: says which stage is at work.
        progress: what its pod has reported; None after a restart of the operator.
        status: holds the figures that were written last.
    """
    at_work = ledger.at_work()
    if at_work is None or at_work.started_at is None:
        return None
    order = list(Stage)
    if progress and progress.status and progress.stage is not None:
        # A later stage than the one at work: the end of the earlier one was not heard yet.
        live = progress.status if order.index(progress.stage) >= order.index(Stage(at_work.name)) else None
    else:
        live = _since(at_work.started_at, progress.status if progress else None)
    before = next((entry.name for entry in status.stages if entry.state is StageState.RUNNING), "")
    return live or (_since(at_work.started_at, status.trainer_status) if before == at_work.name else None)


def _since(time: datetime, report: TrainerStatus | None) -> TrainerStatus | None:
    return report if report and report.last_updated_time and report.last_updated_time >= time else None


def _job(work: Work, finetune: FineTune, observed: Observed) -> Job | None:
    job = observed.job(work.job_name(finetune.meta.name))
    return job if job and owned(job, finetune) and not job.meta.deleting else None


def _followed(
    ledger: Ledger, stage: Stage, identity: _Identity, job: Job | None, observed: Observed, gpus: int, now: datetime
) -> Ledger:
    """Return the ledger with what the Job's pods, each with so many GPUs, say about the stage of this identity."""
    entry, fact = ledger.entries[stage], getattr(ledger.facts, FACT_OF[stage])
    if entry.key != identity.key:
        entry, fact = StageStatus(name=stage, state=StageState.PENDING, key=identity.key), None
    entry = entry.model_copy(update={"inputs": identity.inputs})
    if entry.state is not StageState.SUCCEEDED or fact is None:
        train = ledger.entries[Stage.TRAIN]
        entry, fact = read(entry, stage, job, observed, gpus, now, train) if job else (at_rest(entry, now), None)
        if fact is None and entry.state is StageState.SUCCEEDED:  # another program has written into the status
            entry = entry.model_copy(update={"state": StageState.PENDING})
    return replace(
        ledger,
        entries={**ledger.entries, stage: entry},
        facts=replace(ledger.facts, **{FACT_OF[stage]: fact}),
        wanted={**ledger.wanted, stage: identity.key},
    )
