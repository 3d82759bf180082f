"""The picture of the scores: each metric of base and tuned model, with its interval."""

from pathlib import Path

from tunemill_trainer.judge.report import Report, Share

_BASE, _TUNED, _INK = "#b8bec7", "#2563eb", "#1f2937"


def draw_scores(report: Report, path: Path) -> None:
    """Draw the metrics of evaluate's report that were measured into a PNG."""
    # Imported here, as a gate that is not passed must not wait for a drawing library.
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
    axes.set_xlabel("share of the cases, with 95 % interval", color=_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, colors=_INK)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    # Without the version of the library, which would make another file of the same picture.
    figure.savefig(path, metadata={"Software": None})


def _errors(shares: list[Share]) -> list[list[float]]:
    """Return how far the intervals reach to the left and to the right, never below zero for rounding."""
    return [
        [max(0.0, share.share - share.low) for share in shares],
        [max(0.0, share.high - share.share) for share in shares],
    ]
