"""The second pass over the data: encodes every row as a training example or as held-out cases, on all CPUs."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

from tunemill_trainer.chat.encoding import Encoded
from tunemill_trainer.chat.templates import Choice
from tunemill_trainer.data.dataset import Dataset, SpooledRow
from tunemill_trainer.data.findings import Findings, Problem, Rule, crash_problem
from tunemill_trainer.data.rows import JsonObject, Role
from tunemill_trainer.prepared import IGNORED, Case, PreparedWriter, case_line
from tunemill_trainer.process.parallel import batches, ordered_map

_BATCH = 128
"""The rows that a worker renders and tokenises per task."""


@dataclass
class SplitStats:
    """Statistics of one split, training or held-out.

    Attributes:
        rows: the number of rows that were written.
        lengths: the number of training examples by length in tokens. A row has several examples if the template
            renders earlier turns differently when others follow.
        calls: the number of calls in these rows by tool; the empty name counts assistant turns without a call.
        overlong: the number of rows that were excluded because of their length.
        shortest_overlong: the length of the shortest of them, in tokens.
    """

    rows: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    overlong: int = 0
    shortest_overlong: int = 0

    def keep(self, item: SpooledRow, encoded: Encoded) -> None:
        """Count a row that is written."""
        self.rows += 1
        self.lengths.update(len(example.input_ids) for example in encoded.examples)
        for turn, _ in encoded.turns:
            self.calls.update([call.name for call in item.row.messages[turn.message].calls] or [""])

    def leave_out(self, length: int) -> None:
        """Count a row that is too long."""
        self.add(SplitStats(overlong=1, shortest_overlong=length))

    def add(self, other: "SplitStats") -> None:
        """Add the statistics of other rows."""
        shortest = {self.shortest_overlong, other.shortest_overlong} - {0}
        self.rows += other.rows
        self.lengths.update(other.lengths)
        self.calls.update(other.calls)
        self.overlong += other.overlong
        self.shortest_overlong = min(shortest, default=0)

    def to_json(self) -> JsonObject:
        """Return the statistics for the report."""
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
        return {
            "rows": self.rows,
            "examples": self.lengths.total(),
            "overlongRows": self.overlong,
            "tokens": {name: self._length_at(share) for name, share in shares.items() if self.rows},
            "callsByTool": {name: count for name, count in sorted(self.calls.items()) if name},
            "turnsWithoutCall": self.calls[""],
        }

    def _length_at(self, share: float) -> int:
        """Return a quantile of the lengths."""
        position = int(share * (self.lengths.total() - 1))
        lengths = sorted(self.lengths)
        ends = accumulate(self.lengths[length] for length in lengths)
        return next(length for length, end in zip(lengths, ends, strict=True) if position < end)


@dataclass
class Examples:
    """Statistics of what was written.

    Attributes:
        train: the statistics of the training rows.
        held_out: the statistics of the held-out rows.
        cases: the number of held-out assistant turns.
        tokens: the number of tokens in the training rows.
        supervised: the number of these tokens that the loss includes.
        findings: the findings about rows that were excluded because of their length.
    """

    train: SplitStats = field(default_factory=SplitStats)
    held_out: SplitStats = field(default_factory=SplitStats)
    cases: int = 0
    tokens: int = 0
    supervised: int = 0
    findings: Findings = field(default_factory=Findings)


@dataclass(frozen=True)
class UnusableRow:
    """A row that cannot be trained on with the template."""

    item: SpooledRow
    problem: Problem


@dataclass
class _Batch:
    """The result of a worker for some rows: the concatenated training rows, and the cases as lines."""

    rows: int
    written: Examples = field(default_factory=Examples)
    lengths: list[int] = field(default_factory=list)
    input_ids: "array[int]" = field(default_factory=lambda: array("i"))
    labels: "array[int]" = field(default_factory=lambda: array("i"))
    cases: list[str] = field(default_factory=list)
    unfit: list[UnusableRow] = field(default_factory=list)

    def add(self, other: "_Batch") -> None:
        """Append the result for other rows."""
        self.rows += other.rows
        self.written.train.add(other.written.train)
        self.written.held_out.add(other.written.held_out)
        self.written.findings.merge(other.written.findings)
        self.lengths += other.lengths
        self.input_ids += other.input_ids
        self.labels += other.labels
        self.cases += other.cases
        self.unfit += other.unfit


def write(
    dataset: Dataset,
    choice: Choice,
    writer: PreparedWriter,
    *,
    max_length: int,
    loss_on_all: bool,
    workers: int,
    unfit: Callable[[UnusableRow], None],
    tick: Callable[[int], None],
) -> Examples:
    """Encode and write all rows of a data set.

    Args:
        dataset: the result of the first pass.
        choice: the chat template.
        writer: receives examples and cases.
        max_length: the maximum length in tokens; longer rows are excluded and counted.
        loss_on_all: whether the loss includes all tokens.
        workers: the number of processes that encode.
        unfit: called for every row that cannot be trained on.
        tick: called with the number of rows that are done. It may raise to stop.
    """
    written = Examples()
    done = 0
    encode = partial(_encode, dataset, choice, max_length, loss_on_all)
    for batch in ordered_map(encode, batches(dataset.lines(), _BATCH, len), workers):
        tick(done)
        for row in batch.unfit:
            unfit(row)
        writer.add_examples(batch.lengths, batch.input_ids, batch.labels)
        for line in batch.cases:
            writer.add_case_line(line)
        written.train.add(batch.written.train)
        written.held_out.add(batch.written.held_out)
        written.cases += len(batch.cases)
        written.tokens += len(batch.labels)
        written.supervised += len(batch.labels) - batch.labels.count(IGNORED)
        written.findings.merge(batch.written.findings)
        done += batch.rows
    return written


def _encode(dataset: Dataset, choice: Choice, max_length: int, loss_on_all: bool, lines: Sequence[str]) -> _Batch:
    encode = partial(_encode_rows, choice=choice, max_length=max_length, loss_on_all=loss_on_all)
    items = [dataset.row(line) for line in lines]
    try:
        return encode(items)
    except (MemoryError, OSError):
        raise  # out of memory or disk space: not the fault of a row
    except Exception:  # noqa: BLE001 - encode the rows one by one, so that a crash affects only one of them
        batch = _Batch(0)
        for item in items:
            try:
                batch.add(encode([item]))
            except (MemoryError, OSError):
                raise
            except Exception as error:  # noqa: BLE001 - as above
                batch.add(_Batch(1, unfit=[UnusableRow(item, crash_problem(error))]))
        return batch


def _encode_rows(items: Sequence[SpooledRow], choice: Choice, max_length: int, *, loss_on_all: bool) -> _Batch:
    batch = _Batch(len(items))
    held_out: list[tuple[SpooledRow, Encoded]] = []
    for item, encoded in zip(items, choice.encoder.encode([item.row for item in items], max_length), strict=True):
        split = batch.written.held_out if item.held_out else batch.written.train
        length = max((len(example.input_ids) for example in encoded.examples), default=0)
        if encoded.problem is not None and encoded.problem.rule is Rule.OVERLONG:
            split.leave_out(max_length + 1)
            batch.written.findings.add(item.row.source, [encoded.problem])
        elif encoded.problem is not None:
            batch.unfit.append(UnusableRow(item, encoded.problem))
        elif length > max_length:
            split.leave_out(length)
            problem = Problem(Rule.OVERLONG, f"the row has {length} tokens, more than the maximum of {max_length}")
            batch.written.findings.add(item.row.source, [problem])
        else:
            split.keep(item, encoded)
            if item.held_out:
                held_out.append((item, encoded))
            else:
                # If the loss includes all tokens, use the complete conversation once.
                for example in encoded.examples[-1:] if loss_on_all else encoded.examples:
                    batch.lengths.append(len(example.input_ids))
                    # Extending an array by an array copies all bytes at once; by a list, it converts each number.
                    batch.input_ids.extend(array("i", example.input_ids))
                    batch.labels.extend(array("i", example.labels(everything=loss_on_all)))
    batch.cases = [case_line(case) for case in _cases(held_out, choice)]
    return batch


def _cases(held_out: Sequence[tuple[SpooledRow, Encoded]], choice: Choice) -> Iterator[Case]:
    turns = [(item, turn, tuple(ids)) for item, encoded in held_out for turn, ids in encoded.turns]
    prompts = choice.encoder.all_prompt_ids(
        [(item.row.messages[: turn.message], item.row.tools) for item, turn, _ in turns]
    )
    for (item, turn, answer_ids), prompt_ids in zip(turns, prompts, strict=True):
        row = item.row
        number = sum(message.role is Role.ASSISTANT for message in row.messages[: turn.message + 1])
        yield Case(
            id=f"{row.source.file}:{row.source.line}#{number}",
            row=item.number,
            messages=row.messages[: turn.message],
            tools=row.tools,
            prompt_ids=tuple(prompt_ids),
            gold=row.messages[turn.message],
            answer_ids=answer_ids,
        )
