"""Decides which rows are held out. A row's split depends only on the row itself, so added rows do not move others."""

import hashlib
import math
from collections.abc import Collection, Sequence

from tunemill_api.data import SplitBy
from tunemill_api.failures import Reason

from tunemill_trainer.data.rows import Message, Role
from tunemill_trainer.errors import StageError


def request_fingerprint(messages: Sequence[Message]) -> bytes:
    """Return 16 bytes that identify a row's request: all messages of other roles, ignoring white space and case.

    Training on a row with the request of a held-out row would reveal the expected reply, even if it is worded
    differently.
    """
    texts = [
        f"{message.role}:{' '.join(message.content.casefold().split())}"
        for message in messages
        if message.role is not Role.ASSISTANT
    ]
    return digest("\n".join(texts).encode())


def draw(request: bytes, seed: int) -> float:
    """Return a pseudorandom number from 0 to 1 for a request. Equal requests get equal numbers."""
    digest = hashlib.sha256(f"{seed}:".encode() + request).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def draw_by_tools(called: Collection[str], seed: int) -> float:
    """Return the lowest draw of the called tools.

    So a row is held out if any of its tools is, and no training row calls a tool of a held-out row's draw.
    """
    return min(draw(digest(f"tool:{name}".encode()), seed) for name in called)


_UNITS = {SplitBy.PROMPT: "with different requests", SplitBy.TOOLS: "that call different tools"}


def cut(lowest: float, highest: float, fraction: float, by: SplitBy = SplitBy.PROMPT) -> float:
    """Return the threshold below which a draw means held out, such that each split gets at least one row.

    Args:
        lowest: the lowest draw.
        highest: the highest draw.
        fraction: the share of rows to hold out.
        by: what the draws are for.

    Raises:
        StageError: DatasetTooSmall, if all rows have the same draw, or there are no rows.
    """
    if lowest >= highest:
        raise StageError(
            Reason.DATASET_TOO_SMALL,
            f"expected at least two rows {_UNITS[by]}, one to train on and one to hold out, "
            f"found {'one' if lowest == highest else 'none'}",
        )
    # In a small file, all draws may lie on the same side of the fraction.
    return min(max(fraction, math.nextafter(lowest, 1.0)), highest)


def digest(content: bytes) -> bytes:
    """Return a 16-byte hash."""
    return hashlib.sha256(content).digest()[:16]
