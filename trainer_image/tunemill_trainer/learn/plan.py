"""Decides the figures of a training run from the wish and the data; pure."""

import math
from dataclasses import dataclass

from tunemill_api.training import Training

_MICRO_BATCH_TOKENS = 16_384
"""Padded tokens that one forward pass may have at first; halved when it does not fit after all."""
_SHORT_RUN_STEPS = 200


@dataclass(frozen=True)
class Plan:
    """The figures of a run.

    Attributes:
        steps: optimizer steps.
        log_every: steps between two logged figures.
        micro_batch_tokens: padded tokens of one forward pass.
    """

    steps: int
    log_every: int
    micro_batch_tokens: int = _MICRO_BATCH_TOKENS


def plan(training: Training, rows: int, memory_kills: int = 0) -> Plan:
    """Return the figures for a number of training rows; each pod that was killed for memory halves a forward pass."""
    steps = training.max_steps or math.ceil(training.epochs * rows / training.batch_size)
    return Plan(steps, 1 if steps <= _SHORT_RUN_STEPS else 10, _MICRO_BATCH_TOKENS >> memory_kills)
