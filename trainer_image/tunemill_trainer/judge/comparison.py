"""Compares base and tuned model: the metrics for the status, the full report, and both replies to every case."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from tunemill_api.status import EvaluationFacts, MetricFacts

from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.judge.faults import FaultKind
from tunemill_trainer.judge.metrics import Rate, Reply, Score, ToolScore, Verdict, score, sign_test
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.question import slices_of
from tunemill_trainer.judge.report import (
    Attempt,
    Calls,
    MetricReport,
    Mistake,
    Report,
    Right,
    Settings,
    Share,
    ToolReport,
)
from tunemill_trainer.prepared import Case

HEADLINES = (
    "tool_name_accuracy",
    "exact_match",
    "ast_match",
    "valid_call_rate",
    "schema_valid_rate",
    "parallel_accuracy",
    "abstention_accuracy",
    "missed_call_rate",
    "over_call_rate",
    "hallucinated_tool_rate",
    "finished_rate",
)
"""The metrics in the status: those that gates can use, and finished_rate, which helps to explain them."""

TOOL_F1 = "tool_f1"
"""The only metric in the status that is a mean and not a share of cases."""

_MISTAKES = 60
_MISTAKES_A_FAULT = 10
_LONGEST_TEXT = 2000


class OfRow(Protocol):
    """Something that belongs to a row."""

    @property
    def row(self) -> int:
        """The number of the row in the data."""


_OfRow = TypeVar("_OfRow", bound=OfRow)


def sample(cases: Iterable[_OfRow], max_rows: int) -> list[_OfRow]:
    """Return the cases of at most `max_rows` rows in order. A hash of the row numbers selects the rows.

    The first rows would not be representative, because data is often sorted by tool.
    """
    found = list(cases)
    rows = {case.row for case in found}
    kept = set(sorted(rows, key=lambda row: hashlib.sha256(str(row).encode()).digest())[:max_rows])
    return [case for case in found if case.row in kept]


@dataclass(frozen=True)
class Comparison:
    """Both models' replies to the same cases, and their scores."""

    cases: tuple[Case, ...]
    base_replies: tuple[Reply, ...]
    tuned_replies: tuple[Reply, ...]
    base: Score
    tuned: Score

    @property
    def rows(self) -> int:
        """The number of held-out rows that the cases come from."""
        return len({case.row for case in self.cases})

    def facts(self, report: str) -> EvaluationFacts:
        """Return the facts for the status; `report` is the URI of the full report."""
        metrics = [
            MetricFacts(
                name=name,
                base=_decimals(self.base.rates[name].value),
                tuned=_decimals(self.tuned.rates[name].value),
                cases=self.tuned.rates[name].cases,
            )
            for name in HEADLINES
        ]
        wanting = self.tuned.rates["exact_match"].cases
        f1 = MetricFacts(
            name=TOOL_F1,
            base=_decimals(self.base.tool_f1 if wanting else None),
            tuned=_decimals(self.tuned.tool_f1 if wanting else None),
            cases=wanting,
        )
        return EvaluationFacts(rows=self.rows, metrics=[*metrics, f1], report=report)

    def report(self, settings: Settings, trained_tools: frozenset[str] | None = None) -> Report:
        """Return the full report: metrics with intervals, slices, tools, faults, mistakes and settings.

        Args:
            settings: how the replies were generated.
            trained_tools: the tools called in the training rows; None if unknown.
        """
        base, tuned = self.base, self.tuned
        before = [verdict.right for verdict in base.verdicts]
        after = [verdict.right for verdict in tuned.verdicts]
        none = ToolScore()
        return Report(
            rows=self.rows,
            cases=len(self.cases),
            settings=settings,
            metrics=_metrics(base.rates, tuned.rates),
            right=Right(base=sum(before), tuned=sum(after), p_value=sign_test(before, after)),
            tools={
                name: _tool(base.tools.get(name, none), tuned.tools.get(name, none))
                for name in sorted(base.tools.keys() | tuned.tools.keys())
            },
            base_confusion=base.confusion,
            tuned_confusion=tuned.confusion,
            base_tool_f1=_rounded(base.tool_f1),
            tuned_tool_f1=_rounded(tuned.tool_f1),
            slices={
                name: _with_cases(_metrics(base.rates_of(indices), tuned.rates_of(indices)))
                for name, indices in slices_of(self.cases, trained_tools).items()
            },
            base_faults=base.faults,
            tuned_faults=tuned.faults,
            mistakes=[self._mistake(index) for index in _shown_mistakes(tuned.verdicts)],
        )

    def _mistake(self, index: int) -> Mistake:
        case = self.cases[index]
        return Mistake(
            id=case.id,
            request=_cut(case.messages[-1].content if case.messages else ""),
            expected=[call.to_json() for call in case.gold.calls],
            expected_text=_cut(case.gold.content),
            got=[call.to_json() for call in self.tuned.calls[index]],
            base=_attempt(self.base_replies[index], self.base.verdicts[index]),
            tuned=_attempt(self.tuned_replies[index], self.tuned.verdicts[index]),
        )

    def lines(self) -> Iterator[JsonObject]:
        """Yield one line per case: the expected turn, and each model's reply with its verdict."""
        both = zip(self.base_replies, self.base.verdicts, self.tuned_replies, self.tuned.verdicts, strict=True)
        for case, (base, base_verdict, tuned, tuned_verdict) in zip(self.cases, both, strict=True):
            yield {
                "id": case.id,
                "row": case.row,
                "gold": case.gold.to_json(),
                "base": _line(base, base_verdict),
                "tuned": _line(tuned, tuned_verdict),
            }


