"""What happens around the steps of a run: progress, the guard against divergence, the request to stop, checkpoints."""

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from tunemill_api.failures import Reason
from tunemill_api.training import Divergence
from typing_extensions import override

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn.checkpoints import Uploads, write_clock
from tunemill_trainer.learn.held_out import LOSS
from tunemill_trainer.process.progress import Progress
from tunemill_trainer.process.stop import StopSignal

_REPORTED = (
    "loss",
    "learning_rate",
    "grad_norm",
    "mean_token_accuracy",
    "forward_pass_tokens",
    "checkpointed_layers",
)


class ProgressReports(TrainerCallback):  # type: ignore[misc] # transformers ships no types
    """Reports percent, remaining time and the figures of the last log after every step.

    Args:
        progress: takes the reports.
        steps_per_epoch: the rows divided by the batch size.
    """

    def __init__(self, progress: Progress, steps_per_epoch: float) -> None:
        self._progress = progress
        self._steps_per_epoch = steps_per_epoch
        self._figures: dict[str, object] = {}
        self._started_at = 0.0
        self._first_step = 0

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remember where this attempt begins: the time left follows from its own pace."""
        self._started_at, self._first_step = time.monotonic(), state.global_step

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Keep the figures for the next report."""
        self._figures |= {name: f"{logs[name]:.5g}" for name in _REPORTED if name in logs}

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report. The last percent is for saving and uploading."""
        done = state.global_step - self._first_step
        pace = (time.monotonic() - self._started_at) / max(done, 1)
        # Measured at the end of the step before, after this callback had its turn; a log of that step may follow it.
        for entry in state.log_history[-2:]:
            if LOSS in entry:
                self._figures[LOSS] = f"{entry[LOSS]:.5g}"
        figures = {
            **self._figures,
            "current_step": state.global_step,
            "total_steps": state.max_steps,
            "current_epoch": round(state.global_step / self._steps_per_epoch, 2),
        }
        percent = min(99, 100 * state.global_step // state.max_steps)
        self._progress.report(percent, pace * (state.max_steps - state.global_step), figures)


class DivergenceGuard(TrainerCallback):  # type: ignore[misc]
    """Ends a run that cannot recover: the loss is no number, or the model has become worse than guessing.

    A model that gives every token the same chance has a loss of ln(vocabulary). Five logs in a row above that and
    above where the run began are no noise of small batches. Needs logging_nan_inf_filter=False, or no NaN is logged.

    Args:
        vocabulary: tokens that the model knows.
        divergence: Ignore lets a loss rise that is still a number.
        out_of_range: the remedy where something computes in FP16, of which a loss that is no number says more than of
            the learning rate; empty where nothing does.
    """

    _PATIENCE = 5

    def __init__(self, vocabulary: int, divergence: Divergence = Divergence.STOP, out_of_range: str = "") -> None:
        self._guessing = math.log(vocabulary)
        self._divergence = divergence
        self._out_of_range = out_of_range
        self._first: float | None = None
        self._recent: deque[float] = deque(maxlen=self._PATIENCE)
        self._best = math.inf
        self._best_rate = 0.0

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Look at the loss.

        Raises:
            StageError: TrainingDiverged, with a learning rate to try as its remedy.
        """
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss) and self._out_of_range:
            message = f"the loss is {loss} at step {state.global_step}, which is out of the range of FP16"
            raise StageError(Reason.TRAINING_DIVERGED, message, self._out_of_range)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss} at step {state.global_step}", args.learning_rate)
        self._first = loss if self._first is None else self._first
        if loss < self._best:
            self._best, self._best_rate = loss, float(logs.get("learning_rate", 0.0))
        self._recent.append(loss)
        full = len(self._recent) == self._PATIENCE
        if self._divergence is Divergence.STOP and full and min(self._recent) > max(self._guessing, self._first):
            raise self._diverged(
                f"the loss rose from {self._first:.3f} to {loss:.3f} by step {state.global_step}, which is worse than "
                f"guessing ({self._guessing:.3f})",
                args.learning_rate,
            )

    def _diverged(self, what: str, rate: float) -> StageError:
        suggested = rate_to_try(rate, self._best_rate)
        return StageError(
            Reason.TRAINING_DIVERGED,
            f"{what}, with spec.training.learningRate {rate:g}",
            f'Try spec.training.learningRate "{suggested}" and look at the data.',
        )


def rate_to_try(rate: float, best_rate: float) -> str:
    """Return a learning rate for the next try, rounded down to one digit.

    Args:
        rate: the one that diverged.
        best_rate: what it was when the loss was lowest; 0 when that is not known. The warm-up tries all lower rates,
            and half of the last one that helped is safe; but no less than a hundredth, as one step may help by chance.
    """
    wanted = min(rate / 3, max(best_rate / 2, rate / 100)) if best_rate else rate / 10
    exponent = math.floor(math.log10(wanted))
    digit = max(1, math.floor(wanted / 10**exponent + 1e-9))
    return f"{digit}e{exponent}"


class StopAtStep(TrainerCallback):  # type: ignore[misc]
    """Ends training after the present step, with a checkpoint, once the pod was asked to stop."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the request."""
        if self._stop.requested:
            control.should_save = True
            control.should_training_stop = True


class CheckpointsByTime(TrainerCallback):  # type: ignore[misc]
    """Has a checkpoint saved when the last one is too old, so that a lost pod costs minutes however long a step takes.

    Args:
        minutes: between two checkpoints; 0 never asks for one.
        clock: returns seconds.
    """

    def __init__(self, minutes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = 60.0 * minutes
        self._clock = clock
        self._saved_at = clock()

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock: loading the model is no work that could be lost."""
        self._saved_at = self._clock()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint after this step if it is time."""
        if self._seconds and self._clock() - self._saved_at >= self._seconds:
            control.should_save = True

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start again: a checkpoint that was due by steps counts, too."""
        self._saved_at = self._clock()


class CheckpointUploads(TrainerCallback):  # type: ignore[misc]
    """Hands every checkpoint that the trainer wrote to the uploads. Comes after all callbacks that ask for one.

    Args:
        uploads: take the checkpoints.
        seconds_before: that earlier attempts spent training.
    """

    def __init__(self, uploads: Uploads, seconds_before: float) -> None:
        self._uploads = uploads
        self._seconds_before = seconds_before
        self._started_at = time.monotonic()

    @property
    def train_seconds(self) -> float:
        """The seconds that all attempts have spent training until now."""
        return self._seconds_before + time.monotonic() - self._started_at

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._started_at = time.monotonic()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Wait for the last upload before another checkpoint is written, after which the trainer removes that one."""
        if control.should_save:
            self._uploads.wait()

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Upload the checkpoint that was just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_clock(folder, self.train_seconds)
        self._uploads.put(folder, state.global_step)
