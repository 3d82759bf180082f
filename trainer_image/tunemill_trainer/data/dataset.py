"""The first pass over the data: reads and checks every row, finds duplicates, and assigns each row to a split.

Worker processes read the rows on all CPUs. The main process restores their order and writes usable rows to a spool
file, so memory does not grow with the data.
"""

import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from tunemill_api import data as api
from tunemill_api.failures import Reason

from tunemill_trainer.data import formats, split
from tunemill_trainer.data.caches import IdentityCache, TextCache
from tunemill_trainer.data.files import Data
from tunemill_trainer.data.findings import Finding, Findings, Problem, Rule, Severity, crash_problem
from tunemill_trainer.data.fingerprints import FingerprintStore
from tunemill_trainer.data.reading import MEMORY, RowReader
from tunemill_trainer.data.records import Line, Record, records, unparsed
from tunemill_trainer.data.rows import Message, Role, Row, Source, Tool
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.bounds import OutOfBoundsError
from tunemill_trainer.process.parallel import batches, ordered_map

_log = logging.getLogger(__name__)

_HELD_OUT, _TRAIN_ONLY, _REPLAY, _VALIDATION = -1.0, 1.0, 2.0, 3.0
"""The draws of rows that are always held out, of rows that are only trained on, of rows of spec.dataset.replay, and of
rows of spec.dataset.validation.uri."""

_BATCH = 256
"""The rows that a worker reads per task."""
_AS_OBJECTS = 25
"""The most bytes that a character of JSON takes as Python objects; the worst case is `[[],[],…`."""
_FEWEST_CALLS = 20
"""Imbalance is reported only if some tool has at least this many calls: small counts differ by chance."""


UNRENDERABLE_FRACTION = 0.05
"""The maximum share of rows that are excluded because the base model's own chat template cannot render them."""


class Split(StrEnum):
    """What a row is used for."""

    TRAIN = "training"
    REPLAY = "replay"
    VALIDATION = "validation"
    HELD_OUT = "held-out"


@dataclass
class Features:
    """The kinds of content in the rows. The chat template must support them; the tokenizer may need tags for them.

    A kind counts if it occurs in any row, except parallel calls.

    Attributes:
        rows: the number of rows.
        parallel: the number of rows with several calls in one turn.
        abstaining: the number of rows with tools in which the assistant calls none.
    """

    system: bool = False
    tools: bool = False
    calls: bool = False
    responses: bool = False
    reasoning: bool = False
    rows: int = 0
    parallel: int = 0
    abstaining: int = 0

    @property
    def many_parallel(self) -> bool:
        """Whether more rows have parallel calls than may be excluded.

        Some chat templates, such as Llama 3.1's, support one call per turn.
        """
        return self.parallel > UNRENDERABLE_FRACTION * self.rows

    def see(self, row: Row) -> None:
        """Add the features of a row."""
        self.rows += 1
        self.parallel += any(len(message.calls) > 1 for message in row.messages)
        self.tools = self.tools or bool(row.tools)
        self.abstaining += bool(row.tools) and not any(message.calls for message in row.messages)
        for message in row.messages:
            self.system = self.system or message.role is Role.SYSTEM
            self.calls = self.calls or bool(message.calls)
            self.responses = self.responses or message.role is Role.TOOL
            self.reasoning = self.reasoning or bool(message.reasoning)

    def __add__(self, other: "Features") -> "Features":
        found = replace(self)
        found.add(other)
        return found

    def add(self, other: "Features") -> None:
        """Add the features of other rows."""
        self.rows += other.rows
        self.parallel += other.parallel
        self.abstaining += other.abstaining
        for name in ("system", "tools", "calls", "responses", "reasoning"):
            setattr(self, name, getattr(self, name) or getattr(other, name))


