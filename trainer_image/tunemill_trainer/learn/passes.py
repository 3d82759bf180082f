"""Builds the tensors of a forward pass on the host, and copies them to the device in one asynchronous transfer."""

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
"""Any token id works: the attention mask hides it."""


@dataclass(frozen=True, eq=False)
class Step:
    """The rows of an optimizer step. Not a list or dict, because accelerate would copy their tokens one by one."""

    rows: Sequence[Row]


def step_of(rows: Sequence[Row]) -> dict[str, Step]:
    """Return the rows of an optimizer step as a batch: the data collator of the trainers."""
    return {"step": Step(rows)}


@dataclass(frozen=True, eq=False)
class Pass:
    """The inputs and targets of a forward pass.

    Attributes:
        inputs: keyword arguments of the model.
        predicts: indices into the flattened `input_ids` of the tokens that are followed by a supervised token.
        targets: these supervised tokens.
        copied: bytes copied to the device.
    """

    inputs: dict[str, Any]
    predicts: torch.Tensor
    targets: torch.Tensor
    copied: int


def answer_row(prompt: Sequence[int], answer: Sequence[int]) -> Row:
    """Return a row with the loss on the answer only."""
    return {"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + [*answer]}


def supervised(row: Row) -> int:
    """Return the number of supervised tokens of a row, without the first token, which no token precedes."""
    return int(np.count_nonzero(np.asarray(row["labels"][1:]) != IGNORED))


def make(rows: Sequence[Row], device: torch.device, *, padded: bool) -> Pass:
    """Build the forward pass of some rows: padded to the longest, or concatenated with positions restarting per row.

    Nothing has to be read back from the device.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)
    offsets = [longest * at for at in range(len(rows))] if padded else np.cumsum([0, *lengths[:-1]]).tolist()
    labels = [np.asarray(row["labels"]) for row in rows]
    # A token predicts the next one of its row.
    supervised = [np.flatnonzero(row[1:] != IGNORED) for row in labels]
    predicts = np.concatenate([at + offset for at, offset in zip(supervised, offsets, strict=True)])
    targets = np.concatenate([row[1:][at] for row, at in zip(labels, supervised, strict=True)])
    if padded:
        ids = np.full((len(rows), longest), _PADDING)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : lengths[at]], mask[at, : lengths[at]] = row["input_ids"], 1
        parts, copied = _copied([ids.ravel(), mask.ravel(), predicts, targets], device)
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
    """Copy one-dimensional arrays to the device; return the tensors and the number of bytes."""
    whole = torch.from_numpy(np.concatenate(parts))
    if device.type == "cuda":
        # A copy from pinned memory is asynchronous.
        whole = whole.pin_memory()
    on_device = whole.to(device, non_blocking=True)
    return on_device.split([len(part) for part in parts]), whole.nbytes
