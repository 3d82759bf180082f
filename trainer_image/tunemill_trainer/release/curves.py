"""The loss curve of a training as SVG paths, with axis ticks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 26
_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: its position in pixels and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A loss curve. Paths are SVG path data in a box of WIDTH by HEIGHT pixels.

    Attributes:
        raw: path of the losses as logged.
        smooth: path of their exponential moving average.
        held_out: path of the held-out loss; empty when it was not measured.
        measured: the points of `held_out`, x and y in pixels. A single point has no visible path.
        across: ticks of the x axis, in steps.
        up: ticks of the y axis, in loss.
        last: the last smoothed loss.
    """

    raw: str
    smooth: str
    held_out: str
    measured: tuple[tuple[float, float], ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    last: float


def loss_curve(history: Sequence[dict[str, Any]]) -> Curve | None:
    """Return the loss curve of a training; None when fewer than two finite losses were logged.

    Args:
        history: log entries with `step` and `loss`, or with `step` and `held_out_loss`.
    """
    logged = [(float(entry["step"]), float(entry["loss"])) for entry in history if "loss" in entry]
    points = [point for point in logged if math.isfinite(point[1])]
    if len(points) < 2:
        return None
    held_out = [(float(entry["step"]), float(entry["held_out_loss"])) for entry in history if "held_out_loss" in entry]
    smooth = [(step, loss) for (step, _), loss in zip(points, smoothed([loss for _, loss in points]), strict=True)]
    low, high = points[0][0], points[-1][0]
    # The 98th percentile, not the maximum: one spike at the start would flatten the rest of the curve.
    top = _round_up(max(sorted(loss for _, loss in points)[int(0.98 * (len(points) - 1))], smooth[0][1]))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        step, loss = point
        across = _LEFT + (step - low) / max(high - low, 1) * (WIDTH - _LEFT - _RIGHT)
        return across, _TOP + (1 - min(loss, top) / top) * (HEIGHT - _TOP - _BOTTOM)

    steps = [low + (high - low) * part / (_TICKS - 1) for part in range(_TICKS)]
    losses = [top * part / (_TICKS - 1) for part in range(_TICKS)]
    return Curve(
        raw=_path([place(point) for point in points]),
        smooth=_path([place(point) for point in smooth]),
        held_out=_path([place(point) for point in held_out]),
        measured=tuple(place(point) for point in held_out),
        across=tuple(Tick(place((step, 0))[0], f"{step:.0f}") for step in steps),
        up=tuple(Tick(place((low, loss))[1], f"{loss:.3g}") for loss in losses),
        last=smooth[-1][1],
    )


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return the exponential moving average over about a twentieth of the run; `losses` must not be empty."""
    weight = 2 / (1 + max(1.0, len(losses) / 20))
    mean, means = losses[0], []
    for loss in losses:
        mean += weight * (loss - mean)
        means.append(mean)
    return means


def _round_up(value: float) -> float:
    """Return the next larger round number, for the top of an axis."""
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(scale * step for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10) if scale * step >= value)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{'L' if at else 'M'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(points))
