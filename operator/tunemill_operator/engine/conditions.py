"""Builds the status: conditions, phase and printer columns."""

from collections.abc import Sequence
from datetime import datetime

from tunemill_api.evaluation import Metric
from tunemill_api.gates import missed, passed
from tunemill_api.stage_report import Stage
from tunemill_api.status import (
    Condition,
    ConditionType,
    FineTuneStatus,
    GateFacts,
    ModelKeys,
    PastRun,
    Phase,
    PreferenceFacts,
    RunStatus,
    StageState,
    StageStatus,
)

from tunemill_operator.engine.admission import queue_of
from tunemill_operator.engine.attempts import stopped
from tunemill_operator.engine.failures import shortened
from tunemill_operator.engine.objects import FineTune
from tunemill_operator.engine.reconcile_input import ReconcileInput
from tunemill_operator.engine.resolved_spec import ResolvedSpec
from tunemill_operator.engine.stages import Facts, Ledger, ledger_of_status, newest_report
from tunemill_operator.engine.status_summary import NOT_BETTER, StatusSummary
from tunemill_operator.engine.workspaces import workspace_for


def status_of(
    inputs: ReconcileInput,
    ledger: Ledger,
    summary: StatusSummary,
    gate_results: Sequence[GateFacts],
    run: RunStatus,
    history: Sequence[PastRun],
) -> FineTuneStatus:
    """Return the whole status. `inputs.now` is used only for fields that change with this status."""
    finetune = inputs.finetune
    # After a restart of the operator, the progress is read from the status.
    trainer = newest_report(ledger, inputs.live_progress, finetune.status)
    figures = ledger.facts.evaluation if ledger.done(Stage.EVALUATE) else None
    exact = next((metric for metric in figures.metrics if metric.name == Metric.EXACT_MATCH), None) if figures else None
    pushed = ledger.facts.published
    draft = pushed if pushed and pushed.draft else None
    made = pushed if pushed and not pushed.draft else None
    # The previous model stays published until there is a new one.
    published = made.model_copy(update={"serving": None}) if made else finetune.status.published
    return FineTuneStatus(
        observed_generation=finetune.generation,
        phase=summary.phase,
        conditions=_conditions(finetune, ledger, summary, gate_results, inputs.now, inputs.resolved),
        run=run,
        profile=inputs.resolved.profile,
        workspace=workspace_for(finetune, inputs.spec).uri,
        stages=[_entry(ledger.entries[stage], summary) for stage in Stage],
        queue=queue_of(inputs),
        trainer_status=trainer,
        progress=f"{trainer.progress_percentage}%" if trainer and trainer.progress_percentage is not None else "",
        eta=_duration(trainer.estimated_remaining_seconds) if trainer else "",
        prepared=ledger.facts.prepared,
        trained=ledger.facts.trained,
        evaluation=ledger.facts.evaluation,
        gates=list(gate_results),
        score=exact.tuned if exact else "",
        gain=f"{float(exact.tuned) - float(exact.base):+.4f}" if exact and exact.tuned and exact.base else "",
        published=published,
        serving=made.serving if made else finetune.status.serving,
        draft=draft,
        failure=summary.failure,
        trouble_since=summary.trouble_since,
        history=list(history),
        incumbent=_incumbent(finetune, ledger),
        rival=ledger.rival or finetune.status.rival,
        retrain=finetune.status.retrain,
    )


def _incumbent(finetune: FineTune, ledger: Ledger) -> ModelKeys | None:
    prepared, published = ledger.facts.prepared, ledger.facts.published
    if not ledger.done(Stage.PUBLISH) or prepared is None or published is None or published.draft:
        return finetune.status.incumbent
    return ModelKeys(prepare=prepared.key, train=ledger.wanted[Stage.TRAIN])


def _entry(entry: StageStatus, summary: StatusSummary) -> StageStatus:
    """Return the record of the stage, as Failed if it has run and the failure is its own."""
    failed = summary.phase is Phase.FAILED and summary.failure and summary.failure.stage == entry.name
    if failed and entry.attempts and entry.state is StageState.PENDING:
        return entry.model_copy(update={"state": StageState.FAILED})
    return entry


def status_of_invalid(finetune: FineTune, summary: StatusSummary, now: datetime, *, stops: bool) -> FineTuneStatus:
    """Return the status of an object with an invalid spec. Earlier results stay recorded."""
    conditions = _conditions(finetune, ledger_of_status(finetune.status), summary, (), now)
    return finetune.status.model_copy(
        update={
            "observed_generation": finetune.generation,
            "phase": summary.phase,
            "conditions": conditions,
            "failure": summary.failure,
            "trouble_since": None,
            "stages": [stopped(entry, now) if stops else entry for entry in finetune.status.stages],
        }
    )


