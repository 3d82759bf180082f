"""Computes the demo's results for scripts, `build/demo/*.json`, from the status before and after a change. Pure."""

from typing import Any

from tunemill_api.status import FineTuneStatus, StageStatus

STAGES = ("prepare", "train", "evaluate", "publish")


def summary(
    before: FineTuneStatus, after: FineTuneStatus, setup_seconds: float, total_seconds: float
) -> dict[str, Any]:
    """Return the result of one part of the demo.

    Args:
        before: the status before the demo applied or edited the object.
        after: the status at the end.
        setup_seconds: time until the object was applied.
        total_seconds: time until the end, including setup.
    """
    ran = stages_run(before, after)
    seconds = {stage.name: _seconds(stage) if ran.get(stage.name) else 0.0 for stage in after.stages}
    judged = after.evaluation
    metrics = judged.metrics if judged else []
    return {
        "phase": str(after.phase),
        "seconds": {
            "setup": round(setup_seconds, 1),
            **{name: seconds.get(name, 0.0) for name in STAGES},
            "total": round(total_seconds, 1),
        },
        "evaluation": {
            "base": {metric.name: float(metric.base) for metric in metrics if metric.base},
            "tuned": {metric.name: float(metric.tuned) for metric in metrics if metric.tuned},
            "rows": judged.rows if judged else 0,
        },
        "published": after.published.model_dump(include={"repository", "revision"}) if after.published else None,
        "stagesRun": ran,
    }


def stages_run(before: FineTuneStatus, after: FineTuneStatus) -> dict[str, int]:
    """Return for each stage how often it ran between the two: 1, or 0 if its output already existed."""
    known = {stage.name: stage for stage in before.stages}
    ran = dict.fromkeys(STAGES, 0)
    for stage in after.stages:
        earlier = known.get(stage.name)
        if stage.executed and stage.finished_at and (earlier is None or earlier.finished_at != stage.finished_at):
            ran[stage.name] = 1
    return ran


def _seconds(stage: StageStatus) -> float:
    if stage.started_at is None or stage.finished_at is None:
        return 0.0
    return round(stage.earlier_seconds + (stage.finished_at - stage.started_at).total_seconds(), 1)
