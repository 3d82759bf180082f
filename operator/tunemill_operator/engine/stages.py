"""Which work is wanted, and what is recorded about the four stages.

A stage is done when it is recorded, in the status or in a container's termination message, as succeeded for the key
that the spec asks for now. What an edit changes follows from that: only stages of another key are not done any more.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from pydantic import BaseModel, ValidationError
from tunemill_api import keys
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import (
    EvaluationFacts,
    FineTuneStatus,
    PreparedFacts,
    PublishedFacts,
    StageState,
    StageStatus,
    TrainedFacts,
)

from tunemill_operator.engine.objects import Container, Ended, FineTune, Job
from tunemill_operator.engine.observe import Observed, owned


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


_FACT_OF = {
    Stage.PREPARE: "prepared",
    Stage.TRAIN: "trained",
    Stage.EVALUATE: "evaluation",
    Stage.PUBLISH: "published",
}


@dataclass(frozen=True)
class Ledger:
    """What is recorded about the stages, and which keys the spec asks for."""

    entries: Mapping[Stage, StageStatus] = field(default_factory=dict)
    """One entry a stage. A stage whose key is not known yet keeps the entry of the spec before the edit."""
    facts: Facts = Facts()
    """Of the entries that succeeded."""
    wanted: Mapping[Stage, str] = field(default_factory=dict)
    """The key of each stage; those after prepare are known once prepare has succeeded."""

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
        entries = [self.entries[stage] for stage in self.wanted]
        return sum(entry.earlier_seconds + _run_seconds(entry, entry.finished_at or now) for entry in entries)


def recall(finetune: FineTune, spec: FineTuneSpec, observed: Observed, now: datetime) -> Ledger:
    """Return what the status and the containers' reports say about the stages of this spec."""
    ledger = recorded(finetune.status)
    request = keys.prepare_request(spec, finetune.requested_at)
    prepare = _job(Work("prepare", (Stage.PREPARE,), request), finetune, observed)
    ledger = _followed(ledger, Stage.PREPARE, request, prepare, observed, now)
    if ledger.facts.prepared is None:
        entries = {stage: _at_rest(entry, now) for stage, entry in ledger.entries.items()}
        return replace(ledger, entries={**entries, Stage.PREPARE: ledger.entries[Stage.PREPARE]})
    train = keys.train_key(ledger.facts.prepared.key, spec)
    evaluate = keys.evaluate_key(train, spec)
    publish = keys.publish_key(evaluate, spec)
    job = _job(Work("train", (Stage.TRAIN, Stage.EVALUATE), evaluate), finetune, observed)
    ledger = _followed(ledger, Stage.TRAIN, train, job, observed, now)
    ledger = _followed(ledger, Stage.EVALUATE, evaluate, job, observed, now)
    job = _job(Work("publish", (Stage.PUBLISH,), publish), finetune, observed)
    return _followed(ledger, Stage.PUBLISH, publish, job, observed, now)


def recorded(status: FineTuneStatus) -> Ledger:
    """Return the ledger as the status has it, before it is known which keys are wanted."""
    entries = {entry.name: entry for entry in status.stages}
    published = status.published and status.published.model_copy(update={"serving": status.serving})
    return Ledger(
        entries={stage: entries.get(stage, StageStatus(name=stage, state=StageState.PENDING)) for stage in Stage},
        facts=Facts(status.prepared, status.trained, status.evaluation, published),
    )


def forgotten(ledger: Ledger) -> Ledger:
    """Return the ledger of a run whose outputs are gone from the workspace: it starts again with prepare.

    Attempts and running time stay, so that the retry limit and the deadline bound it.
    """
    return Ledger(
        entries={
            stage: _folded(entry).model_copy(update={"state": StageState.PENDING, "executed": False})
            for stage, entry in ledger.entries.items()
        },
        wanted={Stage.PREPARE: ledger.wanted[Stage.PREPARE]},
    )


