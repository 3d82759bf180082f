"""The second pass over the data: encodes every row as a training example or as held-out cases, on all CPUs."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

from tunemill_trainer.chat.encoding import Encoded
from tunemill_trainer.chat.templates import Choice, is_unrenderable
from tunemill_trainer.data.augmentation import Augmenter, Change, Changed
from tunemill_trainer.data.dataset import (
    Dataset,
    Split,
    SpooledRow,
    refuse_too_many_invalid,
    refuse_too_many_unrenderable,
)
from tunemill_trainer.data.findings import Findings, Problem, Rule, crash_problem
from tunemill_trainer.data.rows import JsonObject, Role
from tunemill_trainer.prepared import IGNORED, Case, PreparedWriter, case_line
from tunemill_trainer.process.parallel import batches, ordered_map

_BATCH = 128
"""The rows that a worker renders and tokenises per task."""


@dataclass
class SplitStats:
    """Statistics of one split.

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
        splits: the statistics of the rows of each split.
        cases: the number of held-out assistant turns.
        tokens: the number of tokens in the training rows.
        supervised: the number of these tokens that the loss includes.
        findings: the findings about rows that were excluded because of their length.
        changes: the number of training rows that augmentation changed or added, by kind.
    """

    splits: dict[Split, SplitStats] = field(default_factory=lambda: {split: SplitStats() for split in Split})
    cases: int = 0
    tokens: int = 0
    supervised: int = 0
    findings: Findings = field(default_factory=Findings)
    changes: Counter[Change] = field(default_factory=Counter)

    @property
    def train(self) -> SplitStats:
        """The statistics of the training rows."""
        return self.splits[Split.TRAIN]

    @property
    def validation(self) -> SplitStats:
        """The statistics of the validation rows."""
        return self.splits[Split.VALIDATION]

    @property
    def held_out(self) -> SplitStats:
        """The statistics of the held-out rows."""
        return self.splits[Split.HELD_OUT]

    def add_splits(self, other: "Examples") -> None:
        """Add the statistics of the splits of other rows."""
        for split, found in other.splits.items():
            self.splits[split].add(found)


@dataclass(frozen=True)
class UnusableRow:
    """A row that cannot be trained on with the template."""

    item: SpooledRow
    problem: Problem


@dataclass
class _Batch:
    """The result of a worker for some rows: the concatenated training rows, and the cases of the others as lines."""

    rows: int
    written: Examples = field(default_factory=Examples)
    lengths: list[int] = field(default_factory=list)
    input_ids: "array[int]" = field(default_factory=lambda: array("i"))
    labels: "array[int]" = field(default_factory=lambda: array("i"))
    cases: list[str] = field(default_factory=list)
    validation_cases: list[str] = field(default_factory=list)
    unfit: list[UnusableRow] = field(default_factory=list)

    def add(self, other: "_Batch") -> None:
        """Append the result for other rows."""
        self.rows += other.rows
        self.written.add_splits(other.written)
        self.written.findings.merge(other.written.findings)
        self.written.changes.update(other.written.changes)
        self.lengths += other.lengths
        self.input_ids += other.input_ids
        self.labels += other.labels
        self.cases += other.cases
        self.validation_cases += other.validation_cases
        self.unfit += other.unfit


def write(
    dataset: Dataset,
    encoder: "RowEncoder",
    writer: PreparedWriter,
    *,
    workers: int,
    unfit: Callable[[UnusableRow], None],
    tick: Callable[[int], None],
) -> Examples:
    """Encode and write all rows of a data set.

    Args:
        dataset: the result of the first pass.
        encoder: makes examples and cases of rows.
        writer: receives examples and cases.
        workers: the number of processes that encode.
        unfit: called for every row that cannot be trained on.
        tick: called with the number of rows that are done. It may raise to stop.
    """
    written = Examples()
    done = 0
    encode = partial(_encode, dataset, encoder)
    for batch in ordered_map(encode, batches(dataset.lines(), _BATCH, len), workers):
        tick(done)
        for row in batch.unfit:
            unfit(row)
        writer.add_examples(batch.lengths, batch.input_ids, batch.labels)
        for line in batch.cases:
            writer.add_case_line(line)
        for line in batch.validation_cases:
            writer.add_validation_case_line(line)
        written.add_splits(batch.written)
        written.cases += len(batch.cases)
        written.tokens += len(batch.labels)
        written.supervised += len(batch.labels) - batch.labels.count(IGNORED)
        written.findings.merge(batch.written.findings)
        written.changes.update(batch.written.changes)
        done += batch.rows
    return written


def write_usable(
    dataset: Dataset,
    encoder: "RowEncoder",
    writer: PreparedWriter,
    max_invalid_fraction: float,
    *,
    workers: int,
    tick: Callable[[int], None],
) -> Examples:
    """Encode and write the rows as `write` does, and check the share of those that cannot be used.

    Args:
        dataset: the result of the first pass. The findings are added to it.
        encoder: makes examples and cases of rows.
        writer: receives examples and cases.
        max_invalid_fraction: the maximum share of rows with errors.
        workers: the number of processes that encode.
        tick: called with the number of rows that are done. It may raise to stop.

    Raises:
        TooManyInvalidError: DatasetMalformed or DatasetInvalidRows.
    """
    unfit: list[UnusableRow] = []
    written = write(dataset, encoder, writer, workers=workers, unfit=unfit.append, tick=tick)
    dataset.findings.merge(written.findings)
    for row in unfit:
        if is_unrenderable(encoder.choice, row.problem):
            dataset.leave_out_unrenderable(row.item.row.source, row.problem)
        else:
            dataset.leave_out(row.item.row.source, [row.problem])
    refuse_too_many_invalid(dataset, max_invalid_fraction)
    refuse_too_many_unrenderable(dataset)
    return written


def _encode(dataset: Dataset, encoder: "RowEncoder", lines: Sequence[str]) -> _Batch:
    items = [dataset.row(line) for line in lines]
    try:
        return encoder.encode(items)
    except (MemoryError, OSError):
        raise  # out of memory or disk space: not the fault of a row
    except Exception:  # noqa: BLE001 - encode the rows one by one, so that a crash affects only one of them
        batch = _Batch(0)
        for item in items:
            try:
                batch.add(encoder.encode([item]))
            except (MemoryError, OSError):
                raise
            except Exception as error:  # noqa: BLE001 - as above
                batch.add(_Batch(1, unfit=[UnusableRow(item, crash_problem(error))]))
        return batch


@dataclass(frozen=True)
class RowEncoder:
    """Encodes rows as examples and cases.

    Attributes:
        choice: the chat template.
        max_length: the maximum length in tokens; longer rows are excluded and counted.
        loss_on_all: whether the loss includes all tokens.
        augmenter: changes training rows; None leaves them as they are.
    """

    choice: Choice
    max_length: int
    loss_on_all: bool = False
    augmenter: Augmenter | None = None

    def encode(self, items: Sequence[SpooledRow]) -> "_Batch":
        """Return the training examples and the cases of rows."""
        batch = _Batch(len(items))
        judged: dict[Split, list[tuple[SpooledRow, Encoded]]] = {Split.VALIDATION: [], Split.HELD_OUT: []}
        for item, encoded in zip(items, self._encoded(items, batch), strict=True):
            split = batch.written.splits[item.split]
            length = _longest(encoded)
            if encoded.problem is not None and encoded.problem.rule is Rule.OVERLONG:
                split.leave_out(self.max_length + 1)
                batch.written.findings.add(item.row.source, [encoded.problem])
            elif encoded.problem is not None:
                batch.unfit.append(UnusableRow(item, encoded.problem))
            elif length > self.max_length:
                split.leave_out(length)
                maximum = f"more than the maximum of {self.max_length}"
                problem = Problem(Rule.OVERLONG, f"the row has {length} tokens, {maximum}")
                batch.written.findings.add(item.row.source, [problem])
            else:
                split.keep(item, encoded)
                if item.split in {Split.TRAIN, Split.REPLAY}:
                    self._add(encoded, batch)
                else:
                    judged[item.split].append((item, encoded))
        batch.cases = [case_line(case) for case in _cases(judged[Split.HELD_OUT], self.choice)]
        batch.validation_cases = [case_line(case) for case in _cases(judged[Split.VALIDATION], self.choice)]
        return batch

    def _encoded(self, items: Sequence[SpooledRow], batch: _Batch) -> list[Encoded]:
        """Return each row as examples, and add the rows of the augmentation to the batch.

        A changed row that is too long, or that the template cannot render, is used unchanged.
        """
        encode = partial(self.choice.encoder.encode, max_length=self.max_length)
        if self.augmenter is None:
            return list(encode([item.row for item in items]))
        changes = [
            self.augmenter.change(item.row, item.number) if item.split is Split.TRAIN else Changed(item.row)
            for item in items
        ]
        found = list(encode([change.row for change in changes]))
        unusable = [at for at, change in enumerate(changes) if change.kinds and not self._is_usable(found[at])]
        for at, encoded in zip(unusable, encode([items[at].row for at in unusable]), strict=True):
            found[at] = encoded
        for at in {*range(len(items))}.difference(unusable):
            batch.written.changes.update(changes[at].kinds)
        for encoded in encode([change.added for change in changes if change.added is not None]):
            if self._is_usable(encoded):
                self._add(encoded, batch)
                batch.written.train.lengths.update(len(example.input_ids) for example in encoded.examples)
                batch.written.train.calls[""] += 1
                batch.written.changes[Change.ADDED] += 1
        return found

    def _is_usable(self, encoded: Encoded) -> bool:
        return encoded.problem is None and _longest(encoded) <= self.max_length

    def _add(self, encoded: Encoded, batch: _Batch) -> None:
        # If the loss includes all tokens, use the complete conversation once.
        for example in encoded.examples[-1:] if self.loss_on_all else encoded.examples:
            batch.lengths.append(len(example.input_ids))
            # Extending an array by an array copies all bytes at once; by a list, it converts each number.
            batch.input_ids.extend(array("i", example.input_ids))
            batch.labels.extend(array("i", example.labels(everything=self.loss_on_all)))


def _longest(encoded: Encoded) -> int:
    """Return the tokens of a row's longest example."""
    return max((len(example.input_ids) for example in encoded.examples), default=0)


def _cases(rows: Sequence[tuple[SpooledRow, Encoded]], choice: Choice) -> Iterator[Case]:
    turns = [(item, turn, tuple(ids)) for item, encoded in rows for turn, ids in encoded.turns]
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
