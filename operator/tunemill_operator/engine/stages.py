"""The work of a run, and the records of its four stages.

A stage is done if the status, or the termination message of a container, records it as succeeded for the key that the
spec requires. After an edit, stages with another key are not done any more.

A stage that has started keeps its recorded key while its inputs are the same. Other stages get a key from the current
`keys.RECIPES`. So an upgrade neither repeats finished stages nor interrupts running ones (docs/adr/0011).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
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
    SuiteDataFacts,
    TrainedFacts,
    TrainerStatus,
)

from tunemill_operator.engine.attempts import FACT_FIELDS, GPU_STAGES, closed, ended_early, read, run_seconds, stopped
from tunemill_operator.engine.objects import FineTune, Job
from tunemill_operator.engine.observe import Observed, Progress, owned
from tunemill_operator.engine.retraining import rival_of


@dataclass(frozen=True)
class Work:
    """The work of one Job."""

    label: str
    """Value of the stage label: `prepare`, `train` or `publish`."""
    stages: tuple[Stage, ...]
    """Stages that the Job runs, in order."""
    key: str
    """Key of the output of the last stage."""

    def job_name(self, finetune: str) -> str:
        """Return the name of the Job. It contains a hash of the key, so that the same work never gets two Jobs."""
        return f"{finetune}-{self.label}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Facts:
    """Results of the stages."""

    prepared: PreparedFacts | None = None
    trained: TrainedFacts | None = None
    evaluation: EvaluationFacts | None = None
    published: PublishedFacts | None = None


@dataclass(frozen=True)
class Ledger:
    """The records of the stages, and the keys that the spec requires."""

    entries: Mapping[Stage, StageStatus] = field(default_factory=dict)
    """One record per stage. A stage whose key is not known yet keeps the record from before the edit."""
    facts: Facts = Facts()
    """Results of the stages that have succeeded."""
    wanted: Mapping[Stage, str] = field(default_factory=dict)
    """Required key of each stage. The keys of the stages after prepare are known once prepare has succeeded."""
    rival: Rival | None = None
    """The model to compare with. None until the key of the new model is known, or if nothing is compared."""

    def done(self, stage: Stage) -> bool:
        """Return whether the stage has succeeded for the required key."""
        return stage in self.wanted and self.entries[stage].state is StageState.SUCCEEDED

    def works(self) -> tuple[Work, ...]:
        """Return the work of each Job in order, as far as it is known."""
        works = [Work("prepare", (Stage.PREPARE,), self.wanted[Stage.PREPARE])]
        if Stage.TRAIN in self.wanted:
            works.append(Work("train", (Stage.TRAIN, Stage.EVALUATE), self.wanted[Stage.EVALUATE]))
            works.append(Work("publish", (Stage.PUBLISH,), self.wanted[Stage.PUBLISH]))
        return tuple(works)

    def due(self) -> Work | None:
        """Return the first work that is not done. None if all is done."""
        return next((work for work in self.works() if not all(self.done(stage) for stage in work.stages)), None)

    def first_open(self) -> Stage:
        """Return the first stage that is not done, or the last stage if all are done."""
        return next((stage for stage in Stage if not self.done(stage)), Stage.PUBLISH)

    def running_seconds(self, now: datetime) -> float:
        """Return the running time of all containers of the run in seconds."""
        return sum(entry.earlier_seconds + run_seconds(entry, entry.finished_at or now) for entry in self._of_run())

    def gpu_seconds(self, now: datetime) -> float:
        """Return the GPU time of the run in seconds: the running time times the GPUs of the pods."""
        return sum(
            entry.earlier_gpu_seconds + entry.gpus * run_seconds(entry, entry.finished_at or now)
            for entry in self._of_run()
        )

    def preemptions(self) -> int:
        """Return the number of preempted, drained or lost pods of the run."""
        return sum(entry.preemptions for entry in self._of_run())

    def memory_kills(self) -> int:
        """Return the number of train pods that exceeded their memory limit."""
        return sum(self.entries[stage].memory_kills for stage in GPU_STAGES if stage in self.wanted)

    def running_stage(self) -> StageStatus | None:
        """Return the record of the running stage, if there is one."""
        return next((entry for entry in self._of_run() if entry.state is StageState.RUNNING), None)

    def with_stall(self, entry: StageStatus) -> "Ledger":
        """Return the ledger with one more pod of the stage that was stopped because it made no progress."""
        stalled = ended_early(entry, CutShort.NO_PROGRESS, stalls=entry.stalls + 1)
        return replace(self, entries={**self.entries, Stage(entry.name): stalled})

    def with_reset_counters(self) -> "Ledger":
        """Return the ledger after an edit or a request: the counters for spec.retry.limit start at zero."""
        update = {"stalls": 0, "memory_kills": 0, "suspect_nodes": []}
        return replace(self, entries={s: entry.model_copy(update=update) for s, entry in self.entries.items()})

    def _of_run(self) -> list[StageStatus]:
        return [self.entries[stage] for stage in self.wanted]


def read_ledger(finetune: FineTune, spec: FineTuneSpec, observed: Observed, now: datetime) -> Ledger:
    """Return the records of the stages from the status and the reports of the containers."""
    ledger = ledger_of_status(finetune.status)
    stage_keys = _StageKeys(finetune, spec, observed, ledger.entries)
    prepare = stage_keys.prepare()
    job = _job(Work("prepare", (Stage.PREPARE,), prepare.key), finetune, observed)
    ledger = _followed(ledger, Stage.PREPARE, prepare, job, observed, 0, now)
    prepared = ledger.facts.prepared
    if prepared is None:
        entries = {stage: stopped(entry, now) for stage, entry in ledger.entries.items()}
        return replace(ledger, entries={**entries, Stage.PREPARE: ledger.entries[Stage.PREPARE]})
    train = stage_keys.train(prepared.key)
    rival = rival_of(finetune.status, spec, train.key)
    ledger = replace(ledger, rival=rival)
    evaluate = stage_keys.evaluate(train, rival, prepared.suites)
    job = _job(Work("train", (Stage.TRAIN, Stage.EVALUATE), evaluate.key), finetune, observed)
    ledger = _followed(ledger, Stage.TRAIN, train, job, observed, spec.compute.gpus, now)
    ledger = _followed(ledger, Stage.EVALUATE, evaluate, job, observed, spec.compute.gpus, now)
    figures = ledger.facts.evaluation
    publish = stage_keys.publish(evaluate, draft=figures is not None and gates.is_draft(spec.evaluation, figures))
    job = _job(Work("publish", (Stage.PUBLISH,), publish.key), finetune, observed)
    return _followed(ledger, Stage.PUBLISH, publish, job, observed, 0, now)


@dataclass(frozen=True)
class _StageKey:
    """Inputs and key of a stage."""

    inputs: str
    key: str


@dataclass(frozen=True)
class _StageKeys:
    """Selects the key of each stage: the recorded one, or one with the current recipe."""

    finetune: FineTune
    spec: FineTuneSpec
    observed: Observed
    entries: Mapping[Stage, StageStatus]
    """Records of the stages in the status."""

    def prepare(self) -> _StageKey:
        """Return the key of prepare, which has no recipe until the data has been read."""
        inputs = keys.prepare_inputs(self.spec, self.finetune.requested)
        return self._of(
            Stage.PREPARE, inputs, inputs, lambda: keys_before_forms.prepare_key(self.spec, self.finetune.requested)
        )

    def train(self, prepared: str) -> _StageKey:
        """Return the key of train. `prepared` is the key of prepare's output."""
        inputs = keys.train_inputs(keys.data_inputs(self.spec, self.finetune.requested), prepared, self.spec)
        present = keys.train_key(prepared, self.spec)
        return self._of(Stage.TRAIN, inputs, present, lambda: keys_before_forms.train_key(prepared, self.spec))

    def evaluate(self, train: _StageKey, rival: Rival | None, suites: Sequence[SuiteDataFacts]) -> _StageKey:
        """Return the key of evaluate. `suites` is what prepare found in their data."""
        inputs = keys.evaluate_inputs(train.inputs, self.spec, rival, suites)
        present = keys.evaluate_key(train.key, self.spec, rival, suites)
        if self.entries[Stage.TRAIN].key != train.key:
            return _StageKey(inputs, present)
        return self._of(
            Stage.EVALUATE, inputs, present, lambda: keys_before_forms.evaluate_key(train.key, self.spec, rival)
        )

    def publish(self, evaluate: _StageKey, *, draft: bool) -> _StageKey:
        """Return the key of publish, or of a draft."""
        inputs = keys.publish_inputs(evaluate.inputs, self.spec, draft=draft)
        present = keys.publish_key(evaluate.key, self.spec, draft=draft)
        if self.entries[Stage.EVALUATE].key != evaluate.key:
            return _StageKey(inputs, present)
        return self._of(
            Stage.PUBLISH,
            inputs,
            present,
            lambda: keys_before_forms.publish_key(evaluate.key, self.spec, draft=draft),
        )

    def _of(self, stage: Stage, inputs: str, present: str, older: Callable[[], str]) -> _StageKey:
        """Return the key of a stage. The recorded key is used if the stage has started with the same inputs.

        Args:
            stage: the stage.
            inputs: its current inputs.
            present: its key with the current recipe.
            older: returns the key as an operator computed it that recorded no inputs.
        """
        known = self.entries[stage]
        same = known.inputs == inputs if known.inputs else known.key == older()
        return _StageKey(inputs, known.key if same and self._begun(stage) else present)

    def _begun(self, stage: Stage) -> bool:
        """Return whether a Job was created for the recorded stage."""
        stages = GPU_STAGES if stage in GPU_STAGES else (stage,)  # one Job runs all of them
        if any(self.entries[each].job or self.entries[each].attempts for each in stages):
            return True
        # An operator that recorded no inputs recorded a Job only after it had observed it.
        work = Work(stages[0], stages, self.entries[stages[-1]].key)
        return _job(work, self.finetune, self.observed) is not None


