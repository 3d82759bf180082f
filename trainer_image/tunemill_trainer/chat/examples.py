"""The second pass over the data: every row becomes a training example or held-out cases, on all CPUs."""

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
"""Rows that a worker renders and tokenises at once."""


@dataclass
class Side:
    """One side of the split.

    Attributes:
        rows: that were written.
        lengths: of their examples, in tokens: how many have which. A row has several examples where the template
            renders earlier turns differently once others follow.
        calls: of these, by tool; the empty name counts assistant turns without a call.
        overlong: rows that were left out because of their length.
        shortest_overlong: the length of the shortest of them.
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
        self.add(Side(overlong=1, shortest_overlong=length))

    def add(self, other: "Side") -> None:
        """Count what others have counted."""
        shortest = {self.shortest_overlong, other.shortest_overlong} - {0}
        self.rows += other.rows
        self.lengths.update(other.lengths)
        self.calls.update(other.calls)
        self.overlong += other.overlong
        self.shortest_overlong = min(shortest, default=0)

    def to_json(self) -> JsonObject:
        """Return the figures for the report."""
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
        """Return the length up to which a share of the rows goes."""
        position = int(share * (self.lengths.total() - 1))
        lengths = sorted(self.lengths)
        ends = accumulate(self.lengths[length] for length in lengths)
        return next(length for length, end in zip(lengths, ends, strict=True) if position < end)


@dataclass
class Examples:
    """What was written.

    Attributes:
        train: the training rows.
        held_out: the held-out rows.
        cases: held-out assistant turns.
        tokens: of the training rows.
        supervised: of these, those that the loss is on.
        findings: rows that were left out because of their length.
    """

    train: Side = field(default_factory=Side)
    held_out: Side = field(default_factory=Side)
    cases: int = 0
    tokens: int = 0
    supervised: int = 0
    findings: Findings = field(default_factory=Findings)


@dataclass(frozen=True)
class Unfit:
    """A row that cannot be learnt from with the template."""

    item: SpooledRow
    problem: Problem


@dataclass
class _Batch:
    """What a worker made of some rows: the training rows one after the other, the cases as lines."""

    rows: int
    written: Examples = field(default_factory=Examples)
    lengths: list[int] = field(default_factory=list)
    input_ids: "array[int]" = field(default_factory=lambda: array("i"))
    labels: "array[int]" = field(default_factory=lambda: array("i"))
    cases: list[str] = field(default_factory=list)
    unfit: list[Unfit] = field(default_factory=list)

    def add(self, other: "_Batch") -> None:
        """Take over what was made of other rows."""
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
    on_everything: bool,
    workers: int,
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
        workers: processes to encode with.
        unfit: called for every row that cannot be learnt from; may raise to give the template up.
        tick: called with the rows done so far; may raise to stop.
    """
    written = Examples()
    done = 0
    encode = partial(_encode, dataset, choice, max_length, on_everything)
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


def _encode(dataset: Dataset, choice: Choice, max_length: int, on_everything: bool, lines: Sequence[str]) -> _Batch:
    encode = partial(_encode_rows, choice=choice, max_length=max_length, on_everything=on_everything)
    items = [dataset.row(line) for line in lines]
    try:
        return encode(items)
    except (MemoryError, OSError):
        raise  # what the machine lacks has reasons of its own
    except Exception:  # noqa: BLE001 - one row must not take the others with it: they are encoded one by one
        batch = _Batch(0)
        for item in items:
            try:
                batch.add(encode([item]))
            except (MemoryError, OSError):
                raise
            except Exception as error:  # noqa: BLE001 - as above
                batch.add(_Batch(1, unfit=[Unfit(item, crash_problem(error))]))
        return batch


def _encode_rows(items: Sequence[SpooledRow], choice: Choice, max_length: int, *, on_everything: bool) -> _Batch:
    batch = _Batch(len(items))
    held_out: list[tuple[SpooledRow, Encoded]] = []
    for item, encoded in zip(items, choice.encoder.encode([item.row for item in items], max_length), strict=True):
        side = batch.written.held_out if item.held_out else batch.written.train
        length = max((len(example.input_ids) for example in encoded.examples), default=0)
        if encoded.problem is not None and encoded.problem.rule is Rule.OVERLONG:
            side.leave_out(max_length + 1)
            batch.written.findings.add(item.row.source, [encoded.problem])
        elif encoded.problem is not None:
            batch.unfit.append(Unfit(item, encoded.problem))
        elif length > max_length:
            side.leave_out(length)
            problem = Problem(Rule.OVERLONG, f"the row has {length} tokens, and {max_length} are allowed")
            batch.written.findings.add(item.row.source, [problem])
        else:
            side.keep(item, encoded)
            if item.held_out:
                held_out.append((item, encoded))
            else:
                # With the loss on everything, the whole conversation once; its turns are no replies to a prompt.
                for example in encoded.examples[-1:] if on_everything else encoded.examples:
                    batch.lengths.append(len(example.input_ids))
                    # An array takes another array at once, and a list number by number.
                    batch.input_ids.extend(array("i", example.input_ids))
                    batch.labels.extend(array("i", example.labels(everything=on_everything)))
    batch.cases = [case_line(case) for case in _cases(held_out, choice)]
    return batch


def _cases(held_out: Sequence[tuple[SpooledRow, Encoded]], choice: Choice) -> Iterator[Case]:
    asked = [(item, turn, tuple(ids)) for item, encoded in held_out for turn, ids in encoded.turns]
    prompts = choice.encoder.all_prompt_ids(
        [(item.row.messages[: turn.message], item.row.tools) for item, turn, _ in asked]
    )
    for (item, turn, answer_ids), prompt_ids in zip(asked, prompts, strict=True):
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
