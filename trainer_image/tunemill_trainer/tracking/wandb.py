"""Logs to Weights & Biases."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.tracking import PUBLIC_WANDB, WandB

from tunemill_trainer.tracking.run import TrackedRun
from tunemill_trainer.tracking.trackers import End, Metrics

if TYPE_CHECKING:
    import wandb

_STEP = "train/global_step"
"""The metric with the step, by the convention of Transformers. W&B's own step can only increase, but a stage that
resumes logs some steps again."""
_OPEN_SECONDS = 60.0


class WandbTracker:
    """A client of Weights & Biases.

    Args:
        settings: spec.tracking.wandb.
        run: the run.
        token: the API key; None takes the one of the environment, which only local runs have.
        folder: where the client puts its files.
    """

    name = "Weights & Biases"

    def __init__(self, settings: WandB, run: TrackedRun, token: str | None, folder: Path) -> None:
        self._settings = settings
        self._run = run
        self._token = token
        self._folder = folder
        self._opened: wandb.Run | None = None

    def open(self) -> None:
        """Continue the run, or create it in the project."""
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        self._opened = run = wandb.init(
            entity=self._settings.entity or None,
            project=self._settings.project or self._run.namespace,
            id=self._run.digest,
            name=self._run.name,
            config={**self._run.settings, **self._run.tags},
            resume="allow",
            dir=self._folder,
            settings=wandb.Settings(
                api_key=self._token,
                base_url=self._settings.endpoint or PUBLIC_WANDB,
                init_timeout=_OPEN_SECONDS,
                silent=True,
                # Nothing but metrics and files: no output of the process, no code, and nothing about the machine.
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
            ),
        )
        run.define_metric(_STEP)
        run.define_metric("*", step_metric=_STEP)

    def log(self, metrics: Sequence[Metrics]) -> None:
        """Log metrics."""
        for each in metrics:
            self._existing.log({**each.values, _STEP: each.step})

    def add_file(self, path: Path) -> None:
        """Upload a file."""
        self._existing.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, end: End) -> None:
        """Send what waits, and end the client's process. A later stage or attempt continues the run."""
        self._existing.finish(exit_code=int(end is End.FAILED))

    @property
    def _existing(self) -> "wandb.Run":
        if self._opened is None:
            raise RuntimeError("the run was not opened")
        return self._opened
