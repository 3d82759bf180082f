"""Makes the status from what was concluded: conditions, phase, printer columns."""

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
    RunStatus,
    StageState,
    StageStatus,
)

from tunemill_operator.engine.admission import queue_of
from tunemill_operator.engine.attempts import at_rest
from tunemill_operator.engine.case import Case
from tunemill_operator.engine.failures import shortened
from tunemill_operator.engine.objects import FineTune
from tunemill_operator.engine.situation import NOT_BETTER, Situation
from tunemill_operator.engine.stages import Facts, Ledger, newest_report, recorded
from tunemill_operator.engine.terms import Terms
from tunemill_operator.engine.workspaces import place_of


def status_of(
    case: Case,
    ledger: Ledger,
    situation: Situation,
    decisions: Sequence[GateFacts],
    run: RunStatus,
    history: Sequence[PastRun],
) -> FineTuneStatus:
    """Return the whole status. The time of the case is used only for what changes with this status."""
    finetune = case.finetune
    # After a restart of the operator the figures are those of the status.
    trainer = newest_report(ledger, case.live_progress, finetune.status)
    figures = ledger.facts.evaluation if ledger.done(Stage.EVALUATE) else None
    exact = next((metric for metric in figures.metrics if metric.name == Metric.EXACT_MATCH), None) if figures else None
    pushed = ledger.facts.published
    draft = pushed if pushed and pushed.draft else None
    made = pushed if pushed and not pushed.draft else None
    # Until there is another one, the model that was published last is still where it is.
    published = made.model_copy(update={"serving": None}) if made else finetune.status.published
    return FineTuneStatus(
        observed_generation=finetune.generation,
        phase=situation.phase,
        conditions=_conditions(finetune, ledger, situation, decisions, case.now, case.terms),
        run=run,
        profile=case.terms.profile,
        workspace=place_of(finetune, case.spec).uri,
        stages=[_entry(ledger.entries[stage], situation) for stage in Stage],
        queue=queue_of(case),
        trainer_status=trainer,
        progress=f"{trainer.progress_percentage}%" if trainer and trainer.progress_percentage is not None else "",
        eta=_duration(trainer.estimated_remaining_seconds) if trainer else "",
        prepared=ledger.facts.prepared,
        trained=ledger.facts.trained,
        evaluation=ledger.facts.evaluation,
        gates=list(decisions),
        score=exact.tuned if exact else "",
        gain=f"{float(exact.tuned) - float(exact.base):+.4f}" if exact and exact.tuned and exact.base else "",
        published=published,
        serving=made.serving if made else finetune.status.serving,
        draft=draft,
        failure=situation.failure,
        trouble_since=situation.trouble_since,
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


def _entry(entry: StageStatus, situation: Situation) -> StageStatus:
    """Return the stage's entry, failed if it has worked and the failure is its own."""
    failed = situation.phase is Phase.FAILED and situation.failure and situation.failure.stage == entry.name
    if failed and entry.attempts and entry.state is StageState.PENDING:
        return entry.model_copy(update={"state": StageState.FAILED})
    return entry


def status_of_invalid(finetune: FineTune, situation: Situation, now: datetime, *, stops: bool) -> FineTuneStatus:
    """Return the status of an object that has no spec to go by: what was achieved before stays recorded."""
    conditions = _conditions(finetune, recorded(finetune.status), situation, (), now)
    return finetune.status.model_copy(
        update={
            "observed_generation": finetune.generation,
            "phase": situation.phase,
            "conditions": conditions,
            "failure": situation.failure,
            "trouble_since": None,
            "stages": [at_rest(entry, now) if stops else entry for entry in finetune.status.stages],
        }
    )


def _conditions(
    finetune: FineTune,
    ledger: Ledger,
    situation: Situation,
    decisions: Sequence[GateFacts],
    now: datetime,
    terms: Terms | None = None,
) -> list[Condition]:
    stalled = situation.failure is not None
    ready = situation.phase is Phase.SUCCEEDED
    reconciling = not stalled and not ready
    before = {condition.type: condition for condition in finetune.status.conditions}
    # Until the first Job is seen, nothing has been found out; later, waiting for a Job is no news about Ready.
    known = ConditionType.READY in before and before[ConditionType.READY].status != "Unknown"
    unknown = situation.phase is Phase.PENDING and not stalled and not known
    reason, message = situation.reason, situation.message
    facts = [
        (ConditionType.READY, "True" if ready else "Unknown" if unknown else "False", reason, message),
        (
            ConditionType.RECONCILING,
            _truth(reconciling),
            reason if reconciling else "Settled",
            message if reconciling else "",
        ),
        (ConditionType.STALLED, _truth(stalled), reason if stalled else "NotStalled", message if stalled else ""),
        _milestone(ConditionType.PREPARED, Stage.PREPARE, ledger, situation),
        _milestone(ConditionType.TRAINED, Stage.TRAIN, ledger, situation),
        _milestone(ConditionType.EVALUATED, Stage.EVALUATE, ledger, situation),
        _gate(ledger, decisions),
        _milestone(ConditionType.PUBLISHED, Stage.PUBLISH, ledger, situation),
        (
            ConditionType.SUSPENDED,
            _truth(situation.suspended),
            "Suspended" if situation.suspended else "NotSuspended",
            "spec.suspend is true" if situation.suspended else "",
        ),
        *_profile(terms),
    ]
    return [_condition(*fact, finetune.generation, before.get(fact[0]), now) for fact in facts]


def _milestone(
    kind: ConditionType, stage: Stage, ledger: Ledger, situation: Situation
) -> tuple[ConditionType, str, str, str]:
    if ledger.done(stage):
        done = _achievement(stage, ledger.facts)
        is_draft = stage is Stage.PUBLISH and ledger.facts.published and ledger.facts.published.draft
        return (kind, "False", "Draft", done) if is_draft else (kind, "True", kind.value, done)
    failure = situation.failure
    if stage is Stage.PUBLISH and situation.reason == NOT_BETTER:
        return kind, "False", NOT_BETTER, situation.message
    if failure and failure.stage == stage:
        return kind, "False", str(failure.reason), failure.message
    state = ledger.entries[stage].state if stage in ledger.wanted else StageState.PENDING
    return kind, "False", state.value, ""


def _achievement(stage: Stage, facts: Facts) -> str:
    """Return in one sentence what the stage found or made."""
    match stage:
        case Stage.PREPARE if facts.prepared:
            data = facts.prepared.dataset
            model = facts.prepared.base_model_revision[:12]
            return f"{data.train_rows} training rows, {data.evaluation_rows} held-out rows, base model at {model}"
        case Stage.TRAIN if facts.trained:
            return f"{facts.trained.steps} steps on {facts.trained.device}, loss {facts.trained.loss}"
        case Stage.EVALUATE if facts.evaluation:
            metrics = [f"{m.name} {m.tuned} (base {m.base})" for m in facts.evaluation.metrics if m.tuned]
            return f"{facts.evaluation.rows} held-out rows: {', '.join(metrics)}"
        case Stage.PUBLISH if facts.published:
            at = f"{facts.published.repository} at {facts.published.revision[:12]}"
            return f"draft on the branch {facts.published.branch} of {at}" if facts.published.draft else at
    return ""


def _gate(ledger: Ledger, decisions: Sequence[GateFacts]) -> tuple[ConditionType, str, str, str]:
    if not ledger.done(Stage.EVALUATE):
        return ConditionType.GATE_PASSED, "Unknown", "NotEvaluated", ""
    if passed(decisions):
        return ConditionType.GATE_PASSED, "True", "GatePassed", f"{len(decisions)} of {len(decisions)} gates passed"
    return ConditionType.GATE_PASSED, "False", "GateNotPassed", f"not passed: {missed(decisions)}"


def _profile(terms: Terms | None) -> list[tuple[ConditionType, str, str, str]]:
    """Return what is to be said about the profile; nothing where none holds now or would with the next run."""
    if terms is None or not (terms.profile or terms.news):
        return []
    if terms.news:
        message = f"this run keeps the profile with which it started; the next run will have {terms.news}"
        return [(ConditionType.PROFILE_CURRENT, "False", "ProfileChanged", message)]
    name, fields = (terms.profile.name, terms.profile.fields) if terms.profile else ("", {})
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
