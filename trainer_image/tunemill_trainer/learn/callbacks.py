"""Callbacks of the trainer: progress, detection of divergence, requests to stop, and checkpoints."""

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
from tunemill_trainer.process.ranks import AgreedStop
from tunemill_trainer.tracking.trackers import Trackers

_REPORTED = (
    "loss",
    "learning_rate",
    "grad_norm",
    "mean_token_accuracy",
    "forward_pass_tokens",
    "checkpointed_layers",
    "waiting_share",
)


class ProgressReports(TrainerCallback):  # type: ignore[misc] # transformers ships no types
    """Reports percentage, remaining time and the last logged metrics after every step.

    Args:
        progress: sends the reports.
        steps_per_epoch: number of rows divided by the batch size.
    """

    def __init__(self, progress: Progress, steps_per_epoch: float) -> None:
        self._progress = progress
        self._steps_per_epoch = steps_per_epoch
        self._figures: dict[str, object] = {}
        self._started_at = 0.0
        self._first_step = 0

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Store the start of this attempt: the remaining time is estimated from its pace."""
        self._started_at, self._first_step = time.monotonic(), state.global_step

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Store the metrics for the next report."""
        self._figures |= {name: f"{logs[name]:.5g}" for name in _REPORTED if name in logs}

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Send a report. At most 99 percent: the rest is for saving and uploading."""
        done = state.global_step - self._first_step
        pace = (time.monotonic() - self._started_at) / max(done, 1)
        # The held-out loss was measured after this callback ran for the previous step, so it is in the history.
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


class TrackerLogs(TrainerCallback):  # type: ignore[misc]
    """Logs the losses and the other figures of a step to the trackers, under the names that Transformers uses.

    Args:
        trackers: where to log.
    """

    def __init__(self, trackers: Trackers) -> None:
        self._trackers = trackers

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Log the figures of a step, with the loss of the rows that choose the epoch if it was measured after it."""
        if "loss" not in logs:
            return  # the summary at the end
        figures = {f"train/{name}": float(value) for name, value in logs.items() if isinstance(value, int | float)}
        # The held-out loss is in the history only, before the entry of its step.
        for entry in state.log_history[-2:]:
            if LOSS in entry and entry["step"] == state.global_step:
                figures["eval/loss"] = entry[LOSS]
        self._trackers.log(figures, state.global_step)


class DivergenceGuard(TrainerCallback):  # type: ignore[misc]
    """Ends a diverged run: the loss is NaN or infinite, or above that of a uniform distribution.

    A uniform distribution over the vocabulary has a loss of ln(vocabulary). Five consecutive logs above that and above
    the first loss are not noise of small batches. Needs logging_nan_inf_filter=False, otherwise NaN is not logged.

    Args:
        vocabulary: size of the vocabulary.
        divergence: Ignore accepts any finite loss.
        out_of_range: the remedy for a loss of NaN or infinity if the run computes in FP16, whose range is the likely
            cause; empty otherwise.
    """

    _PATIENCE = 5

    def __init__(self, vocabulary: int, divergence: Divergence = Divergence.STOP, out_of_range: str = "") -> None:
        self._uniform_loss = math.log(vocabulary)
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
        """Check the loss.

        Raises:
            StageError: TrainingDiverged, with a learning rate to try in the remedy.
        """
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss) and self._out_of_range:
            message = f"the loss is {loss} at step {state.global_step}, which is outside the range of FP16"
            raise StageError(Reason.TRAINING_DIVERGED, message, self._out_of_range)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss} at step {state.global_step}", args.learning_rate)
        self._first = loss if self._first is None else self._first
        if loss < self._best:
            self._best, self._best_rate = loss, float(logs.get("learning_rate", 0.0))
        self._recent.append(loss)
        full = len(self._recent) == self._PATIENCE
        if self._divergence is Divergence.STOP and full and min(self._recent) > max(self._uniform_loss, self._first):
            raise self._diverged(
                f"the loss rose from {self._first:.3f} to {loss:.3f} by step {state.global_step}, above the loss of "
                f"random guessing ({self._uniform_loss:.3f})",
                args.learning_rate,
            )

    def _diverged(self, what: str, rate: float) -> StageError:
        suggested = rate_to_try(rate, self._best_rate)
        return StageError(
            Reason.TRAINING_DIVERGED,
            f"{what}, with a peak learning rate of {rate:g}",
            f'Try spec.training.learningRate "{suggested}", and check the data.',
        )


def rate_to_try(rate: float, best_rate: float) -> str:
    """Return a lower learning rate to try, rounded down to one digit.

    Args:
        rate: the learning rate that diverged.
        best_rate: the learning rate at the lowest loss; 0 if unknown. The warmup passes all lower rates, so half of
            the best one is safe. The result is at least a hundredth of `rate`, as a single step may improve by chance.
    """
    target = min(rate / 3, max(best_rate / 2, rate / 100)) if best_rate else rate / 10
    exponent = math.floor(math.log10(target))
    digit = max(1, math.floor(target / 10**exponent + 1e-9))
    return f"{digit}e{exponent}"


class StopAtStep(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and ends training after the current step, once a pod of the run gets a request to stop."""

    def __init__(self, stop: AgreedStop) -> None:
        self._stop = stop

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check for a request to stop."""
        if self._stop.requested:
            control.should_save = True
            control.should_training_stop = True


class CheckpointsByTime(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint at a time interval, so that a lost pod costs minutes, however long a step takes.

    Args:
        minutes: the interval; 0 disables it.
        clock: returns seconds.
    """

    def __init__(self, minutes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = 60.0 * minutes
        self._clock = clock
        self._saved_at = clock()

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the interval. The time to load the model does not count."""
        self._saved_at = self._clock()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a checkpoint if the interval has passed."""
        if self._seconds and self._clock() - self._saved_at >= self._seconds:
            control.should_save = True

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restart the interval, also after a checkpoint that was saved because of everySteps."""
        self._saved_at = self._clock()


class CheckpointUploads(TrainerCallback):  # type: ignore[misc]
    """Uploads every checkpoint that the trainer saves. Must follow all callbacks that request checkpoints.

    Args:
        uploads: the queue of uploads.
        seconds_before: training time of earlier attempts.
    """

    def __init__(self, uploads: Uploads, seconds_before: float) -> None:
        self._uploads = uploads
        self._seconds_before = seconds_before
        self._started_at = time.monotonic()

    @property
    def train_seconds(self) -> float:
        """The training time of all attempts so far."""
        return self._seconds_before + time.monotonic() - self._started_at

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._started_at = time.monotonic()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Wait for the last upload before the trainer saves another checkpoint and removes the uploaded one."""
        if control.should_save:
            self._uploads.wait()

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Upload the checkpoint that was just saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_clock(folder, self.train_seconds)
        self._uploads.put(folder, state.global_step)
