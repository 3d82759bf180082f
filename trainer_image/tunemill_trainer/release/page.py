"""report.html: one page that shows a run, with nothing in it that has to be loaded from elsewhere.

The rows of the data stand in it as text. They may hold anything, so every value is escaped, control
characters and direction marks are shown as such, and the page forbids scripts to itself.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tunemill_api.plain_text import plain
from tunemill_api.run_spec import RunSpec
from tunemill_api.status import PreparedFacts, TrainedFacts

from tunemill_trainer.judge.report import Confusion, MetricReport, Mistake, Report, Share
from tunemill_trainer.prepared import BaseModel, Tokens
from tunemill_trainer.release import labels
from tunemill_trainer.release.curves import HEIGHT, WIDTH, loss_curve

PAGE_FILE = "report.html"

_HEADLINES = ("tool_name_accuracy", "exact_match", "ast_match")
_MOST_TOOLS = 30
"""Rows of the table of mix-ups; more would be a wall of zeros."""


@dataclass(frozen=True)
class PageFacts:
    """All that the page shows.

    Attributes:
        run: the wish. Only its recipe is shown, never where data lies.
        base: the base model and its commit.
        tokens: what was done to the vocabulary.
        prepared: what was found in the data.
        trained: how the training went.
        history: one entry a log of the training with step and loss, and one an epoch with step and held_out_loss.
        report: the full report.
    """

    run: RunSpec
    base: BaseModel
    tokens: Tokens
    prepared: PreparedFacts
    trained: TrainedFacts
    history: Sequence[dict[str, Any]]
    report: Report


@dataclass(frozen=True)
class _Bar:
    """One metric of both models. `change` is good, bad, or empty where nothing changed."""

    name: str
    label: str
    cases: int
    base: Share
    tuned: Share
    change: str


@dataclass(frozen=True)
class _Grid:
    """The table of mix-ups: wanted tools down, called tools across.

    Attributes:
        wanted: the rows.
        called: the columns.
        counts: of all tools.
        right: tools that are not shown as they were never mixed up.
        cut: tools that are not shown as there are too many.
    """

    wanted: tuple[str, ...]
    called: tuple[str, ...]
    counts: Confusion
    right: int
    cut: int

    def share(self, wanted: str, called: str) -> float:
        """Return the share of the calls of a wanted tool that went to another."""
        return self.counts[wanted].get(called, 0) / max(1, sum(self.counts[wanted].values()))


def page(facts: PageFacts) -> str:
    """Return the page. The same facts give the same page, to the letter."""
    report = facts.report
    environment = Environment(
        loader=PackageLoader("tunemill_trainer.release", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "json": _json, "number": _number, "change": _signed}
    return environment.get_template("page.html.jinja").render(
        facts=facts,
        report=report,
        labels=labels,
        headlines=[bar for name in _HEADLINES for bar in _bars(report.metrics) if bar.name == name],
        metrics=_bars(report.metrics),
        slices=_slices(report),
        curve=loss_curve(facts.history),
        grids=[("Tuned model", _grid(report.tuned_confusion)), ("Base model", _grid(report.base_confusion))],
        faults=_faults(report),
        gallery=_gallery(report.mistakes),
        recipe=_recipe(facts),
        data=_data(facts),
        width=WIDTH,
        height=HEIGHT,
    )


def _shown(value: Any) -> Any:  # noqa: ANN401 - whatever the template shows
    """Return a text of the data as it may be shown; what macros made of it is markup, and no plain text any more."""
    return plain(value, keep="\n\t") if type(value) is str else value


def _bars(metrics: dict[str, MetricReport]) -> list[_Bar]:
    return [
        _Bar(
            name=name,
            label=labels.metric(name),
            cases=metric.cases,
            base=metric.base,
            tuned=metric.tuned,
            change=_change(name, metric.tuned.share - metric.base.share),
        )
        for name, metric in metrics.items()
        if metric.base and metric.tuned
    ]


def _slices(report: Report) -> dict[str, list[_Bar]]:
    """Return the slices by what they are called; one of all the cases would say everything twice."""
    bars = {name: _bars(metrics) for name, metrics in report.slices.items()}
    return {
        labels.SLICES.get(name, name): rows
        for name, rows in bars.items()
        if rows and max(row.cases for row in rows) < report.cases
    }


def _change(name: str, gain: float) -> str:
    if gain == 0:
        return ""
    return "good" if (gain < 0) == (name in labels.LOWER_IS_BETTER) else "bad"


def _grid(confusion: Confusion) -> _Grid:
    """Return the table of the tools that were mixed up, those with the most mistakes first."""
    wrong = {name: sum(count for called, count in row.items() if called != name) for name, row in confusion.items()}
    mixed = sorted((name for name, count in wrong.items() if count), key=lambda name: (-wrong[name], name))
    shown = mixed[:_MOST_TOOLS]
    called = dict.fromkeys(shown)
    for name in shown:
        called |= dict.fromkeys(confusion[name])
    return _Grid(tuple(shown), tuple(called), confusion, len(confusion) - len(mixed), len(mixed) - len(shown))


def _faults(report: Report) -> list[tuple[str, int, int]]:
    """Return what goes wrong, with the cases of base and tuned model; what the tuned model does most comes first."""
    names = dict.fromkeys([*report.tuned_faults, *report.base_faults])
    return [
        (labels.FAULTS.get(name, name), report.base_faults.get(name, 0), report.tuned_faults.get(name, 0))
        for name in names
    ]


def _gallery(mistakes: Iterable[Mistake]) -> dict[str, list[Mistake]]:
    """Return the mistakes by fault."""
    groups: dict[str, list[Mistake]] = {}
    for mistake in mistakes:
        groups.setdefault(labels.FAULTS.get(mistake.tuned.fault, mistake.tuned.fault or "Other"), []).append(mistake)
    return groups


def _data(facts: PageFacts) -> list[tuple[str, str]]:
    data = facts.prepared.dataset
    return [
        ("Rows", f"{data.rows:,}"),
        ("Format", data.format),
        ("For training", f"{data.train_rows:,}"),
        ("Held out", f"{data.evaluation_rows:,}"),
        ("Left out", labels.left_out(data)),
        ("Tools", f"{data.tools:,}"),
        ("Longest row", f"{data.longest_row_tokens:,} tokens"),
        ("Tokens learnt from", f"{data.supervised_token_percent} %"),
        ("Digest", f"sha256 {facts.prepared.dataset_digest}"),
    ]


def _recipe(facts: PageFacts) -> list[tuple[str, str]]:
    training, adapter = facts.run.spec.training, facts.run.spec.adapter
    method = adapter.method.value
    blocks: dict[str, dict[str, Any]] = adapter.model_dump(mode="json", by_alias=True)
    settings = next((block for name, block in blocks.items() if name.lower() == method.lower()), {})
    length = f"{facts.trained.steps:,} steps of {training.batch_size} rows"
    quantization = facts.run.spec.base_model.quantization
    return [
        ("Base model", f"{facts.base.place} at {facts.base.revision[:12]}{labels.as_trained(quantization)}"),
        ("Method", ", ".join([method, *(f"{name} {_plain(value)}" for name, value in settings.items())])),
        ("Vocabulary", f"{facts.tokens.mode}, {len(facts.tokens.added)} tokens added"),
        ("Learning rate", f"{training.learning_rate}, {training.scheduler.value}, warm-up {training.warmup_ratio}"),
        ("Length", length if training.max_steps else f"{training.epochs} epoch{'s' * (training.epochs > 1)}, {length}"),
        ("Longest row taken", f"{training.max_length:,} tokens"),
        ("Loss on", training.loss_on.value),
        ("Seed", str(training.seed)),
        ("Trained on", f"{facts.trained.device}, {facts.trained.train_seconds:,} s"),
        *([("Memory", facts.trained.memory)] if facts.trained.memory else []),
        ("Loss", f"from {facts.trained.first_loss} to {facts.trained.loss}"),
        ("Judged on", f"{facts.report.settings.device}, {facts.report.settings.precision}"),
        ("Tuned model", facts.report.settings.adapter),
        ("Replies", f"{facts.report.settings.decoding}, at most {facts.report.settings.max_new_tokens} tokens"),
    ]


def _plain(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(row: _Bar) -> str:
    """Return by how much the tuned model is above the base, in points; 0.0 has no sign."""
    gain = f"{100 * (row.tuned.share - row.base.share):+.1f}"
    return "0.0" if float(gain) == 0 else gain


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return json.dumps(value, indent=2, ensure_ascii=False)
