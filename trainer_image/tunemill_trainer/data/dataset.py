"""The first pass over the data: every row read, checked, told from its duplicates, and spooled with its side.

Rows are read by all CPUs, put into order again, and spooled to disk: none stays in memory.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from tunemill_api import data as api
from tunemill_api.failures import Reason

from tunemill_trainer.data import formats, split
from tunemill_trainer.data.files import Data
from tunemill_trainer.data.findings import Findings, Problem, Rule, Severity, crash_problem
from tunemill_trainer.data.memo import Memo, Remembered
from tunemill_trainer.data.reading import MEMORY, RowReader
from tunemill_trainer.data.records import Line, Record, records, unparsed
from tunemill_trainer.data.rows import Message, Role, Row, Source, Tool
from tunemill_trainer.data.seen import Seen
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.bounds import OutOfBoundsError
from tunemill_trainer.process.parallel import batches, ordered_map

_log = logging.getLogger(__name__)

HELD_OUT, TRAIN_ONLY = 0.0, 1.0
"""The draws of rows that are always held out, and never."""

_BATCH = 256
"""Rows that a worker reads at once."""
_AS_OBJECTS = 25
"""Bytes that JSON takes as Python objects at most, a character: `[[],[],…`."""
_FEWEST_CALLS = 20
"""Below so many calls of one tool, chance alone makes tools uneven."""


UNRENDERABLE_FRACTION = 0.05
"""The share of rows that may be left out because the base model's own chat template cannot render them."""


@dataclass
class Features:
    """What occurs in the rows: a chat template has to carry it, and the tokenizer may need its tags.

    Everything but parallel calls counts when it occurs anywhere.

    Attributes:
        rows: that were seen.
        parallel: of these, rows with several calls in one turn.
    """

    system: bool = False
    tools: bool = False
    calls: bool = False
    responses: bool = False
    reasoning: bool = False
    rows: int = 0
    parallel: int = 0

    @property
    def many_parallel(self) -> bool:
        """Whether more rows have parallel calls than may be left out.

        Some templates, such as Llama 3.1's, write one call a turn.
        """
        return self.parallel > UNRENDERABLE_FRACTION * self.rows

    def see(self, row: Row) -> None:
        """Take note of a row."""
        self.rows += 1
        self.parallel += any(len(message.calls) > 1 for message in row.messages)
        self.tools = self.tools or bool(row.tools)
        for message in row.messages:
            self.system = self.system or message.role is Role.SYSTEM
            self.calls = self.calls or bool(message.calls)
            self.responses = self.responses or message.role is Role.TOOL
            self.reasoning = self.reasoning or bool(message.reasoning)

    def add(self, other: "Features") -> None:
        """Take note of what others have seen."""
        self.rows += other.rows
        self.parallel += other.parallel
        for name in ("system", "tools", "calls", "responses", "reasoning"):
            setattr(self, name, getattr(self, name) or getattr(other, name))


@dataclass
class Dataset:
    """What was read. The rows are in the spool.

    Attributes:
        format: of the rows.
        spool: holds the usable rows.
        rows: that were read.
        invalid: rows that were left out because they are wrong.
        duplicates: rows that were left out because they occurred before.
        leaked: training rows that were left out because a held-out row of a file of its own asks the same.
        silent: rows that were left out because no assistant speaks in them.
        unrenderable: rows that were left out because the base model's own chat template cannot render them.
        kept: rows in the spool.
        offers: the tools that rows offer, each with the first row that does.
        calls: of the usable rows, by tool.
        features: of the rows that can be read.
        findings: everything that was found.
        cut: rows whose draw is below it are held out.
    """

    format: api.DatasetFormat
    spool: Path
    rows: int = 0
    invalid: int = 0
    duplicates: int = 0
    leaked: int = 0
    silent: int = 0
    unrenderable: int = 0
    kept: int = 0
    offers: dict[str, Source] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    features: Features = field(default_factory=Features)
    findings: Findings = field(default_factory=Findings)
    cut: float = 0.0

    def leave_out(self, source: Source, problems: Iterable[Problem]) -> None:
        """Count a row that is wrong."""
        self.invalid += 1
        self.findings.add(source, problems)

    def leave_out_unrenderable(self, source: Source, problem: Problem) -> None:
        """Count a row that the base model's own chat template cannot render."""
        self.unrenderable += 1
        self.findings.add(source, [problem])

    def lines(self) -> Iterator[str]:
        """Yield the usable rows as they are spooled: in the order of the data, a file of held-out rows first."""
        with self.spool.open(encoding="utf-8") as lines:
            yield from lines

    def row(self, line: str) -> "SpooledRow":
        """Return the row of a spooled line."""
        number, drawn, (file, at, unit), messages, tools = json.loads(line)
        row = Row(tuple(Message.from_json(each) for each in messages), _tools(tools), Source(file, at, unit))
        return SpooledRow(number, row, held_out=drawn < self.cut)

    def __iter__(self) -> Iterator["SpooledRow"]:
        """Yield the usable rows."""
        return map(self.row, self.lines())


