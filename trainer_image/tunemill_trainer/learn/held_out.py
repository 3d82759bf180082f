"""The loss on held-out answers, epoch by epoch; training ends when it no longer falls, and keeps the best epoch."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tunemill_trainer.learn.passes import Row
from tunemill_trainer.prepared import IGNORED, Case

LOSS = "held_out_loss"
"""The figure's name in the trainer's log."""
_CASES = 200
"""Cases that are looked at: the error of their mean loss is far below what matters, and no epoch waits for it."""

_log = logging.getLogger(__name__)


class Judged(Protocol):
    """What the loss is measured on: the trainer."""

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Return the mean loss of the supervised tokens."""

    def keep_as_best(self) -> None:
        """Remember what is trained as it is now."""


@dataclass(frozen=True)
class Best:
    """The epoch with the lowest held-out loss.

    Attributes:
        step: at its end.
        loss: the mean over the tokens of the held-out answers.
        worse: epochs since then.
    """

    step: int
    loss: float
    worse: int


def rows_of(cases: Iterable[Case], max_length: int) -> list[Row]:
    """Return held-out cases as rows, at most `_CASES` from all over the data; the loss is on the answer alone."""
    fitting = [case for case in cases if len(case.prompt_ids) + len(case.answer_ids) <= max_length]
    every = -(-len(fitting) // _CASES)
    return [
        {
            "input_ids": [*case.prompt_ids, *case.answer_ids],
            "labels": [IGNORED] * len(case.prompt_ids) + [*case.answer_ids],
        }
        for case in fitting[:: max(every, 1)]
    ]


def ends_of_epochs(rows: int, batch_size: int, steps: int) -> frozenset[int]:
    """Return the steps after which another epoch is done; the last step counts as one."""
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
    """Measures the loss at the end of every epoch.

    Args:
        trainer: measures, and keeps the best.
        rows: held-out rows.
        after: the steps after which to measure.
        patience: epochs without a lower loss after which training ends; 0 never ends it.
    """

    def __init__(self, trainer: Judged, rows: Sequence[Row], after: frozenset[int], patience: int) -> None:
        self._trainer = trainer
        self._rows = rows
        self._after = after
        self._patience = patience

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure, and end the training when patience is at its end."""
        if state.global_step not in self._after:
            return
        loss = self._trainer.mean_loss(self._rows)
        state.log_history.append({"step": state.global_step, LOSS: loss})
        _log.info("the loss on the held-out answers is %.4f after step %d", loss, state.global_step)
        best = best_of(state.log_history)
        if not self._patience or best is None:
            return
        if best.step == state.global_step:
            self._trainer.keep_as_best()
        elif best.worse >= self._patience:
            control.should_training_stop = True
            # A run that is resumed from here would go on.
            control.should_save = False