def report_of(container: Container) -> StageReport | None:
    """Return the report that a container left as its termination message; None when it left none."""
    if container.ended is None or not container.ended.message.startswith("{"):
        return None
    try:
        report = StageReport.model_validate_json(container.ended.message)
    except ValidationError:  # what a stage prints may look like JSON too: no report then, and the message is shown
        return None
    return report if report.stage == container.name else None


def _job(work: Work, finetune: FineTune, observed: Observed) -> Job | None:
    job = observed.job(work.job_name(finetune.meta.name))
    return job if job and owned(job, finetune) and not job.meta.deleting else None


def _followed(ledger: Ledger, stage: Stage, key: str, job: Job | None, observed: Observed, now: datetime) -> Ledger:
    """Return the ledger with what the Job's pods say about the stage of this key."""
    entry, fact = ledger.entries[stage], getattr(ledger.facts, _FACT_OF[stage])
    if entry.key != key:
        entry, fact = StageStatus(name=stage, state=StageState.PENDING, key=key), None
    if entry.state is not StageState.SUCCEEDED or fact is None:
        entry, fact = _read(entry, stage, job, observed, now) if job else (_at_rest(entry, now), None)
    return Ledger(
        entries={**ledger.entries, stage: entry},
        facts=replace(ledger.facts, **{_FACT_OF[stage]: fact}),
        wanted={**ledger.wanted, stage: key},
    )


def _read(
    entry: StageStatus, stage: Stage, job: Job, observed: Observed, now: datetime
) -> tuple[StageStatus, BaseModel | None]:
    """Return the entry and the facts that the containers of the Job's pods tell."""
    entry = entry.model_copy(update={"job": job.meta.name})
    seen = False
    for pod in observed.pods_of(job):
        run = pod.container(stage)
        if run is None or run.started_at is None:
            continue
        seen = True
        entry = _with_run(entry, run.started_at, run.ended, alive=run.running and not pod.terminal, now=now)
        report = report_of(run)
        fact: BaseModel | None = getattr(report, _FACT_OF[stage]) if report else None
        if run.ended and run.ended.exit_code == 0 and report and fact:
            return entry.model_copy(update={"state": StageState.SUCCEEDED, "executed": report.executed}), fact
    if not seen:
        return _at_rest(entry, now), None
    return entry, None


def _with_run(
    entry: StageStatus, started_at: datetime, ended: Ended | None, *, alive: bool, now: datetime
) -> StageStatus:
    """Return the entry with one run of the stage's container, which may be the one that it knows already."""
    if entry.started_at is None or started_at > entry.started_at:
        # A start without a known end before it ends at the latest where the next one begins.
        entry = _folded(_at_rest(entry, started_at)).model_copy(
            update={"started_at": started_at, "attempts": entry.attempts + 1}
        )
    elif started_at < entry.started_at:
        return entry
    if alive:
        return entry.model_copy(update={"state": StageState.RUNNING, "finished_at": None})
    finished_at = (ended.finished_at if ended else None) or entry.finished_at or now
    return entry.model_copy(update={"state": StageState.PENDING, "finished_at": finished_at})


def _at_rest(entry: StageStatus, now: datetime) -> StageStatus:
    """Return the entry of a stage at which nothing works: it is not running, and its last run has an end."""
    update: dict[str, object] = {}
    if entry.state in {StageState.RUNNING, StageState.FAILED}:
        update["state"] = StageState.PENDING
    if entry.started_at and not entry.finished_at:
        update["finished_at"] = max(now, entry.started_at)
    return entry.model_copy(update=update)


def _folded(entry: StageStatus) -> StageStatus:
    """Return the entry with its last run counted among the earlier ones."""
    seconds = int(_run_seconds(entry, entry.finished_at or entry.started_at))
    return entry.model_copy(
        update={"earlier_seconds": entry.earlier_seconds + seconds, "started_at": None, "finished_at": None}
    )


def _run_seconds(entry: StageStatus, until: datetime | None) -> float:
    return max(0.0, (until - entry.started_at).total_seconds()) if entry.started_at and until else 0.0