@dataclass(frozen=True)
class SpooledRow:
    """A usable row, its number among the rows that were read, and its side."""

    number: int
    row: Row
    held_out: bool


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        format: Auto looks at the first ones.
        contract: spec.tools, where they are given.
        drops_thoughts: whether what assistants think is left out.
        last_turn_only: whether of a row's assistant turns only the last one is learnt.
        keeps_silent: whether rows without an assistant turn are of use.
        seed: draws the side of a row.
        workers: processes to read with.
        tool_ratio: so many times more calls of one tool than of another are worth a word.
    """

    format: api.DatasetFormat = api.DatasetFormat.AUTO
    contract: tuple[Tool, ...] = ()
    drops_thoughts: bool = False
    last_turn_only: bool = False
    keeps_silent: bool = False
    seed: int = 42
    workers: int = 1
    tool_ratio: float = 10.0


def read(
    spec: api.Dataset, how: Reading, train: Data, evaluation: Data | None, spool: Path, tick: Callable[[], None]
) -> Dataset:
    """Read the training data and, where spec.dataset.evaluation.uri names it, the held-out data.

    Args:
        spec: the wish.
        how: to read.
        train: the files of spec.dataset.uri.
        evaluation: the files of spec.dataset.evaluation.uri. Its rows are read first: where both ask the same, it is
            the training row that is left out, so that nothing is judged that was learnt.
        spool: a file to write; another one with the ending .seen beside it is scratch.
        tick: called with every batch of rows; may raise to stop.

    Raises:
        StageError: DatasetEmpty, DatasetFormatUnknown, DatasetMalformed, DatasetInvalidRows, DatasetTooSmall or
            NothingToLearn.
    """
    form = formats.detect(chain.from_iterable(map(records, train.files)), train.uri, how.format)
    dataset = Dataset(form, spool)
    with Intake(dataset, how, tick) as intake:
        if evaluation is not None:
            intake.read(_all_items(evaluation), evaluation.uri, drawn=HELD_OUT)
        held_out = dataset.kept
        stream = _all_items(train)
        limited = islice(stream, spec.max_rows) if spec.max_rows else stream
        intake.read(limited, train.uri, drawn=None if evaluation is None else TRAIN_ONLY)
    refuse_too_many_invalid(dataset, float(spec.max_invalid_fraction))
    if dataset.silent and not dataset.kept:
        raise StageError(
            Reason.NOTHING_TO_LEARN, f"expected assistant messages in {train.uri}, found none in {dataset.silent} rows"
        )
    if evaluation is None:
        dataset.cut = split.cut(intake.lowest, intake.highest, float(spec.evaluation.fraction))
    else:
        dataset.cut = TRAIN_ONLY
        _refuse_empty_side(held_out, dataset.kept - held_out, evaluation.uri, train.uri)
    return dataset


class TooManyInvalidError(StageError):
    """More rows cannot be used than are allowed; `dataset` holds what was found."""

    def __init__(self, reason: Reason, message: str, dataset: Dataset, remedy: str = "") -> None:
        super().__init__(reason, message, remedy)
        self.dataset = dataset


def refuse_too_many_invalid(dataset: Dataset, allowed: float) -> None:
    """Raise TooManyInvalidError (DatasetMalformed or DatasetInvalidRows) if more than the allowed share was wrong."""
    if dataset.invalid <= allowed * dataset.rows:
        return
    wrong = [finding for finding in dataset.findings.listed if finding.problem.rule.severity is Severity.ERROR]
    malformed = wrong[0].problem.rule is Rule.NOT_JSON
    shown: list[str] = []
    for finding in wrong:
        if len(shown) < 3 and not any(text.startswith(f"{finding.source}:") for text in shown):
            shown.append(str(finding))
    more = dataset.invalid - len(shown)
    raise TooManyInvalidError(
        Reason.DATASET_MALFORMED if malformed else Reason.DATASET_INVALID_ROWS,
        f"{dataset.invalid} of {dataset.rows} rows are wrong, spec.dataset.maxInvalidFraction allows "
        f"{int(allowed * dataset.rows)}. {'; '.join(shown)}" + (f"; and {more} more rows" if more else ""),
        dataset,
    )


def refuse_too_many_unrenderable(dataset: Dataset) -> None:
    """Raise StageError if the base model's own template cannot render more rows than may be left out."""
    allowed = int(UNRENDERABLE_FRACTION * dataset.rows)
    if dataset.unrenderable <= allowed:
        return
    listed = (finding for finding in dataset.findings.listed if finding.problem.rule is Rule.NOT_REPRODUCIBLE)
    raise TooManyInvalidError(
        Reason.DATASET_INVALID_ROWS,
        f"the base model's own chat template cannot render {dataset.unrenderable} of {dataset.rows} rows, {allowed} "
        f"may be left out. {'; '.join(str(finding) for finding in islice(listed, 3))}",
        dataset,
        remedy="Correct these rows, or give a template that renders them in spec.tokenizer.chatTemplate.",
    )