def _conditions(
    finetune: FineTune,
    ledger: Ledger,
    summary: StatusSummary,
    gate_results: Sequence[GateFacts],
    now: datetime,
    resolved: ResolvedSpec | None = None,
) -> list[Condition]:
    stalled = summary.failure is not None
    ready = summary.phase is Phase.SUCCEEDED
    reconciling = not stalled and not ready
    before = {condition.type: condition for condition in finetune.status.conditions}
    # Ready is Unknown until the first Job is observed. Later, waiting for a Job does not change it back.
    known = ConditionType.READY in before and before[ConditionType.READY].status != "Unknown"
    unknown = summary.phase is Phase.PENDING and not stalled and not known
    reason, message = summary.reason, summary.message
    facts = [
        (ConditionType.READY, "True" if ready else "Unknown" if unknown else "False", reason, message),
        (
            ConditionType.RECONCILING,
            _truth(reconciling),
            reason if reconciling else "Settled",
            message if reconciling else "",
        ),
        (ConditionType.STALLED, _truth(stalled), reason if stalled else "NotStalled", message if stalled else ""),
        _milestone(ConditionType.PREPARED, Stage.PREPARE, ledger, summary),
        _milestone(ConditionType.TRAINED, Stage.TRAIN, ledger, summary),
        _milestone(ConditionType.EVALUATED, Stage.EVALUATE, ledger, summary),
        _gate(ledger, gate_results),
        _milestone(ConditionType.PUBLISHED, Stage.PUBLISH, ledger, summary),
        (
            ConditionType.SUSPENDED,
            _truth(summary.suspended),
            "Suspended" if summary.suspended else "NotSuspended",
            "spec.suspend is true" if summary.suspended else "",
        ),
        *_profile(resolved),
    ]
    return [_condition(*fact, finetune.generation, before.get(fact[0]), now) for fact in facts]


def _milestone(
    kind: ConditionType, stage: Stage, ledger: Ledger, summary: StatusSummary
) -> tuple[ConditionType, str, str, str]:
    if ledger.done(stage):
        done = _achievement(stage, ledger.facts)
        is_draft = stage is Stage.PUBLISH and ledger.facts.published and ledger.facts.published.draft
        return (kind, "False", "Draft", done) if is_draft else (kind, "True", kind.value, done)
    failure = summary.failure
    if stage is Stage.PUBLISH and summary.reason == NOT_BETTER:
        return kind, "False", NOT_BETTER, summary.message
    if failure and failure.stage == stage:
        return kind, "False", str(failure.reason), failure.message
    state = ledger.entries[stage].state if stage in ledger.wanted else StageState.PENDING
    return kind, "False", state.value, ""


def _achievement(stage: Stage, facts: Facts) -> str:
    """Return the result of the stage as text."""
    match stage:
        case Stage.PREPARE if facts.prepared:
            data = facts.prepared.dataset
            model = facts.prepared.base_model_revision[:12]
            added = f" and {data.added_rows} added ones" if data.added_rows else ""
            replay = f" and {data.replay_rows} for replay" if data.replay_rows else ""
            validation = f"{data.validation_rows} validation rows, " if data.validation_rows else ""
            adapter = f", adapter at {facts.prepared.adapter.revision[:12]}" if facts.prepared.adapter else ""
            return (
                f"{data.train_rows} training rows{added}{replay}, {validation}{data.evaluation_rows} held-out rows, "
                f"base model at {model}{adapter}"
            )
        case Stage.TRAIN if facts.trained:
            steps = f"{facts.trained.steps} steps on {facts.trained.device}, loss {facts.trained.loss}"
            return f"{steps}{_preferred(facts.trained.preference)}"
        case Stage.EVALUATE if facts.evaluation:
            metrics = [f"{m.name} {m.tuned} (base {m.base})" for m in facts.evaluation.metrics if m.tuned]
            suites = [f"suite {s.name} {s.tuned} (base {s.base})" for s in facts.evaluation.suites]
            return f"{facts.evaluation.rows} held-out rows: {', '.join([*metrics, *suites])}"
        case Stage.PUBLISH if facts.published:
            at = f"{facts.published.repository} at {facts.published.revision[:12]}"
            return f"draft on the branch {facts.published.branch} of {at}" if facts.published.draft else at
    return ""


def _preferred(facts: PreferenceFacts | None) -> str:
    """Return the result of preference training as text; empty without it."""
    if facts is None:
        return ""
    result = "kept" if facts.kept else "discarded" if facts.steps else facts.note
    return f", preference training on {facts.pairs} pairs {result}"


def _gate(ledger: Ledger, gate_results: Sequence[GateFacts]) -> tuple[ConditionType, str, str, str]:
    if not ledger.done(Stage.EVALUATE):
        return ConditionType.GATE_PASSED, "Unknown", "NotEvaluated", ""
    if passed(gate_results):
        return (
            ConditionType.GATE_PASSED,
            "True",
            "GatePassed",
            f"{len(gate_results)} of {len(gate_results)} gates passed",
        )
    return ConditionType.GATE_PASSED, "False", "GateNotPassed", f"not passed: {missed(gate_results)}"


def _profile(resolved: ResolvedSpec | None) -> list[tuple[ConditionType, str, str, str]]:
    """Return the condition of the profile. Nothing if no profile applies to this run or the next one."""
    if resolved is None or not (resolved.profile or resolved.pending_changes):
        return []
    if resolved.pending_changes:
        message = f"this run keeps the profile with which it started; the next run will have {resolved.pending_changes}"
        return [(ConditionType.PROFILE_CURRENT, "False", "ProfileChanged", message)]
    name, fields = (resolved.profile.name, resolved.profile.fields) if resolved.profile else ("", {})
    gives = ", ".join(f"spec.{path}" for path in sorted(fields)) or "no fields"
    return [(ConditionType.PROFILE_CURRENT, "True", "Current", f"FineTuneProfile {name} sets {gives}")]


def _condition(
    kind: ConditionType,
    status: str,
    reason: str,
    message: str,
    generation: int,
    before: Condition | None,
    now: datetime,
) -> Condition:
    flipped = before is None or before.status != status
    return Condition(
        type=kind.value,
        status=status,
        reason=reason,
        message=shortened(message),
        last_transition_time=now if before is None or flipped else before.last_transition_time,
        observed_generation=generation,
    )


def _truth(value: bool) -> str:
    return "True" if value else "False"


def _duration(seconds: int | None) -> str:
    if seconds is None:
        return ""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}h{minutes}m" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
