"""The first pass over the data: every row read, checked, told from its duplicates, and spooled with its side.

Rows are spooled to disk and not kept: of each row only its fingerprint and its draw stay in memory.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from tunemill_api import finetune as api
from tunemill_api.failures import Reason

from tunemill_trainer.data import formats, split
from tunemill_trainer.data.findings import Findings, Problem, Rule, Severity
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record, records
from tunemill_trainer.data.rows import Role, Row, Source, Tool
from tunemill_trainer.data.sources import Data
from tunemill_trainer.errors import StageError

_SAMPLES = 100
"""Rows that tell the format."""
_TRAIN_ONLY = 1.0
"""The draw of a row that is never held out."""


@dataclass
class Features:
    """What occurs anywhere in the rows: a chat template has to carry it, and the tokenizer may need its tags."""

    system: bool = False
    tools: bool = False
    calls: bool = False
    responses: bool = False
    reasoning: bool = False

    def see(self, row: Row) -> None:
        """Take note of a row."""
        self.tools = self.tools or bool(row.tools)
        for message in row.messages:
            self.system = self.system or message.role is Role.SYSTEM
            self.calls = self.calls or bool(message.calls)
            self.responses = self.responses or message.role is Role.TOOL
            self.reasoning = self.reasoning or bool(message.reasoning)


@dataclass
class Dataset:
    """What was read. The rows are in the spool.

    Attributes:
        format: of the rows.
        spool: holds the usable rows.
        rows: that were read.
        invalid: rows that were left out because they are wrong.
        duplicates: rows that were left out because they occurred before.
        silent: rows that were left out because no assistant speaks in them.
        kept: rows in the spool.
        tools: names of the tools that rows offer.
        features: of the usable rows.
        findings: everything that was found.
        cut: rows whose draw is below it are held out.
    """

    format: api.DatasetFormat
    spool: Path
    rows: int = 0
    invalid: int = 0
    duplicates: int = 0
    silent: int = 0
    kept: int = 0
    tools: set[str] = field(default_factory=set)
    features: Features = field(default_factory=Features)
    findings: Findings = field(default_factory=Findings)
    cut: float = 0.0

    def leave_out(self, source: Source, problems: Iterable[Problem]) -> None:
        """Count a row that is wrong."""
        self.invalid += 1
        self.findings.add(source, problems)

    def __iter__(self) -> Iterator["SpooledRow"]:
        """Yield the usable rows in the order of the data, held-out rows from a file of their own first."""
        with self.spool.open(encoding="utf-8") as lines:
            for line in lines:
                number, drawn, row = json.loads(line)
                yield SpooledRow(number, Row.from_json(row), held_out=drawn < self.cut)


@dataclass(frozen=True)
class SpooledRow:
    """A usable row, its number among the rows that were read, and its side."""

    number: int
    row: Row
    held_out: bool


def read(
    spec: api.Dataset, loss_on: api.LossOn, train: Data, evaluation: Data | None, spool: Path, tick: Callable[[], None]
) -> Dataset:
    """Read the training data and, where spec.dataset.evaluation.uri names it, the held-out data.

    Args:
        spec: the wish.
        loss_on: with Assistant, rows without an assistant turn are of no use.
        train: the files of spec.dataset.uri.
        evaluation: the files of spec.dataset.evaluation.uri. Its rows are read first: where both hold the same
            conversation, it is the training row that is left out, so that nothing is judged that was learnt.
        spool: a file to write.
        tick: called with every row; may raise to stop.

    Raises:
        StageError: DatasetEmpty, DatasetFormatUnknown, DatasetMalformed, DatasetInvalidRows, DatasetTooSmall or
            NothingToLearn.
    """
    chosen = spec.format if spec.format is not api.DatasetFormat.AUTO else _detect(train)
    dataset = Dataset(chosen, spool)
    with spool.open("w", encoding="utf-8") as file:
        reader = _Reader(dataset, file, keeps_silent=loss_on is api.LossOn.ALL, seed=spec.evaluation.seed, tick=tick)
        if evaluation is not None:
            reader.read(_all_records(evaluation), evaluation.uri, drawn=0.0)
        held_out = dataset.kept
        stream = _all_records(train)
        limited = islice(stream, spec.max_rows) if spec.max_rows else stream
        reader.read(limited, train.uri, drawn=None if evaluation is None else _TRAIN_ONLY)
    refuse_too_many_invalid(dataset, float(spec.max_invalid_fraction))
    if dataset.silent and not dataset.kept:
        raise StageError(
            Reason.NOTHING_TO_LEARN, f"expected assistant messages in {train.uri}, found none in {dataset.silent} rows"
        )
    if evaluation is None:
        dataset.cut = split.cut(reader.draws, float(spec.evaluation.fraction))
    else:
        dataset.cut = _TRAIN_ONLY
        _refuse_empty_side(held_out, dataset.kept - held_out, evaluation.uri, train.uri)
    return dataset


def refuse_too_many_invalid(dataset: Dataset, allowed: float) -> None:
    """Raise DatasetMalformed or DatasetInvalidRows, naming rows, if more than the allowed share was wrong."""
    if dataset.invalid <= allowed * dataset.rows:
        return
    wrong = [finding for finding in dataset.findings.listed if finding.problem.rule.severity is Severity.ERROR]
    malformed = wrong[0].problem.rule is Rule.NOT_JSON
    shown: list[str] = []
    for finding in wrong:
        if len(shown) < 3 and not any(text.startswith(f"{finding.source}:") for text in shown):
            shown.append(str(finding))
    more = dataset.invalid - len(shown)
    raise StageError(
        Reason.DATASET_MALFORMED if malformed else Reason.DATASET_INVALID_ROWS,
        f"{dataset.invalid} of {dataset.rows} rows are wrong, spec.dataset.maxInvalidFraction allows "
        f"{int(allowed * dataset.rows)}. {'; '.join(shown)}" + (f"; and {more} more rows" if more else ""),
    )


class _Reader:
    def __init__(
        self, dataset: Dataset, spool: TextIO, *, keeps_silent: bool, seed: int, tick: Callable[[], None]
    ) -> None:
        self.draws = array("d")
        self._dataset = dataset
        self._spool = spool
        self._reader = RowReader(dataset.format)
        self._keeps_silent = keeps_silent
        self._seed = seed
        self._tick = tick
        self._rows: set[bytes] = set()
        self._held_out: set[bytes] = set()

    def read(self, stream: Iterator[Record], uri: str, drawn: float | None) -> None:
        """Read one side, or, where `drawn` is None, rows whose side follows from their conversation."""
        before = self._dataset.rows
        for record in stream:
            self._tick()
            self._dataset.rows += 1
            row = self._usable(record)
            if row is not None:
                self._keep(row, drawn)
        if self._dataset.rows == before:
            raise StageError(Reason.DATASET_EMPTY, f"expected rows in {uri}, found none")

    def _usable(self, record: Record) -> Row | None:
        found = self._reader.read(record)
        if found.row is None:
            self._dataset.leave_out(record.source, found.problems)
        else:
            self._dataset.findings.add(record.source, found.problems)
        return found.row

    def _keep(self, row: Row, drawn: float | None) -> None:
        dataset = self._dataset
        conversation = split.fingerprint(row.messages)
        whole = _row_fingerprint(conversation, row.tools)
        if whole in self._rows or conversation in self._held_out:
            dataset.duplicates += 1
            dataset.findings.add(row.source, [Problem(Rule.DUPLICATE, "the same row, or held-out row, came before")])
            return
        self._rows.add(whole)
        if drawn == 0.0:
            self._held_out.add(conversation)
        silent = not any(message.role is Role.ASSISTANT for message in row.messages)
        if silent and not self._keeps_silent:
            dataset.silent += 1
            return
        if drawn is None:
            drawn = _TRAIN_ONLY if silent else split.draw(conversation, self._seed)
            self.draws.append(drawn)
        dataset.kept += 1
        dataset.tools.update(tool.name for tool in row.tools)
        dataset.features.see(row)
        self._spool.write(json.dumps([dataset.rows, drawn, row.to_json()], ensure_ascii=False) + "\n")


def _all_records(data: Data) -> Iterator[Record]:
    return chain.from_iterable(records(file) for file in data.files)


def _detect(data: Data) -> api.DatasetFormat:
    samples = list(islice(_all_records(data), _SAMPLES))
    if not samples:
        raise StageError(Reason.DATASET_EMPTY, f"expected rows in {data.uri}, found none")
    values = [sample.value for sample in samples if sample.value is not None]
    if not values:
        raise StageError(Reason.DATASET_MALFORMED, f"{samples[0].source}: {samples[0].error}")
    return formats.detect(values, data.uri)


def _row_fingerprint(conversation: bytes, tools: tuple[Tool, ...]) -> bytes:
    """Return what tells rows apart: the conversation and the tools that it offers."""
    offered = json.dumps([tool.to_json() for tool in tools], sort_keys=True)
    return hashlib.sha256(conversation + offered.encode()).digest()[:16]


def _refuse_empty_side(held_out: int, trained: int, evaluation: str, train: str) -> None:
    for count, uri in ((held_out, evaluation), (trained, train)):
        if not count:
            raise StageError(
                Reason.DATASET_TOO_SMALL,
                f"expected at least one usable row in {uri} that occurs on one side only, found none",
            )
