"""Checks files as prepare would and reports all findings: the output of `tunemill lint`."""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tunemill_api.data import DatasetFormat
from tunemill_api.failures import Reason

from tunemill_trainer.data import formats
from tunemill_trainer.data.dataset import Dataset, DatasetBuilder, ReadOptions, Split
from tunemill_trainer.data.files import DataFile, file_of_user, name_of
from tunemill_trainer.data.findings import (
    REMEDIES,
    Finding,
    Findings,
    Problem,
    RowCrashError,
    Rule,
    Severity,
    full_text,
)
from tunemill_trainer.data.records import BrokenFileError, records, unparsed
from tunemill_trainer.data.rows import JsonObject, Source
from tunemill_trainer.errors import StageError

_SHOWN = 20
"""The most findings of one rule in one file that the text output shows."""


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    Attributes:
        findings: the findings, in the order of the files and their lines.
        files: the files that were read, with their formats; None where no format was recognised.
        rows: the number of rows that were read.
        usable: the number of rows that prepare would use.
        calls: the number of calls in the usable rows that are trained on.
        unreadable: the errors of files that could not be read.
    """

    findings: tuple[Finding, ...]
    files: dict[str, DatasetFormat | None]
    rows: int
    usable: int
    calls: int
    unreadable: tuple[OSError, ...] = ()

    @property
    def errors(self) -> int:
        """The number of findings that are errors."""
        return sum(finding.problem.rule.severity is Severity.ERROR for finding in self.findings)

    def to_json(self) -> JsonObject:
        """Return the findings and a summary: the output of `--json`."""
        rules = Counter(finding.problem.rule.value for finding in self.findings)
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "summary": {
                "files": {name: form.value if form else None for name, form in self.files.items()},
                "rows": self.rows,
                "usableRows": self.usable,
                "calls": self.calls,
                "errors": self.errors,
                "warnings": len(self.findings) - self.errors,
                "rules": dict(sorted(rules.items())),
            },
        }

    def to_text(self) -> str:
        """Return the findings as text, by file and rule, with the remedy of each rule once."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        by_file = {name: [each for each in self.findings if each.source.file == name] for name in self.files}
        for name, findings in by_file.items():
            form = self.files[name]
            yield f"{name}  ({form.value if form else 'unknown format'}{'' if findings else ', no findings'})"
            ordered = sorted(findings, key=lambda finding: (finding.problem.rule.severity, finding.problem.rule))
            for rule, group in groupby(ordered, key=lambda finding: finding.problem.rule):
                of_rule = list(group)
                yield f"\n  {rule.severity}: {rule} ({len(of_rule)})"
                for finding in of_rule[:_SHOWN]:
                    yield f"    {finding.source.unit} {finding.source.line}: {finding.problem.message}"
                if len(of_rule) > _SHOWN:
                    yield f"    … and {len(of_rule) - _SHOWN} more; --json lists all"
                yield f"    → {REMEDIES[rule]}"
            yield ""
        warnings = len(self.findings) - self.errors
        counts = f"{_count(self.errors, 'error')}, {_count(warnings, 'warning')}"
        yield f"{_count(self.rows, 'row')}, {self.usable} usable with {_count(self.calls, 'call')}; {counts}"


def check(
    files: Sequence[Path],
    separate: Mapping[Split, Sequence[Path]],
    how: ReadOptions,
    render: Callable[[Dataset], int] | None = None,
    progress: Callable[[int], None] = lambda _rows: None,
) -> CheckResult:
    """Check files of training rows, and of held-out and validation rows.

    Args:
        files: the files with training rows.
        separate: the files with rows of other splits.
        how: the reading options. With the format Auto, each file may have a different format.
        render: checks the usable rows with a tokenizer, adds findings to the data set, and returns the number of rows
            that turn out to be unusable. None skips this check.
        progress: called repeatedly with the number of rows that were read.

    Raises:
        StageError: raised by `render`.
    """
    found_formats: dict[str, DatasetFormat | None] = {}
    unreadable: list[OSError] = []
    with tempfile.TemporaryDirectory() as scratch:
        found = Findings(kept=sys.maxsize)
        dataset = Dataset(DatasetFormat.OPENAI, Path(scratch) / "rows.jsonl", findings=found)
        with DatasetBuilder(dataset, how, tick=lambda: progress(dataset.rows)) as builder:
            # Training rows last, as in prepare: of two rows with the same request, the training row is excluded.
            parts = [(path, part) for part in (Split.HELD_OUT, Split.VALIDATION) for path in separate.get(part, ())]
            for path, part in (*parts, *((path, None) for path in files)):
                try:
                    file = file_of_user(path, Path(scratch))
                    found_formats[file.name] = _take_in(file, builder, dataset, how, part)
                except OSError as error:
                    unreadable.append(error)
        usable = dataset.kept - (render(dataset) if render is not None and dataset.kept else 0)
    names = [name_of(path) for path in (*files, *(path for path, _ in parts))]
    place = {name: number for number, name in enumerate(names) if name in found_formats}
    ordered = sorted(found.listed, key=lambda finding: (place[finding.source.file], finding.source.line))
    return CheckResult(
        tuple(ordered),
        {name: found_formats[name] for name in place},
        dataset.rows,
        usable,
        sum(dataset.calls.values()),
        tuple(unreadable),
    )


def _take_in(
    file: DataFile, builder: DatasetBuilder, dataset: Dataset, how: ReadOptions, part: Split | None
) -> DatasetFormat | None:
    """Read a file and return its format, or None. What would end a run of prepare becomes a finding."""
    form = None
    try:
        dataset.format = form = formats.detect(records(file), file.name, how.format)
    except RowCrashError as error:
        dataset.findings.add(
            Source(file.name, 1), [Problem(Rule.INTERNAL_ERROR, f"Tunemill failed; this is a bug: {error}")]
        )
        return None
    except BrokenFileError as error:
        dataset.findings.add(error.last, [Problem(Rule.NOT_JSON, full_text(error))])
        return None
    except StageError as error:
        if error.reason is not Reason.DATASET_MALFORMED:
            dataset.findings.add(Source(file.name, 1), [Problem(Rule.FORMAT, full_text(error))])
            return None
        # No line is JSON. Reading reports that for each line, whatever the format.
    try:
        builder.read(unparsed(file), file.name, part)
    except BrokenFileError as error:
        dataset.findings.add(error.last, [Problem(Rule.NOT_JSON, full_text(error))])
    except StageError as error:
        dataset.findings.add(Source(file.name, 1), [Problem(Rule.FORMAT, full_text(error))])
    return form


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
