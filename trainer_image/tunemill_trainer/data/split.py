"""Decides which rows are held out. A row's side depends on its own conversation alone: new rows move no old ones."""

import hashlib
import json
import math
from collections.abc import Sequence

from tunemill_api.failures import Reason

from tunemill_trainer.data.rows import Message
from tunemill_trainer.errors import StageError


def fingerprint(messages: Sequence[Message]) -> bytes:
    """Return 16 bytes that identify a conversation."""
    text = json.dumps([message.to_json() for message in messages], sort_keys=True)
    return hashlib.sha256(text.encode()).digest()[:16]


def draw(conversation: bytes, seed: int) -> float:
    """Return a conversation's number from 0 to 1; equal conversations draw equal numbers."""
    digest = hashlib.sha256(f"{seed}:".encode() + conversation).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def cut(draws: Sequence[float], fraction: float) -> float:
    """Return the number below which a draw means: held out. At least one row falls on each side.

    Raises:
        StageError: DatasetTooSmall, when all rows hold the same conversation.
    """
    lowest, highest = min(draws, default=0.0), max(draws, default=0.0)
    if lowest == highest:
        raise StageError(
            Reason.DATASET_TOO_SMALL,
            "expected at least two different conversations, one to train on and one to hold out, "
            f"found {min(len(draws), 1)}",
        )
    # A small file may have no draw on one side of the usual cut.
    return min(max(fraction, math.nextafter(lowest, 1.0)), highest)
