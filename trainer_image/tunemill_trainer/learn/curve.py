"""The record of a run: its figures as lines of JSON, as TensorBoard events and as a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SCALARS = ("loss", "held_out_loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy")
_RECORD, _HELD_OUT = "training.jsonl", "held-out.jsonl"
_NAMES = {"num_tokens": "tokens"}


def write_record(
    history: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], title: str, folder: Path
) -> None:
    """Write training.jsonl, held-out.jsonl, tensorboard/ and loss.png.

    Args:
        history: one entry a log, with step, epoch and loss at least.
        held_out: one entry an epoch, with step, epoch and held_out_loss.
        title: of the picture.
        folder: where the files go.
    """
    for entries, name in ((history, _RECORD), (held_out, _HELD_OUT)):
        lines = [json.dumps({_NAMES.get(name, name): value for name, value in entry.items()}) for entry in entries]
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _write_events([*history, *held_out], folder / "tensorboard")
    _draw(history, held_out, title, folder / "loss.png")


def read_record(folder: Path) -> list[dict[str, Any]]:
    """Return what `write_record` wrote: one entry a log, then one an epoch with held_out_loss."""
    lines = [line for name in (_RECORD, _HELD_OUT) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines]


def mean_of_last_tenth(history: Sequence[dict[str, Any]]) -> float:
    """Return the mean loss of the last tenth of the logs, of one at least."""
    last = history[-max(1, len(history) // 10) :]
    return float(sum(entry["loss"] for entry in last) / len(last))


def _write_events(history: Sequence[dict[str, Any]], folder: Path) -> None:
    # Written at the end and not on the way, so that the events of a resumed run are whole.
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for entry in history:
            for name in _SCALARS:
                if name in entry:
                    writer.add_scalar(f"train/{name}", entry[name], entry["step"])


def _draw(history: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [entry["step"] for entry in history]
    losses = [entry["loss"] for entry in history]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9ecae1", linewidth=1, label="loss")
    axes.plot(steps, _smooth(losses), color="#08519c", linewidth=2, label="smoothed")
    if held_out:
        measured = [entry["held_out_loss"] for entry in held_out]
        axes.plot(
            [entry["step"] for entry in held_out], measured, "o-", color="#e6550d", markersize=4, label="held out"
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    rate = axes.twinx()
    rate.plot(
        steps, [entry.get("learning_rate", 0.0) for entry in history], color="#bdbdbd", linewidth=1, linestyle="--"
    )
    rate.set_ylabel("learning rate (dashed)", color="#757575")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.tick_params(axis="y", colors="#757575")
    rate.spines[["top", "left"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential mean over about a twentieth of the run."""
    weight = 2 / (1 + max(1, len(values) / 20))
    smoothed = [values[0]]
    for value in values[1:]:
        smoothed.append(smoothed[-1] + weight * (value - smoothed[-1]))
    return smoothed