class Intake:
    """Takes rows into a dataset: one file or side after the other. A context manager: the spool is whole at its end."""

    def __init__(self, dataset: Dataset, how: Reading, tick: Callable[[], None]) -> None:
        self.lowest, self.highest = 1.0, 0.0
        self._dataset = dataset
        self._how = how
        self._tick = tick
        self._scratch = dataset.spool.with_suffix(".seen")
        self._seen = Seen(self._scratch)

    def __enter__(self) -> "Intake":
        self._spool: TextIO = self._dataset.spool.open("w", encoding="utf-8")
        self._seen.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._spool.close()
        self._seen.__exit__(None, None, None)
        self._scratch.unlink(missing_ok=True)
        if exception[0] is None:
            self._note_imbalance()

    def read(self, stream: Iterable[Line | Record], uri: str, drawn: float | None) -> None:
        """Read one side, or, where `drawn` is None, rows whose side follows from their request.

        Raises:
            StageError: DatasetEmpty; BrokenFileError.
        """
        before = self._dataset.rows
        how = self._how
        reader = RowReader(
            self._dataset.format,
            how.contract,
            drops_thoughts=how.drops_thoughts,
            last_turn_only=how.last_turn_only,
        )
        for features, batch in ordered_map(partial(_look_at, reader), batches(stream, _BATCH, _size_of), how.workers):
            self._tick()
            self._dataset.features.add(features)
            for looked in batch:
                self._take(looked, drawn)
        if self._dataset.rows == before:
            raise StageError(Reason.DATASET_EMPTY, f"expected rows in {uri}, found none")

    def _take(self, looked: "_Looked", drawn: float | None) -> None:
        dataset, source = self._dataset, looked.source
        dataset.rows += 1
        if looked.row is None:
            for problem in looked.problems:
                if problem.rule is Rule.INTERNAL_ERROR:
                    _log.error("%s: %s", source, problem.message)
            dataset.leave_out(source, looked.problems)
            return
        dataset.findings.add(source, looked.problems)
        if drawn == TRAIN_ONLY and (asked := self._seen.find(b"held out" + looked.request)):
            dataset.leaked += 1
            dataset.findings.add(source, [Problem(Rule.LEAKED, f"the held-out row at {asked} asks the same")])
        elif first := self._seen.before(b"row" + looked.whole, source):
            dataset.duplicates += 1
            dataset.findings.add(source, [Problem(Rule.DUPLICATE, f"the same row as {first}")])
        elif looked.silent and not self._how.keeps_silent:
            dataset.silent += 1
            dataset.findings.add(source, [Problem(Rule.NOT_SUPERVISED, "no assistant turn is learnt from")])
        else:
            self._keep(looked, looked.row, drawn)

    def _keep(self, looked: "_Looked", row: str, drawn: float | None) -> None:
        dataset = self._dataset
        if drawn == HELD_OUT:
            self._seen.before(b"held out" + looked.request, looked.source)
        if drawn is None:
            drawn = TRAIN_ONLY if looked.silent else split.draw(looked.request, self._how.seed)
            self.lowest, self.highest = min(self.lowest, drawn), max(self.highest, drawn)
        dataset.kept += 1
        for tool in looked.tools:
            dataset.offers.setdefault(tool, looked.source)
        dataset.calls.update(looked.calls)
        self._spool.write(f"[{dataset.rows}, {drawn!r}, {row}\n")

    def _note_imbalance(self) -> None:
        calls = self._dataset.calls
        most = max(calls.values(), default=0)
        if most < _FEWEST_CALLS:
            return
        uncalled = [tool for tool in self._dataset.offers if not calls[tool]]
        if uncalled:
            more = f" and {len(uncalled) - 5} more" if len(uncalled) > 5 else ""
            problem = Problem(Rule.UNCALLED_TOOL, f"no row calls {', '.join(uncalled[:5])}{more}")
            self._dataset.findings.add(self._dataset.offers[uncalled[0]], [problem])
        rare = sorted(
            (calls[tool], tool) for tool in self._dataset.offers if 0 < calls[tool] * self._how.tool_ratio <= most
        )
        if not rare:
            return
        often = next(tool for tool, count in calls.items() if count == most)
        shown = ", ".join(f"{tool} {count} times" for count, tool in rare[:5])
        more = f" and {len(rare) - 5} more as rarely" if len(rare) > 5 else ""
        problem = Problem(Rule.IMBALANCE, f"{often} is called {most} times, but {shown}{more}")
        self._dataset.findings.add(self._dataset.offers[rare[0][1]], [problem])


