"""The pictures of the model card: the training loss, and the metrics of base and tuned model with their intervals.

matplotlib is imported inside the functions: it is slow to import, and publish does not need it when a gate fails.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemill_trainer.judge.report import Report, Share
from tunemill_trainer.release.curves import smoothed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BASE, _TUNED, _INK = "#b8bec7", "#2563eb", "#1f2937"


def draw_scores(report: Report, path: Path) -> None:
    """Draw the measured metrics of evaluate's report as a PNG."""
    from matplotlib.figure import Figure

    measured = {name: metric for name, metric in report.metrics.items() if metric.base and metric.tuned}
    base = [metric.base for metric in measured.values() if metric.base]
    tuned = [metric.tuned for metric in measured.values() if metric.tuned]
    figure = Figure(figsize=(7.5, 0.9 + 0.62 * len(measured)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for side, shares, colour, offset in (("base", base, _BASE, -0.2), ("tuned", tuned, _TUNED, 0.2)):
        places = [row + offset for row in range(len(shares))]
        values = [share.share for share in shares]
        axes.barh(places, values, 0.36, color=colour, label=side)
        axes.errorbar(values, places, xerr=_errors(shares), fmt="none", ecolor=_INK, elinewidth=1, capsize=2)
    axes.set_yticks(
        range(len(measured)), [f"{name}\n{metric.cases} cases" for name, metric in measured.items()], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("share of cases, with 95 % interval", color=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, colors=_INK)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    _save(figure, path)


def draw_loss(record: Sequence[dict[str, Any]], title: str, path: Path, *, measured_on: str) -> None:
    """Draw loss and learning rate by optimizer step as a PNG.

    Args:
        record: the training log: entries with `step` and `loss`, and one per epoch with `step` and `held_out_loss`.
        title: the title of the picture.
        path: where to write it.
        measured_on: the rows on which `held_out_loss` was measured.
    """
    from matplotlib.figure import Figure

    history = [entry for entry in record if "loss" in entry]
    held_out = [entry for entry in record if "held_out_loss" in entry]
    steps = [entry["step"] for entry in history]
    losses = [entry["loss"] for entry in history]
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#9ecae1", linewidth=1, label="loss")
    axes.plot(steps, smoothed(losses), color="#08519c", linewidth=2, label="smoothed")
    if held_out:
        measured = [entry["held_out_loss"] for entry in held_out]
        steps_measured = [entry["step"] for entry in held_out]
        axes.plot(steps_measured, measured, "o-", color="#e6550d", markersize=4, label=measured_on)
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
    _save(figure, path)


def _errors(shares: list[Share]) -> list[list[float]]:
    """Return the distances to the lower and upper interval bounds, at least zero in spite of rounding."""
    return [
        [max(0.0, share.share - share.low) for share in shares],
        [max(0.0, share.high - share.share) for share in shares],
    ]


def _save(figure: "Figure", path: Path) -> None:
    # Omit matplotlib's version from the metadata: the same picture must give the same bytes.
    figure.savefig(path, metadata={"Software": None})