@dataclass
class Dataset:
    """The counts and findings of the rows that were read. The rows themselves are in the spool file.

    Attributes:
        format: the format of the rows.
        spool: the file with the usable rows.
        rows: the number of rows that were read.
        invalid: the number of rows that were excluded because of errors.
        duplicates: the number of rows that were excluded because an equal row came before.
        leaked: the number of training rows that were excluded because a held-out row of the evaluation data has the
            same request; for a suite and for replay, of their rows that have the request of a row of spec.dataset.
        unsupervised: the number of rows that were excluded because they have no assistant turn to train on.
        unrenderable: the number of rows that the base model's own chat template cannot render.
        kept: the number of rows in the spool.
        offers: each tool that a row declares, with the first such row.
        calls: the number of calls in the usable rows, by tool.
        features: the features of the readable rows.
        replay_features: the same of the rows of spec.dataset.replay.
        findings: the findings of all rows.
        cut: rows with a draw below this number are held out.
        validation_cut: the other rows with a draw below this number are validation rows.
    """

    format: api.DatasetFormat
    spool: Path
    rows: int = 0
    invalid: int = 0
    duplicates: int = 0
    leaked: int = 0
    unsupervised: int = 0
    unrenderable: int = 0
    kept: int = 0
    offers: dict[str, Source] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    features: Features = field(default_factory=Features)
    replay_features: Features = field(default_factory=Features)
    findings: Findings = field(default_factory=Findings)
    cut: float = 0.0
    validation_cut: float = 0.0

    def leave_out(self, source: Source, problems: Iterable[Problem]) -> None:
        """Count a row with errors, and add its problems to the findings."""
        self.invalid += 1
        self.findings.add(source, problems)

    def leave_out_unrenderable(self, source: Source, problem: Problem) -> None:
        """Count a row that the base model's own chat template cannot render."""
        self.unrenderable += 1
        self.findings.add(source, [problem])

    def lines(self) -> Iterator[str]:
        """Yield the lines of the spool: the usable rows in the order of the data, evaluation data first."""
        with self.spool.open(encoding="utf-8") as lines:
            yield from lines

    def row(self, line: str) -> "SpooledRow":
        """Parse a line of the spool."""
        number, drawn, (file, at, unit), messages, tools = json.loads(line)
        row = Row(tuple(Message.from_json(each) for each in messages), _tools(tools), Source(file, at, unit))
        return SpooledRow(number, row, self._split_of(drawn))

    def _split_of(self, drawn: float) -> Split:
        if drawn >= _REPLAY:
            return Split.REPLAY if drawn == _REPLAY else Split.VALIDATION
        if drawn < self.cut:
            return Split.HELD_OUT
        return Split.VALIDATION if drawn < self.validation_cut else Split.TRAIN

    def add_replay(self, found: "Dataset", count: int, seed: int) -> None:
        """Add rows of spec.dataset.replay to the spool: `count` pseudorandom ones, or all if there are fewer."""

        def drawn(line: str) -> float:
            return split.draw(split.request_fingerprint(found.row(line).row.messages), seed)

        draws = array("d", map(drawn, found.lines()))
        limit = sorted(draws)[count - 1] if count < len(draws) else 1.0
        with self.spool.open("a", encoding="utf-8") as spool:
            for draw, line in zip(draws, found.lines(), strict=True):
                if draw <= limit:
                    number, _, rest = line.split(", ", 2)
                    spool.write(f"[{self.rows + int(number[1:])}, {_REPLAY!r}, {rest}")
                    self.kept += 1
        self.replay_features = found.features
        self.findings.merge(found.findings)

    def rendered_features(self) -> Features:
        """Return the features of all rows that the chat template must render."""
        return self.features + self.replay_features

    def __iter__(self) -> Iterator["SpooledRow"]:
        """Yield the usable rows."""
        return map(self.row, self.lines())


