"""The trackers of a stage, as spec.tracking sets them."""

from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.tracking.mlflow import MlflowTracker
from tunemill_trainer.tracking.run import TrackedRun
from tunemill_trainer.tracking.trackers import Tracker, Trackers
from tunemill_trainer.tracking.wandb import WandbTracker


def trackers_of(context: StageContext, *, last: bool = False) -> Trackers:
    """Return the trackers of a stage. With several ranks, only rank 0 logs.

    Args:
        context: of the stage.
        last: whether this is the last stage that logs.

    Raises:
        StageError: CredentialsMissing, when a Secret lacks a key.
    """
    settings = context.spec.tracking
    if settings is None or not context.ranks.first:
        return Trackers([])
    run = TrackedRun.of(context.run)
    trackers: list[Tracker] = []
    if settings.mlflow:
        trackers.append(MlflowTracker(settings.mlflow, run, context.credentials.mlflow_variables()))
    if settings.wandb:
        folder = context.work / "wandb"
        trackers.append(WandbTracker(settings.wandb, run, context.credentials.wandb_key(), folder))
    return Trackers(trackers, last=last)
