"""The training log of a run, as JSON lines and as TensorBoard events."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SCALARS = ("loss", "held_out_loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy")
_RECORD, _HELD_OUT = "training.jsonl", "held-out.jsonl"
_NAMES = {"num_tokens": "tokens"}


def write_record(history: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write training.jsonl, held-out.jsonl and tensorboard/.

    Args:
        history: log entries with at least step, epoch and loss.
        held_out: an entry per epoch with step, epoch and held_out_loss.
        folder: where to write the files.
    """
    for entries, name in ((history, _RECORD), (held_out, _HELD_OUT)):
        lines = [json.dumps({_NAMES.get(name, name): value for name, value in entry.items()}) for entry in entries]
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _write_events([*history, *held_out], folder / "tensorboard")


def read_record(folder: Path) -> list[dict[str, Any]]:
    """Return the entries that `write_record` wrote: those of the history, then those with held_out_loss.

    held-out.jsonl is optional: a user's own trainer may not write it.
    """
    files = [folder / _RECORD, *folder.glob(_HELD_OUT)]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]


def mean_of_last_tenth(history: Sequence[dict[str, Any]]) -> float:
    """Return the mean loss of the last tenth of the entries, or of the last one."""
    last = history[-max(1, len(history) // 10) :]
    return float(sum(entry["loss"] for entry in last) / len(last))


def _write_events(history: Sequence[dict[str, Any]], folder: Path) -> None:
    # Written at the end of training, so that the events of a resumed run are complete.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for entry in history:
            for name in _SCALARS:
                if name in entry:
                    writer.add_scalar(f"train/{name}", entry[name], entry["step"])