def ledger_of_status(status: FineTuneStatus) -> Ledger:
    """Return the records in the status, without required keys."""
    entries = {entry.name: entry for entry in status.stages}
    published = status.published and status.published.model_copy(update={"serving": status.serving})
    return Ledger(
        entries={stage: entries.get(stage, StageStatus(name=stage, state=StageState.PENDING)) for stage in Stage},
        facts=Facts(status.prepared, status.trained, status.evaluation, status.draft or published),
    )


def without_outputs(ledger: Ledger) -> Ledger:
    """Return the ledger of a run whose outputs are missing from the workspace: it starts again with prepare.

    Attempts and running times are kept, so that spec.retry.limit and spec.maxRuntime still apply.
    """
    return Ledger(
        entries={
            stage: closed(entry).model_copy(update={"state": StageState.PENDING, "executed": None, "job": ""})
            for stage, entry in ledger.entries.items()
        },
        wanted={Stage.PREPARE: ledger.wanted[Stage.PREPARE]},
    )


def newest_report(ledger: Ledger, progress: Progress | None, status: FineTuneStatus) -> TrainerStatus | None:
    """Return the newest progress of the running stage. train and evaluate share a pod, but not their progress.

    Args:
        ledger: the records of the stages.
        progress: the reports of the pod; None after a restart of the operator.
        status: the status that was written last.
    """
    at_work = ledger.running_stage()
    if at_work is None or at_work.started_at is None:
        return None
    order = list(Stage)
    if progress and progress.status and progress.stage is not None:
        # A later stage than the recorded one: the report of the earlier stage has not arrived yet.
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
    ledger: Ledger, stage: Stage, stage_key: _StageKey, job: Job | None, observed: Observed, gpus: int, now: datetime
) -> Ledger:
    """Return the ledger updated with what the Job's pods report about the stage. Each pod has `gpus` GPUs."""
    entry, fact = ledger.entries[stage], getattr(ledger.facts, FACT_FIELDS[stage])
    if entry.key != stage_key.key:
        entry, fact = StageStatus(name=stage, state=StageState.PENDING, key=stage_key.key), None
    entry = entry.model_copy(update={"inputs": stage_key.inputs})
    if entry.state is not StageState.SUCCEEDED or fact is None:
        train = ledger.entries[Stage.TRAIN]
        entry, fact = read(entry, stage, job, observed, gpus, now, train) if job else (stopped(entry, now), None)
        if fact is None and entry.state is StageState.SUCCEEDED:  # another client has changed the status
            entry = entry.model_copy(update={"state": StageState.PENDING})
    return replace(
        ledger,
        entries={**ledger.entries, stage: entry},
        facts=replace(ledger.facts, **{FACT_FIELDS[stage]: fact}),
        wanted={**ledger.wanted, stage: stage_key.key},
    )
