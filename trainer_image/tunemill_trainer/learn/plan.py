"""Computes the number of steps, the logging interval and the size of forward passes of a run; pure."""

import math
from dataclasses import dataclass

from tunemill_api.training import Training

_MICRO_BATCH_TOKENS = 16_384
"""The initial maximum of tokens in a forward pass, padding included. It is reduced if memory is not enough."""
_SHORT_RUN_STEPS = 200


@dataclass(frozen=True)
class Plan:
    """The schedule of a run.

    Attributes:
        steps: number of optimizer steps.
        log_every: steps between two log entries.
        micro_batch_tokens: maximum tokens of a forward pass, padding included.
    """

    steps: int
    log_every: int
    micro_batch_tokens: int = _MICRO_BATCH_TOKENS


def plan(training: Training, rows: int, memory_kills: int = 0) -> Plan:
    """Return the schedule for a number of training rows. Each earlier pod that was OOM-killed halves a forward pass."""
    steps = training.max_steps or math.ceil(training.epochs * rows / training.batch_size)
    return Plan(steps, 1 if steps <= _SHORT_RUN_STEPS else 10, _MICRO_BATCH_TOKENS >> memory_kills)
