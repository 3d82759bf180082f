"""The output of `tunemill score`: text tables or JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.judge.metrics import Score
from tunemill_trainer.judge.outputs import GoldRows
from tunemill_trainer.judge.question import slices_of

_UNKNOWN = (
    "the call format of the replies is unknown: most of them have the name of a tool, but no mark of a known format. "
    "Choose a format with --reply-format, or write the calls in one of the formats that it lists"
)
SERVED = "tool_calls"
"""The format of replies whose calls a server parsed."""
_SHOWN = 10
"""The most mistakes, and the most confused pairs of tools, in the text output."""


@dataclass(frozen=True)
class ScoreReport:
    """The scores of the replies to a set of rows.

    Attributes:
        rows: the rows.
        score: the scores.
        reply_format: the call format of the replies, or SERVED.
    """

    rows: GoldRows
    score: Score
    reply_format: str

    def to_json(self) -> JsonObject:
        """Return all metrics, and one object per row: whether it is right, and if not, why."""
        score = self.score
        metrics: JsonObject = {name: _rounded(rate.value) for name, rate in score.rates.items()}
        applicable = {name: rate for name, rate in score.rates.items() if rate.cases}
        return {
            "metrics": metrics | {"tool_f1": _rounded(score.tool_f1)},
            "rows": [
                {
                    "id": row.given_id,
                    "tool_name": verdict.tool_names,
                    "exact_match": verdict.right,
                    "ast_match": verdict.ast,
                    "error": verdict.error or None,
                }
                for row, verdict in zip(self.rows.rows, score.verdicts, strict=True)
            ],
            "cases": {name: rate.cases for name, rate in score.rates.items()},
            "intervals": {name: [_rounded(bound) for bound in rate.interval()] for name, rate in applicable.items()},
            "tools": {
                name: {
                    "wanted": tool.wanted,
                    "made": tool.made,
                    "named": tool.named,
                    "exact": tool.exact,
                    "precision": _rounded(tool.precision),
                    "recall": _rounded(tool.recall),
                    "f1": _rounded(tool.f1),
                }
                for name, tool in score.tools.items()
            },
            "confusion": {wanted: dict(called) for wanted, called in score.confusion.items()},
            "faults": dict(score.faults),
            "slices": {
                name: {metric: _rounded(rate.value) for metric, rate in score.rates_of(indices).items() if rate.cases}
                for name, indices in slices_of(self.rows.rows, None).items()
            },
            "formats": {"rows": self.rows.format.value, "replies": self.reply_format},
        }

    def to_text(self) -> str:
        """Return the tables."""
        parts = [self._metrics(), self._slices(), self._tools(), self._confusion(), self._mistakes()]
        return "\n\n".join("\n".join(part) for part in map(list, parts) if part)

    def _metrics(self) -> Iterator[str]:
        count = len(self.rows.rows)
        yield (
            f"{count} {'row' if count == 1 else 'rows'} in {self.rows.format.value} format, "
            f"replies in {self.reply_format} format"
        )
        yield ""
        lines = [("metric", "share", "95 % interval", "cases")]
        for name, rate in self.score.rates.items():
            if rate.value is not None:
                low, high = rate.interval()
                lines.append((name, _percent(rate.value), f"{_percent(low)} … {_percent(high)}", str(rate.cases)))
        if self.score.tool_f1 is not None:
            lines.append(("tool_f1", _percent(self.score.tool_f1), "", ""))
        yield from _table(lines)

    def _slices(self) -> Iterator[str]:
        lines: list[tuple[str, ...]] = [("slice", "replies", "ast_match", "overall_accuracy")]
        for name, indices in slices_of(self.rows.rows, None).items():
            rates = self.score.rates_of(indices)
            shares = (_percent(rates[metric].value) for metric in ("ast_match", "overall_accuracy"))
            lines.append((name, str(len(indices)), *shares))
        yield from _table(lines)

    def _tools(self) -> Iterator[str]:
        lines: list[tuple[str, ...]] = [("tool", "expected", "called", "exact", "precision", "recall", "F1")]
        for name, tool in self.score.tools.items():
            shares = (_percent(share) for share in (tool.precision, tool.recall, tool.f1))
            lines.append((name, str(tool.wanted), str(tool.made), str(tool.exact), *shares))
        if len(lines) > 1:
            yield from _table(lines)

    def _confusion(self) -> Iterator[str]:
        """Yield the most frequent pairs of expected and called tool that differ."""
        wrong = [
            (count, wanted, called)
            for wanted, row in self.score.confusion.items()
            for called, count in row.items()
            if wanted != called
        ]
        if wrong:
            lines = [("expected", "called", "calls")]
            lines += [(wanted, called, str(count)) for count, wanted, called in _most(wrong)]
            yield from _table(lines)

    def _mistakes(self) -> Iterator[str]:
        wrong = [
            (row.id, verdict.fault.value, verdict.error)
            for row, verdict in zip(self.rows.rows, self.score.verdicts, strict=True)
            if verdict.error
        ]
        if wrong:
            yield from _table([("id", "fault", "message"), *wrong[:_SHOWN]], numbers_from=3)
            if len(wrong) > _SHOWN:
                yield f"… and {len(wrong) - _SHOWN} more; --json lists all"


@dataclass(frozen=True)
class UnknownReport:
    """The output for replies in an unknown call format. It has no metrics, because they would be wrong."""

    rows: GoldRows

    def to_json(self) -> JsonObject:
        """Return the same objects as `ScoreReport`, without metrics."""
        return {
            "metrics": {},
            "rows": [
                {"id": row.given_id, "tool_name": None, "exact_match": None, "ast_match": None, "error": _UNKNOWN}
                for row in self.rows.rows
            ],
            "formats": {"rows": self.rows.format.value, "replies": "unknown"},
        }

    def to_text(self) -> str:
        """Return the reason and the remedy."""
        return f"no metrics: {_UNKNOWN}"


def _most(wrong: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    return sorted(wrong, key=lambda item: (-item[0], item[1:]))[:_SHOWN]


def _table(lines: Sequence[tuple[str, ...]], numbers_from: int = 1) -> Iterator[str]:
    """Yield the lines of a table. Columns from index `numbers_from` on are right-aligned."""
    lines = [tuple(map(_printable, line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.rjust(width) if index >= numbers_from else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def _printable(cell: str) -> str:
    """Return a cell without control characters, because names of tools may come from a model."""
    return "".join(character if character.isprintable() else " " for character in cell)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _rounded(value: float | None) -> JsonValue:
    return None if value is None else round(value, 6)
