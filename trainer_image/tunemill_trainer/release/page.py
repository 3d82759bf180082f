"""report.html: one self-contained page with the evaluation, the mistakes and the recipe of a run.

The page contains rows of the data set, which are untrusted text: every value is escaped, control characters and
bidirectional marks are shown as escape sequences, and the page's Content-Security-Policy forbids scripts.
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
"""The most rows of the confusion matrix."""


@dataclass(frozen=True)
class PageFacts:
    """The content of the page.

    Attributes:
        run: the run. The page shows its hyperparameters, never the location of data or workspace.
        base: the base model and its commit.
        tokens: the changes of the vocabulary.
        prepared: the facts that prepare reports about the data.
        trained: the facts that train reports.
        history: the training log: entries with `step` and `loss`, and one per epoch with `step` and `held_out_loss`.
        report: the report of evaluate.
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
    """One metric of both models. `change` is "good", "bad", or empty when the metric did not change."""

    name: str
    label: str
    cases: int
    base: Share
    tuned: Share
    change: str


@dataclass(frozen=True)
class _Grid:
    """The confusion matrix of tools: a row per expected tool, a column per called tool.

    Attributes:
        wanted: the expected tools that are shown.
        called: the called tools that are shown.
        counts: the confusion counts of all tools.
        right: how many tools are not shown because they were never confused with another.
        cut: how many tools are not shown because the matrix has `_MOST_TOOLS` rows already.
    """

    wanted: tuple[str, ...]
    called: tuple[str, ...]
    counts: Confusion
    right: int
    cut: int

    def share(self, wanted: str, called: str) -> float:
        """Return which share of the cases that expect `wanted` called `called`."""
        return self.counts[wanted].get(called, 0) / max(1, sum(self.counts[wanted].values()))


def page(facts: PageFacts) -> str:
    """Return the page as HTML. The same facts give the same bytes."""
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
    """Make control characters of a text visible. The output of macros is `Markup` and passes unchanged."""
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
    """Return the slices by display name, without those that contain every case: the main table shows these."""
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
    """Return the confusion matrix of the tools that were confused with another, most mistakes first."""
    wrong = {name: sum(count for called, count in row.items() if called != name) for name, row in confusion.items()}
    mixed = sorted((name for name, count in wrong.items() if count), key=lambda name: (-wrong[name], name))
    shown = mixed[:_MOST_TOOLS]
    called = dict.fromkeys(shown)
    for name in shown:
        called |= dict.fromkeys(confusion[name])
    return _Grid(tuple(shown), tuple(called), confusion, len(confusion) - len(mixed), len(mixed) - len(shown))


def _faults(report: Report) -> list[tuple[str, int, int]]:
    """Return name, cases of the base and cases of the tuned model per fault, most frequent of the tuned model first."""
    names = dict.fromkeys([*report.tuned_faults, *report.base_faults])
    return [
        (labels.FAULTS.get(name, name), report.base_faults.get(name, 0), report.tuned_faults.get(name, 0))
        for name in names
    ]


def _gallery(mistakes: Iterable[Mistake]) -> dict[str, list[Mistake]]:
    """Return the mistakes by display name of their fault."""
    groups: dict[str, list[Mistake]] = {}
    for mistake in mistakes:
        groups.setdefault(labels.FAULTS.get(mistake.tuned.fault, mistake.tuned.fault or "Other"), []).append(mistake)
    return groups


def _data(facts: PageFacts) -> list[tuple[str, str]]:
    data = facts.prepared.dataset
    return [
        ("Rows", f"{data.rows:,}"),
        ("Format", data.format),
        ("Training rows", f"{data.train_rows:,}" + (f", {data.added_rows:,} added" if data.added_rows else "")),
        *([("General rows", f"{data.replay_rows:,}")] if data.replay_rows else []),
        *([("Validation rows", f"{data.validation_rows:,}")] if data.validation_rows else []),
        ("Held-out rows", f"{data.evaluation_rows:,}"),
        ("Rows left out", labels.left_out(data)),
        ("Tools", f"{data.tools:,}"),
        ("Longest row", f"{data.longest_row_tokens:,} tokens"),
        ("Supervised tokens", f"{data.supervised_token_percent} %"),
        ("Digest", f"sha256 {facts.prepared.dataset_digest}"),
    ]


def _recipe(facts: PageFacts) -> list[tuple[str, str]]:
    training, adapter = facts.run.spec.training, facts.run.spec.adapter
    method = adapter.method.value
    blocks: dict[str, dict[str, Any]] = adapter.model_dump(mode="json", by_alias=True)
    settings = next((block for name, block in blocks.items() if name.lower() == method.lower()), {})
    length = f"{facts.trained.steps:,} steps of {training.batch_size} rows"
    quantization, start = facts.run.spec.base_model.quantization, facts.run.spec.base_model.adapter
    continued, preference, preferred = facts.prepared.adapter, training.preference, facts.trained.preference
    return [
        ("Base model", f"{facts.base.place} at {facts.base.revision[:12]}{labels.as_trained(quantization)}"),
        *([("Base model family", family)] if (family := facts.prepared.base_model_family) else []),
        *([("Assumed", " ".join(assumed))] if (assumed := facts.prepared.base_model_assumptions) else []),
        *([("Continued from", f"{start.id} at {continued.revision[:12]}")] if start and continued else []),
        ("Method", ", ".join([method, *(f"{name} {_plain(value)}" for name, value in settings.items())])),
        ("Vocabulary", f"{facts.tokens.mode}, {len(facts.tokens.added)} tokens added"),
        ("Learning rate", labels.learning_rate(training, facts.trained)),
        ("Duration", length if training.max_steps else f"{labels.epochs(training.epochs)}, {length}"),
        *([("Preference training", labels.preference(preference, preferred))] if preference and preferred else []),
        ("Maximum row length", f"{training.max_length:,} tokens"),
        ("Loss on", training.loss_on.value),
        ("Seed", str(training.seed)),
        ("Trained on", f"{facts.trained.device}, {facts.trained.train_seconds:,} s"),
        *([("Memory", facts.trained.memory)] if facts.trained.memory else []),
        ("Loss", f"from {facts.trained.first_loss} to {facts.trained.loss}"),
        ("Evaluated on", f"{facts.report.settings.device}, {facts.report.settings.precision}"),
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
    """Return the change from base to tuned in percentage points; 0.0 has no sign."""
    gain = f"{100 * (row.tuned.share - row.base.share):+.1f}"
    return "0.0" if float(gain) == 0 else gain


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return json.dumps(value, indent=2, ensure_ascii=False)
