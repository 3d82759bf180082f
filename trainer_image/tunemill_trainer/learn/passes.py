"""The tensors of a forward pass, made on the host and copied to the device in one piece, without waiting for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tunemill_trainer.learn.attention import Rows
from tunemill_trainer.prepared import IGNORED

Row = dict[str, list[int]]
"""input_ids and labels."""

_PADDING = 0
"""Any token: nothing sees it."""


@dataclass(frozen=True, eq=False)
class Step:
    """The rows of an optimizer step; as no list or dictionary, so that nobody copies their tokens one by one."""

    rows: Sequence[Row]


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward pass computes.

    Attributes:
        inputs: keyword arguments of the model.
        predicts: which tokens of `input_ids`, flattened, have a supervised token next.
        targets: these next tokens.
        copied: bytes that were copied to the device.
    """

    inputs: dict[str, Any]
    predicts: torch.Tensor
    targets: torch.Tensor
    copied: int


def supervised(row: Row) -> int:
    """Return how many tokens of a row are learnt; its first token has none before it that could predict it."""
    return int(np.count_nonzero(np.asarray(row["labels"][1:]) != IGNORED))


def make(rows: Sequence[Row], device: torch.device, *, padded: bool) -> Pass:
    """Make the pass of rows: padded to the longest, or end to end with positions that begin anew.

    Nothing in it needs to be read back from the device.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)
    begins = [longest * at for at in range(len(rows))] if padded else np.cumsum([0, *lengths[:-1]]).tolist()
    labels = [np.asarray(row["labels"]) for row in rows]
    # A token predicts the next one of its row.
    supervised = [np.flatnonzero(row[1:] != IGNORED) for row in labels]
    predicts = np.concatenate([at + begin for at, begin in zip(supervised, begins, strict=True)])
    targets = np.concatenate([row[1:][at] for row, at in zip(labels, supervised, strict=True)])
    if padded:
        ids = np.full((len(rows), longest), _PADDING)
        seen = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : lengths[at]], seen[at, : lengths[at]] = row["input_ids"], 1
        parts, copied = _copied([ids.ravel(), seen.ravel(), predicts, targets], device)
        inputs = {"input_ids": parts[0].view(ids.shape), "attention_mask": parts[1].view(ids.shape)}
        return Pass(inputs, parts[2], parts[3], copied)
    ids = np.concatenate([row["input_ids"] for row in rows])
    positions = np.concatenate([np.arange(length) for length in lengths])
    parts, copied = _copied([ids, positions, predicts, targets, np.cumsum([0, *lengths])], device)
    inputs = {
        "input_ids": parts[0].unsqueeze(0),
        "position_ids": parts[1].unsqueeze(0),
        "rows": Rows(tuple(lengths), parts[4].to(torch.int32)),
    }
    return Pass(inputs, parts[2], parts[3], copied)


def _copied(parts: list[npt.NDArray[np.int64]], device: torch.device) -> tuple[tuple[torch.Tensor, ...], int]:
    """Return arrays of one dimension as tensors on the device, and the bytes that this copied."""
    whole = torch.from_numpy(np.concatenate(parts))
    if device.type == "cuda":
        # From pinned memory a copy runs while the host goes on.
        whole = whole.pin_memory()
    on_device = whole.to(device, non_blocking=True)
    return on_device.split([len(part) for part in parts]), whole.nbytes