def compare(
    cases: list[Case], base: list[Reply], tuned: list[Reply], reply_format: ReplyFormat = ReplyFormat.HERMES
) -> Comparison:
    """Score both models' replies; each has one reply per case."""
    scores = [score(cases, replies, reply_format) for replies in (base, tuned)]
    return Comparison(tuple(cases), tuple(base), tuple(tuned), *scores)


def _shown_mistakes(verdicts: Sequence[Verdict]) -> list[int]:
    """Return the indices of wrong replies for the report: the first of each fault, so that rare faults are shown."""
    shown: Counter[FaultKind] = Counter()
    chosen = []
    for index, verdict in enumerate(verdicts):
        if verdict.fault is not FaultKind.NONE and shown[verdict.fault] < _MISTAKES_A_FAULT:
            shown[verdict.fault] += 1
            chosen.append(index)
    return chosen[:_MISTAKES]


def _metrics(base: dict[str, Rate], tuned: dict[str, Rate]) -> dict[str, MetricReport]:
    return {
        name: MetricReport(cases=rate.cases, base=_figures(base[name]), tuned=_figures(rate))
        for name, rate in tuned.items()
    }


def _with_cases(metrics: dict[str, MetricReport]) -> dict[str, MetricReport]:
    return {name: metric for name, metric in metrics.items() if metric.cases}


def _figures(rate: Rate) -> Share | None:
    if rate.value is None:
        return None
    low, high = rate.interval()
    return Share(hits=rate.hits, share=round(rate.value, 4), low=round(low, 4), high=round(high, 4))


def _tool(base: ToolScore, tuned: ToolScore) -> ToolReport:
    return ToolReport(wanted=max(base.wanted, tuned.wanted), base=_calls(base), tuned=_calls(tuned))


def _calls(tool: ToolScore) -> Calls:
    return Calls(
        made=tool.made,
        named=tool.named,
        exact=tool.exact,
        precision=_rounded(tool.precision),
        recall=_rounded(tool.recall),
        f1=_rounded(tool.f1),
    )


def _attempt(reply: Reply, verdict: Verdict) -> Attempt:
    return Attempt(text=_cut(reply.text), fault=verdict.fault.value, error=verdict.error)


def _line(reply: Reply, verdict: Verdict) -> JsonObject:
    return {"text": reply.text, **asdict(verdict)}


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"