@dataclass(frozen=True)
class _Looked:
    """What the main process needs of a row that a worker read; `row` is the rest of its line in the spool."""

    source: Source
    problems: tuple[Problem, ...]
    row: str | None = None
    whole: bytes = b""
    request: bytes = b""
    silent: bool = False
    tools: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


def _size_of(item: Line | Record) -> int:
    """Return about how much memory a row takes that waits to be read."""
    return len(item.content) if isinstance(item, Line) else item.size * _AS_OBJECTS


def _look_at(reader: RowReader, batch: Sequence[Line | Record]) -> tuple[Features, list[_Looked]]:
    features = Features()
    looked = []
    # Around all of them, which costs less than around each; what a row takes is given back at its end.
    with MEMORY:
        for item in batch:
            looked.append(_look_at_one(reader, item, features))  # noqa: PERF401 - a row that fails must not hold the others
    return features, looked


def _look_at_one(reader: RowReader, item: Line | Record, features: Features) -> _Looked:
    try:
        with MEMORY:
            record = item if isinstance(item, Record) else item.parsed()
            found = reader.read(record)
            if found.row is None:
                return _Looked(record.source, found.problems)
            looked = _looked(found.row, found.problems)
    except OutOfBoundsError as error:
        return _Looked(item.source, (Problem(Rule.FORMAT, f"reading the row {error}"),))
    except Exception as error:  # noqa: BLE001 - one row must not hide what is wrong with the others
        return _Looked(item.source, (crash_problem(error),))
    features.see(found.row)
    return looked


def _looked(row: Row, problems: tuple[Problem, ...]) -> _Looked:
    offered = _offered(row.tools)
    place = [row.source.file, row.source.line, row.source.unit]
    messages = _encode([message.to_json() for message in row.messages])
    return _Looked(
        row.source,
        problems,
        # The tools stand as text in the line, so that rows that repeat them need them read only once.
        row=f"{_encode(place)}, {messages}, {offered}]",
        whole=split.digest(f"{messages}{offered}".encode()),
        request=split.request_fingerprint(row.messages),
        silent=not any(message.role is Role.ASSISTANT and message.learnt for message in row.messages),
        tools=tuple(tool.name for tool in row.tools),
        calls=tuple(call.name for message in row.messages if message.learnt for call in message.calls),
    )


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _write_tools(tools: tuple[Tool, ...]) -> str:
    return _encode(_encode([tool.to_json() for tool in tools]))


_offered = Memo(_write_tools, size_of=lambda tools: sum(tool.size for tool in tools))
"""The tools as text, as JSON."""


def _read_offered(text: str) -> tuple[Tool, ...]:
    return tuple(Tool.from_json(tool) for tool in json.loads(text))


_tools = Remembered(_read_offered)


def _all_items(data: Data) -> Iterator[Line | Record]:
    return chain.from_iterable(unparsed(file) for file in data.files)


def _refuse_empty_side(held_out: int, trained: int, evaluation: str, train: str) -> None:
    for count, uri in ((held_out, evaluation), (trained, train)):
        if not count:
            raise StageError(
                Reason.DATASET_TOO_SMALL,
                f"expected at least one usable row in {uri} that occurs on one side only, found none",
            )
