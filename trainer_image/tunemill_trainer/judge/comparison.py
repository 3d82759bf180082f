"""Base and tuned model side by side: the facts for the status, the full report, and every case with both replies."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from tunemill_api.status import EvaluationFacts, MetricFacts

from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.judge.metrics import Rate, Reply, Score, ToolScore, Verdict, score, sign_test
from tunemill_trainer.judge.report import Calls, MetricReport, Report, Right, Settings, Share, ToolReport
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

    def report(self, settings: Settings) -> Report:
        """Return the full report: metrics with intervals, tools, which was taken for which, how it was measured."""
        base, tuned = self.base, self.tuned
        before = [verdict.right for verdict in base.verdicts]
        after = [verdict.right for verdict in tuned.verdicts]
        none = ToolScore(0, 0, 0)
        return Report(
            rows=self.rows,
            cases=len(self.cases),
            settings=settings,
            metrics={
                name: MetricReport(cases=rate.cases, base=_figures(base.rates[name]), tuned=_figures(rate))
                for name, rate in tuned.rates.items()
            },
            right=Right(base=sum(before), tuned=sum(after), p_value=sign_test(before, after)),
            tools={
                name: _tool(base.tools.get(name, none), tuned.tools.get(name, none))
                for name in sorted(base.tools.keys() | tuned.tools.keys())
            },
            base_confusion=base.confusion,
            tuned_confusion=tuned.confusion,
        )

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


def compare(cases: list[Case], base: list[Reply], tuned: list[Reply]) -> Comparison:
    """Score both models' replies, one a case each."""
    return Comparison(tuple(cases), tuple(base), tuple(tuned), score(cases, base), score(cases, tuned))


def _share(rate: Rate) -> str:
    return "" if rate.value is None else f"{rate.value:.4f}"


def _figures(rate: Rate) -> Share | None:
    if rate.value is None:
        return None
    low, high = rate.interval()
    return Share(hits=rate.hits, share=round(rate.value, 4), low=round(low, 4), high=round(high, 4))


def _tool(base: ToolScore, tuned: ToolScore) -> ToolReport:
    return ToolReport(
        wanted=max(base.wanted, tuned.wanted),
        base=Calls(made=base.made, exact=base.exact),
        tuned=Calls(made=tuned.made, exact=tuned.exact),
    )


def _line(reply: Reply, verdict: Verdict) -> JsonObject:
    return {"text": reply.text, **asdict(verdict)}