@dataclass(frozen=True)
class SpooledRow:
    """A usable row, with its number among all rows that were read, and its split."""

    number: int
    row: Row
    split: Split


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading rows.

    Attributes:
        format: the format; Auto detects it from the first rows.
        contract: the tools of spec.tools; empty if there are none.
        drop_reasoning: whether to remove the reasoning of assistant turns.
        last_turn_only: whether to train only on the last assistant turn of a row.
        keep_unsupervised: whether to keep rows without an assistant turn to train on.
        seed: the seed for the split.
        split_by: what decides about the split of a row.
        workers: the number of processes that read.
        tool_ratio: the ratio of calls between two tools from which the imbalance is reported.
    """

    format: api.DatasetFormat = api.DatasetFormat.AUTO
    contract: tuple[Tool, ...] = ()
    drop_reasoning: bool = False
    last_turn_only: bool = False
    keep_unsupervised: bool = False
    seed: int = 42
    split_by: api.SplitBy = api.SplitBy.PROMPT
    workers: int = 1
    tool_ratio: float = 10.0


def read(
    spec: api.Dataset,
    how: ReadOptions,
    train: Data,
    separate: Mapping[Split, Data],
    spool: Path,
    tick: Callable[[], None],
) -> Dataset:
    """Read the training data, and the held-out and validation data if the spec names files for them.

    Args:
        spec: spec.dataset.
        how: the reading options.
        train: the files of spec.dataset.uri.
        separate: the files of spec.dataset.evaluation.uri (HELD_OUT) and of spec.dataset.validation.uri (VALIDATION).
            Held-out rows are read first, then validation rows. A row with the request of one that was read before for
            another split is excluded, so that splits share no requests.
        spool: the file to write. A file with the suffix .seen in the same folder is used temporarily.
        tick: called for every batch of rows. It may raise to stop.

    Raises:
        StageError: DatasetEmpty, DatasetFormatUnknown, DatasetMalformed, DatasetInvalidRows, DatasetTooSmall or
            NothingToLearn.
    """
    form = formats.detect(chain.from_iterable(map(records, train.files)), train.uri, how.format)
    dataset = Dataset(form, spool)
    with DatasetBuilder(dataset, how, tick) as builder:
        kept = {}
        for part in (Split.HELD_OUT, Split.VALIDATION):
            if part in separate:
                uri, before = separate[part].uri, dataset.kept
                builder.read(_all_items(separate[part]), uri, part)
                kept[uri] = dataset.kept - before
        stream, before = _all_items(train), dataset.kept
        limited = islice(stream, spec.max_rows) if spec.max_rows else stream
        builder.read(limited, train.uri)
    refuse_too_many_invalid(dataset, float(spec.max_invalid_fraction))
    if dataset.unsupervised and not dataset.kept:
        raise StageError(
            Reason.NOTHING_TO_LEARN,
            f"expected assistant messages in {train.uri}, found none in {dataset.unsupervised} rows",
        )
    if Split.HELD_OUT not in separate:
        fraction = float(spec.evaluation.fraction)
        dataset.cut = split.cut(builder.lowest, builder.highest, fraction, how.split_by)
    if separate:
        _refuse_empty(kept | {train.uri: dataset.kept - before})
    validation = float(spec.validation.fraction) if spec.validation and not spec.validation.uri else 0.0
    # The row with the highest draw is always trained on.
    dataset.validation_cut = min(dataset.cut + validation, builder.highest)
    return dataset


def read_others(how: ReadOptions, data: Data, spool: Path, known: "Requests") -> Dataset:
    """Read rows that share no request with those of spec.dataset: of a suite, or for replay. All count as held out.

    Args:
        how: the reading options.
        data: the files.
        spool: the file to write, as in `read`.
        known: rows with one of these requests are left out.

    Raises:
        StageError: DatasetEmpty, DatasetFormatUnknown or DatasetMalformed.
    """
    form = formats.detect(chain.from_iterable(map(records, data.files)), data.uri, how.format)
    dataset = Dataset(form, spool)
    with DatasetBuilder(dataset, how, known.check_stop, known.find) as builder:
        builder.read(_all_items(data), data.uri, Split.HELD_OUT)
    return dataset


class Requests:
    """The requests of the rows of some splits, on disk. A context manager.

    Args:
        dataset: the data set.
        splits: the splits.
        check_stop: called for every row. It may raise to stop.

    Attributes:
        train_rows: the number of training rows of the data set.
    """

    def __init__(self, dataset: Dataset, splits: Collection[Split], check_stop: Callable[[], None]) -> None:
        self.train_rows = 0
        self.check_stop = check_stop
        self._dataset = dataset
        self._splits = splits
        self._path = dataset.spool.with_suffix(".requests")

    def __enter__(self) -> "Requests":
        self._store = FingerprintStore(self._path).__enter__()
        for item in self._dataset:
            self.check_stop()
            self.train_rows += item.split is Split.TRAIN
            if item.split in self._splits:
                self._store.before(split.request_fingerprint(item.row.messages), item.row.source)
        return self

    def __exit__(self, *exception: object) -> None:
        self._store.__exit__(None, None, None)
        self._path.unlink(missing_ok=True)

    def find(self, request: bytes) -> Source | None:
        """Return the first row with a request, or None."""
        return self._store.find(request)


class TooManyInvalidError(StageError):
    """More rows cannot be used than are allowed; `dataset` has the findings."""

    def __init__(self, reason: Reason, message: str, dataset: Dataset, remedy: str = "") -> None:
        super().__init__(reason, message, remedy)
        self.dataset = dataset


def refuse_too_many_invalid(dataset: Dataset, allowed: float) -> None:
    """Check the share of rows with errors.

    Raises:
        TooManyInvalidError: DatasetMalformed or DatasetInvalidRows, if the share is larger than `allowed`.
    """
    if dataset.invalid <= allowed * dataset.rows:
        return
    wrong = [finding for finding in dataset.findings.listed if finding.problem.rule.severity is Severity.ERROR]
    malformed = wrong[0].problem.rule is Rule.NOT_JSON
    shown = _first_rows(wrong)
    more = dataset.invalid - len(shown)
    raise TooManyInvalidError(
        Reason.DATASET_MALFORMED if malformed else Reason.DATASET_INVALID_ROWS,
        f"{dataset.invalid} of {dataset.rows} rows are invalid, spec.dataset.maxInvalidFraction allows "
        f"{int(allowed * dataset.rows)}. {'; '.join(shown)}" + (f"; and {more} more rows" if more else ""),
        dataset,
    )


def refuse_too_many_unrenderable(dataset: Dataset) -> None:
    """Check the share of rows that the base model's own chat template cannot render.

    Raises:
        TooManyInvalidError: DatasetInvalidRows, if the share is larger than UNRENDERABLE_FRACTION.
    """
    allowed = int(UNRENDERABLE_FRACTION * dataset.rows)
    if dataset.unrenderable <= allowed:
        return
    listed = [finding for finding in dataset.findings.listed if finding.problem.rule is Rule.NOT_REPRODUCIBLE]
    raise TooManyInvalidError(
        Reason.DATASET_INVALID_ROWS,
        f"the base model's own chat template cannot render {dataset.unrenderable} of {dataset.rows} rows; at most "
        f"{allowed} may be excluded. {'; '.join(_first_rows(listed))}",
        dataset,
        remedy="Correct these rows, or set a template that renders them in spec.tokenizer.chatTemplate.",
    )


def _first_rows(findings: Iterable[Finding]) -> list[str]:
    """Return the first finding of each of the first three rows, for a message."""
    shown: list[str] = []
    for finding in findings:
        if len(shown) < 3 and not any(text.startswith(f"{finding.source}:") for text in shown):
            shown.append(str(finding))
    return shown


class DatasetBuilder:
    """Adds rows to a data set, one file or split after the other. A context manager: on exit the spool is complete.

    Args:
        dataset: the data set.
        how: the reading options.
        tick: called for every batch of rows. It may raise to stop.
        known: returns the row of spec.dataset with a request. Rows with such a request are left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        how: ReadOptions,
        tick: Callable[[], None],
        known: Callable[[bytes], Source | None] = lambda _request: None,
    ) -> None:
        self._known = known
        self.lowest, self.highest = 1.0, 0.0
        self._separate: list[Split] = []
        self._dataset = dataset
        self._how = how
        self._tick = tick
        self._scratch = dataset.spool.with_suffix(".seen")
        self._fingerprints = FingerprintStore(self._scratch)

    def __enter__(self) -> "DatasetBuilder":
        self._spool: TextIO = self._dataset.spool.open("w", encoding="utf-8")
        self._fingerprints.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._spool.close()
        self._fingerprints.__exit__(None, None, None)
        self._scratch.unlink(missing_ok=True)
        if exception[0] is None:
            self._note_imbalance()

    def read(self, stream: Iterable[Line | Record], uri: str, part: Split | None = None) -> None:
        """Read rows.

        Args:
            stream: the rows.
            uri: their source, for messages.
            part: HELD_OUT or VALIDATION for the split of all rows of the stream. None if `Dataset.cut` and
                `Dataset.validation_cut` decide about each row.

        Raises:
            StageError: DatasetEmpty; BrokenFileError.
        """
        before = self._dataset.rows
        if part is not None and part not in self._separate:
            self._separate.append(part)
        how = self._how
        reader = RowReader(
            self._dataset.format,
            how.contract,
            drop_reasoning=how.drop_reasoning,
            last_turn_only=how.last_turn_only,
        )
        for features, batch in ordered_map(
            partial(_read_batch, reader), batches(stream, _BATCH, _size_of), how.workers
        ):
            self._tick()
            self._dataset.features.add(features)
            for result in batch:
                self._add(result, part)
        if self._dataset.rows == before:
            raise StageError(Reason.DATASET_EMPTY, f"expected rows in {uri}, found none")

    def _add(self, result: "_ReadResult", part: Split | None) -> None:
        dataset, source = self._dataset, result.source
        dataset.rows += 1
        if result.row is None:
            for problem in result.problems:
                if problem.rule is Rule.INTERNAL_ERROR:
                    _log.error("%s: %s", source, problem.message)
            dataset.leave_out(source, result.problems)
            return
        dataset.findings.add(source, result.problems)
        if leak := self._leak(result.request, part):
            dataset.leaked += 1
            dataset.findings.add(source, [leak])
        elif first := self._fingerprints.before(b"row" + result.whole, source):
            dataset.duplicates += 1
            dataset.findings.add(source, [Problem(Rule.DUPLICATE, f"duplicate of the row at {first}")])
        elif result.unsupervised and not self._how.keep_unsupervised:
            dataset.unsupervised += 1
            dataset.findings.add(source, [Problem(Rule.NOT_SUPERVISED, "the row has no assistant turn to train on")])
        else:
            self._keep(result, result.row, part)

    def _leak(self, request: bytes, part: Split | None) -> Problem | None:
        """Return the problem of a row whose request is in the separate data of another split, or in other data."""
        for other in self._separate:
            if other is not part and (place := self._fingerprints.find(other.value.encode() + request)):
                return Problem(Rule.LEAKED, f"the {other} row at {place} has the same request")
        if place := self._known(request):
            return Problem(Rule.LEAKED, f"the row of spec.dataset at {place} has the same request")
        return None

    def _keep(self, result: "_ReadResult", row: str, part: Split | None) -> None:
        dataset = self._dataset
        if part is not None:
            self._fingerprints.before(part.value.encode() + result.request, result.source)
            drawn = _VALIDATION if part is Split.VALIDATION else _HELD_OUT
        else:
            drawn = self._draw(result)
            self.lowest, self.highest = min(self.lowest, drawn), max(self.highest, drawn)
        dataset.kept += 1
        for tool in result.tools:
            dataset.offers.setdefault(tool, result.source)
        dataset.calls.update(result.calls)
        self._spool.write(f"[{dataset.rows}, {drawn!r}, {row}\n")

    def _draw(self, result: "_ReadResult") -> float:
        if result.unsupervised:
            return _TRAIN_ONLY
        if result.calls and self._how.split_by is api.SplitBy.TOOLS:
            return split.draw_by_tools(set(result.calls), self._how.seed)
        return split.draw(result.request, self._how.seed)

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
class _ReadResult:
    """The result of reading a row in a worker process. `row` is the rest of its line in the spool."""

    source: Source
    problems: tuple[Problem, ...]
    row: str | None = None
    whole: bytes = b""
    request: bytes = b""
    unsupervised: bool = False
    tools: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


