"""The held-out loss: measured after every epoch, for early stopping and to keep the best epoch."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tunemill_trainer.learn.passes import Row, answer_row
from tunemill_trainer.prepared import Case

LOSS = "held_out_loss"
"""The name of the metric in the trainer's log."""
_CASES = 200
"""The maximum number of cases: enough for a precise mean, and fast compared with an epoch."""

_log = logging.getLogger(__name__)


class HeldOutTrainer(Protocol):
    """The methods of the trainer that this module needs."""

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Return the mean loss of the supervised tokens."""

    def keep_as_best(self) -> None:
        """Save the trained parameters as those of the best epoch."""


@dataclass(frozen=True)
class Best:
    """The epoch with the lowest held-out loss.

    Attributes:
        step: the last step of the epoch.
        loss: the mean loss of the tokens of the held-out answers.
        worse: the number of epochs since then.
    """

    step: int
    loss: float
    worse: int


def rows_of(cases: Iterable[Case], max_length: int) -> list[Row]:
    """Return at most `_CASES` held-out cases, evenly spaced, as rows with the loss on the answer only."""
    fitting = [case for case in cases if case.tokens <= max_length]
    every = -(-len(fitting) // _CASES)
    return [answer_row(case.prompt_ids, case.answer_ids) for case in fitting[:: max(every, 1)]]


def ends_of_epochs(rows: int, batch_size: int, steps: int) -> frozenset[int]:
    """Return the last step of every epoch, and the last step of the run."""
    epochs = steps * batch_size // rows
    return frozenset({-(-epoch * rows // batch_size) for epoch in range(1, epochs + 1)} | {steps})


def best_of(history: Sequence[dict[str, Any]]) -> Best | None:
    """Return the best epoch of a trainer's log; None when nothing was measured.

    All there is to know is in the log, which is part of every checkpoint: a resumed run decides as one without a break.
    """
    measured = [(entry[LOSS], entry["step"]) for entry in history if LOSS in entry]
    if not measured:
        return None
    loss, step = min(measured)
    return Best(step, loss, sum(1 for _, other in measured if other > step))


class HeldOutLoss(TrainerCallback):  # type: ignore[misc] # transformers ships no types
    """Measures the held-out loss at the end of every epoch.

    Args:
        trainer: measures the loss, and saves the best parameters.
        rows: the held-out rows.
        after: the steps after which to measure.
        patience: the number of epochs without improvement after which training ends; 0 disables early stopping.
    """

    def __init__(self, trainer: HeldOutTrainer, rows: Sequence[Row], after: frozenset[int], patience: int) -> None:
        self._trainer = trainer
        self._rows = rows
        self._after = after
        self._patience = patience

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure the loss, and end training after `patience` epochs without improvement."""
        if state.global_step not in self._after:
            return
        loss = self._trainer.mean_loss(self._rows)
        state.log_history.append({"step": state.global_step, LOSS: loss})
        _log.info("held-out loss after step %d: %.4f", state.global_step, loss)
        best = best_of(state.log_history)
        if not self._patience or best is None:
            return
        if best.step == state.global_step:
            self._trainer.keep_as_best()
        elif best.worse >= self._patience:
            control.should_training_stop = True
            # A run resumed from this checkpoint would continue training.
            control.should_save = False
