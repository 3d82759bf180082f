"""The second pass over the data: every row becomes a training example or held-out cases."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from tunemill_trainer.chat.encoding import Encoded
from tunemill_trainer.chat.templates import Choice
from tunemill_trainer.data.dataset import Dataset, SpooledRow
from tunemill_trainer.data.findings import Problem
from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.prepared import IGNORED, Case, PreparedWriter

_BATCH = 256
"""Rows that are rendered and tokenised together: enough to keep the tokenizer's threads busy."""


@dataclass
class Side:
    """One side of the split.

    Attributes:
        rows: that were written.
        lengths: of these, in tokens.
        calls: of these, by tool; the empty name counts assistant turns without a call.
        overlong: rows that were left out because of their length.
        shortest_overlong: the length of the shortest of them.
    """

    rows: int = 0
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    calls: Counter[str] = field(default_factory=Counter)
    overlong: int = 0
    shortest_overlong: int = 0

    def keep(self, item: SpooledRow, encoded: Encoded) -> None:
        """Count a row that is written."""
        self.rows += 1
        self.lengths.append(len(encoded.input_ids))
        for turn in encoded.turns:
            self.calls.update([call.name for call in item.row.messages[turn.message].calls] or [""])

    def leave_out(self, encoded: Encoded) -> None:
        """Count a row that is too long."""
        length = len(encoded.input_ids)
        self.shortest_overlong = min(self.shortest_overlong or length, length)
        self.overlong += 1

    def to_json(self) -> JsonObject:
        """Return the figures for the report."""
        ordered = sorted(self.lengths)
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {
            "rows": self.rows,
            "overlongRows": self.overlong,
            "tokens": {name: ordered[int(share * (len(ordered) - 1))] for name, share in shares.items() if ordered},
            "callsByTool": {name: count for name, count in sorted(self.calls.items()) if name},
            "turnsWithoutCall": self.calls[""],
        }


@dataclass
class Examples:
    """What was written.

    Attributes:
        train: the training rows.
        held_out: the held-out rows.
        cases: held-out assistant turns.
        tokens: of the training rows.
        supervised: of these, those that the loss is on.
    """

    train: Side = field(default_factory=Side)
    held_out: Side = field(default_factory=Side)
    cases: int = 0
    tokens: int = 0
    supervised: int = 0


@dataclass(frozen=True)
class Unfit:
    """A row that cannot be learnt from with the template."""

    item: SpooledRow
    problem: Problem


def write(
    dataset: Dataset,
    choice: Choice,
    writer: PreparedWriter,
    *,
    max_length: int,
    on_everything: bool,
    unfit: Callable[[Unfit], None],
    tick: Callable[[int], None],
) -> Examples:
    """Write all rows of a dataset.

    Args:
        dataset: the first pass's result.
        choice: the template to render with.
        writer: takes examples and cases.
        max_length: longer rows are left out and counted.
        on_everything: whether the loss is on all tokens.
        unfit: called for every row that cannot be learnt from; may raise to give the template up.
        tick: called with the rows done so far; may raise to stop.
    """
    written = Examples()
    done = 0
    for batch in _batches(dataset):
        tick(done)
        for item, encoded in zip(batch, choice.encoder.encode([item.row for item in batch]), strict=True):
            side = written.held_out if item.held_out else written.train
            if encoded.problem is not None:
                unfit(Unfit(item, encoded.problem))
            elif len(encoded.input_ids) > max_length:
                side.leave_out(encoded)
            else:
                side.keep(item, encoded)
                if item.held_out:
                    written.cases += _write_cases(item, encoded, choice, writer)
                else:
                    labels = encoded.labels(everything=on_everything)
                    written.tokens += len(labels)
                    written.supervised += len(labels) - labels.count(IGNORED)
                    writer.add_example(encoded.input_ids, labels)
        done += len(batch)
    return written


def _write_cases(item: SpooledRow, encoded: Encoded, choice: Choice, writer: PreparedWriter) -> int:
    row = item.row
    for number, turn in enumerate(encoded.turns, start=1):
        history = row.messages[: turn.message]
        writer.add_case(
            Case(
                id=f"{row.source.file}:{row.source.line}#{number}",
                row=item.number,
                messages=history,
                tools=row.tools,
                prompt_ids=tuple(choice.encoder.prompt_ids(history, row.tools)),
                gold=row.messages[turn.message],
                answer_tokens=turn.end - turn.start,
            )
        )
    return len(encoded.turns)


def _batches(items: Iterable[SpooledRow]) -> Iterator[list[SpooledRow]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
