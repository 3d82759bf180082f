"""Decides which rows are held out. A row's side depends on its own request alone: new rows move no old ones."""

import hashlib
import math
from collections.abc import Sequence

from tunemill_api.failures import Reason

from tunemill_trainer.data.rows import Message, Role
from tunemill_trainer.errors import StageError


def request_fingerprint(messages: Sequence[Message]) -> bytes:
    """Return 16 bytes that identify what the assistant is asked: all that others say, whatever the spacing and case.

    A row that asks what a held-out row asks would give the answer away, also where it is worded differently.
    """
    said = [
        f"{message.role}:{' '.join(message.content.casefold().split())}"
        for message in messages
        if message.role is not Role.ASSISTANT
    ]
    return digest("\n".join(said).encode())


def draw(request: bytes, seed: int) -> float:
    """Return a request's number from 0 to 1; equal requests draw equal numbers."""
    digest = hashlib.sha256(f"{seed}:".encode() + request).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def cut(lowest: float, highest: float, fraction: float) -> float:
    """Return the number below which a draw means: held out. At least one row falls on each side.

    Args:
        lowest: of all draws.
        highest: of all draws.
        fraction: the share to hold out.

    Raises:
        StageError: DatasetTooSmall, when all rows hold the same request, or there are none.
    """
    if lowest >= highest:
        raise StageError(
            Reason.DATASET_TOO_SMALL,
            "expected at least two rows with different requests, one to train on and one to hold out, "
            f"found {'one' if lowest == highest else 'none'}",
        )
    # A small file may have no draw on one side of the usual cut.
    return min(max(fraction, math.nextafter(lowest, 1.0)), highest)


def digest(content: bytes) -> bytes:
    """Return 16 bytes that tell contents apart."""
    return hashlib.sha256(content).digest()[:16]