def _size_of(item: Line | Record) -> int:
    """Return roughly how many bytes an unread row takes."""
    return len(item.content) if isinstance(item, Line) else item.size * _AS_OBJECTS


def _read_batch(reader: RowReader, batch: Sequence[Line | Record]) -> tuple[Features, list[_ReadResult]]:
    features = Features()
    results = []
    # One bound around the batch costs less than one per row. Each row's memory is freed before the next.
    with MEMORY:
        for item in batch:
            results.append(_read_one(reader, item, features))  # noqa: PERF401 - a failing row must not keep the others
    return features, results


def _read_one(reader: RowReader, item: Line | Record, features: Features) -> _ReadResult:
    try:
        with MEMORY:
            record = item if isinstance(item, Record) else item.parsed()
            found = reader.read(record)
            if found.row is None:
                return _ReadResult(record.source, found.problems)
            result = _result_of(found.row, found.problems)
    except OutOfBoundsError as error:
        return _ReadResult(item.source, (Problem(Rule.FORMAT, f"reading the row {error}"),))
    except Exception as error:  # noqa: BLE001 - a crash on one row must not hide findings of others
        return _ReadResult(item.source, (crash_problem(error),))
    features.see(found.row)
    return result


def _result_of(row: Row, problems: tuple[Problem, ...]) -> _ReadResult:
    offered = _offered(row.tools)
    place = [row.source.file, row.source.line, row.source.unit]
    messages = _encode([message.to_json() for message in row.messages])
    return _ReadResult(
        row.source,
        problems,
        # The tools are a string in the line, so that tools that several rows repeat are parsed only once.
        row=f"{_encode(place)}, {messages}, {offered}]",
        whole=split.digest(f"{messages}{offered}".encode()),
        request=split.request_fingerprint(row.messages),
        unsupervised=not any(message.role is Role.ASSISTANT and message.learnt for message in row.messages),
        tools=tuple(tool.name for tool in row.tools),
        calls=tuple(call.name for message in row.messages if message.learnt for call in message.calls),
    )


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _write_tools(tools: tuple[Tool, ...]) -> str:
    return _encode(_encode([tool.to_json() for tool in tools]))


_offered = IdentityCache(_write_tools, size_of=lambda tools: sum(tool.size for tool in tools))
"""The tools as JSON, encoded as a JSON string."""


def _read_offered(text: str) -> tuple[Tool, ...]:
    return tuple(Tool.from_json(tool) for tool in json.loads(text))


_tools = TextCache(_read_offered)


def _all_items(data: Data) -> Iterator[Line | Record]:
    return chain.from_iterable(unparsed(file) for file in data.files)


def _refuse_empty(kept: Mapping[str, int]) -> None:
    """Refuse data without a usable row; `kept` is their number by URI."""
    for uri, count in kept.items():
        if not count:
            raise StageError(
                Reason.DATASET_TOO_SMALL,
                f"expected at least one usable row in {uri} that is not in another split, found none",
            )
