"""Base and tuned model side by side: the facts for the status, the full report, and every case with both replies."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from pydantic import JsonValue
from tunemill_api.status import EvaluationFacts, MetricFacts

from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.judge.metrics import Rate, Reply, Score, ToolScore, Verdict, score, sign_test
from tunemill_trainer.prepared import Case


def sample(cases: Iterable[Case], max_rows: int) -> list[Case]:
    """Return the cases of at most `max_rows` rows, in their order; which rows, a hash of their numbers decides.

    The first rows would not do: data is often sorted by tool.
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
        """The held-out rows that the cases come from."""
        return len({case.row for case in self.cases})

    def facts(self, report: str) -> EvaluationFacts:
        """Return what the status says; `report` is the URI of the full report."""
        metrics = [
            MetricFacts(name=name, base=_share(self.base.rates[name]), tuned=_share(tuned), cases=tuned.cases)
            for name, tuned in self.tuned.rates.items()
        ]
        return EvaluationFacts(rows=self.rows, metrics=metrics, report=report)

    def report(self, settings: JsonObject) -> JsonObject:
        """Return the full report: metrics with intervals, tools, which was taken for which, how it was measured."""
        metrics: JsonObject = {
            name: {"cases": tuned.cases, "base": _figures(self.base.rates[name]), "tuned": _figures(tuned)}
            for name, tuned in self.tuned.rates.items()
        }
        tools = sorted(self.base.tools.keys() | self.tuned.tools.keys())
        return {
            "rows": self.rows,
            "cases": len(self.cases),
            "settings": settings,
            "metrics": metrics,
            "right": self._right(),
            "tools": {name: _tool(self.base.tools.get(name), self.tuned.tools.get(name)) for name in tools},
            "confusion": {"base": _table(self.base.confusion), "tuned": _table(self.tuned.confusion)},
        }

    def lines(self) -> Iterator[JsonObject]:
        """Yield one line a case: what was wanted, and what each model said."""
        both = zip(self.base_replies, self.base.verdicts, self.tuned_replies, self.tuned.verdicts, strict=True)
        for case, (base, base_verdict, tuned, tuned_verdict) in zip(self.cases, both, strict=True):
            yield {
                "id": case.id,
                "row": case.row,
                "gold": case.gold.to_json(),
                "base": _line(base, base_verdict),
                "tuned": _line(tuned, tuned_verdict),
            }

    def _right(self) -> JsonObject:
        """Return how many cases each model has right, and how likely it is that the difference is chance."""
        before = [verdict.right for verdict in self.base.verdicts]
        after = [verdict.right for verdict in self.tuned.verdicts]
        return {"base": sum(before), "tuned": sum(after), "pValue": sign_test(before, after)}


def compare(cases: list[Case], base: list[Reply], tuned: list[Reply]) -> Comparison:
    """Score both models' replies, one a case each."""
    return Comparison(tuple(cases), tuple(base), tuple(tuned), score(cases, base), score(cases, tuned))


def _share(rate: Rate) -> str:
    return "" if rate.value is None else f"{rate.value:.4f}"


def _figures(rate: Rate) -> JsonValue:
    if rate.value is None:
        return None
    low, high = rate.interval()
    return {"hits": rate.hits, "share": round(rate.value, 4), "low": round(low, 4), "high": round(high, 4)}


def _tool(base: ToolScore | None, tuned: ToolScore | None) -> JsonObject:
    present = [score for score in (base, tuned) if score is not None]
    return {
        "wanted": present[0].wanted,
        "base": {"made": base.made if base else 0, "exact": base.exact if base else 0},
        "tuned": {"made": tuned.made if tuned else 0, "exact": tuned.exact if tuned else 0},
    }


def _table(confusion: dict[str, dict[str, int]]) -> JsonObject:
    return {wanted: dict(called) for wanted, called in confusion.items()}


def _line(reply: Reply, verdict: Verdict) -> JsonObject:
    return {"text": reply.text, **asdict(verdict)}
