"""Decides the figures of a training run from the wish and the data; pure."""

import math
from dataclasses import dataclass

from tunemill_api.finetune import Training

_MICRO_BATCH_TOKENS = 16_384
"""Padded tokens that one forward pass may have; the micro-batch is halved when it does not fit after all."""
_SHORT_RUN_STEPS = 200


@dataclass(frozen=True)
class Plan:
    """The figures of a run.

    Attributes:
        steps: optimizer steps.
        micro_batch: rows per forward pass; divides the batch size.
        accumulation: forward passes per optimizer step.
        log_every: steps between two logged figures.
    """

    steps: int
    micro_batch: int
    accumulation: int
    log_every: int

    def halved(self) -> "Plan":
        """Return the same run with half the rows per forward pass, or a smaller divisor where that is none."""
        batch = self.micro_batch * self.accumulation
        return _with_micro_batch(self, batch, self.micro_batch // 2)


def plan(training: Training, rows: int, longest: int) -> Plan:
    """Return the figures for a number of training rows, the longest of which has `longest` tokens."""
    steps = training.max_steps or math.ceil(training.epochs * rows / training.batch_size)
    log_every = 1 if steps <= _SHORT_RUN_STEPS else 10
    start = Plan(steps, 1, training.batch_size, log_every)
    return _with_micro_batch(start, training.batch_size, _MICRO_BATCH_TOKENS // max(longest, 1))


def _with_micro_batch(plan: Plan, batch: int, at_most: int) -> Plan:
    micro = next(rows for rows in range(max(1, min(batch, at_most)), 0, -1) if batch % rows == 0)
    return Plan(plan.steps, micro, batch // micro, plan.log_every)
