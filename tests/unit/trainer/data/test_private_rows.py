"""Text of rows never appears in status, events and logs: rows have canaries in all places, and outputs are searched."""

import functools
import gzip
import json

import pytest
from trainer.data.building import a_file, a_tool, openai_row, some_data
from trainer.data.canaries import CANARY, GOOD, NUMBER, rows
from tunemill_api.data import Dataset, DatasetFormat
from tunemill_trainer.data import dataset, reading
from tunemill_trainer.data.findings import DataError, Finding, Rule
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record, records
from tunemill_trainer.data.rows import Source
from tunemill_trainer.errors import StageError

OF_SEVERAL_ROWS = {Rule.DUPLICATE, Rule.LEAKED, Rule.NOT_SUPERVISED, Rule.UNCALLED_TOOL, Rule.IMBALANCE}
OF_THE_SECOND_PASS = {Rule.NOT_REPRODUCIBLE, Rule.OVERLONG}
OF_LINES = {Rule.NOT_JSON}


def contains_canary(text):
    """Return whether a text contains a part of a canary row."""
    return CANARY in text or str(NUMBER) in text or str(int(NUMBER)) in text


def problems_of(form, contract=()):
    """Yield the problems of each canary row of a format."""
    reader = RowReader(form, contract)
    for number, row in enumerate(rows(form), start=1):
        source = Source("calls.jsonl", number)
        for problem in reader.read(Record(source, row)).problems:
            yield Finding(source, problem)


@functools.cache
def findings_of(form):
    """Return the same as a list, read once: there are thousands of rows."""
    return list(problems_of(form))


@pytest.mark.parametrize("form", GOOD)
def test_the_valid_row_of_each_format_is_valid(form):
    """Otherwise all canary rows would have the same mistake."""
    assert RowReader(form).read(Record(Source("calls.jsonl", 1), GOOD[form])).problems == ()


@pytest.mark.parametrize("form", GOOD)
def test_a_finding_does_not_quote_the_row(form):
    """Failures contain the line, the rule and the field, but no text of the row."""
    findings = findings_of(form)
    assert sum(contains_canary(finding.problem.message) for finding in findings) > 20, "the full text does quote rows"
    for finding in findings:
        assert not contains_canary(str(finding)), finding
        assert str(finding).startswith(f"{finding.source}: {finding.problem.rule}")


@pytest.mark.slow
def test_the_canary_rows_break_every_rule():
    """So the messages of all rules are searched for canaries."""
    broken = {finding.problem.rule for form in GOOD for finding in findings_of(form)}
    broken |= {finding.problem.rule for finding in problems_of(DatasetFormat.OPENAI, (a_tool(),))}
    assert broken == set(Rule) - {Rule.INTERNAL_ERROR} - OF_SEVERAL_ROWS - OF_THE_SECOND_PASS - OF_LINES


def read(folder, content, **spec):
    """Run the first pass of prepare on a file."""
    configured = Dataset.model_validate({"uri": "s3://team-a/calls.jsonl", **spec})
    how = dataset.ReadOptions(configured.format, workers=1)
    return dataset.read(configured, how, some_data(folder, content), {}, folder / "spool", lambda: None)


@pytest.mark.parametrize("form", GOOD)
def test_a_failure_of_prepare_names_places_only(tmp_path, form):
    """For invalid rows of each format, message and remedy contain no text of the rows."""
    wrong = [row for number, row in enumerate(rows(form)) if number % 7 == 0]
    with pytest.raises(StageError) as raised:
        read(tmp_path, wrong, format=form.value)
    failure = raised.value.failure
    assert "calls.jsonl line " in failure.message
    assert not contains_canary(failure.message + failure.remedy)


@pytest.mark.parametrize(
    "content",
    [
        f"{CANARY}\n",
        f'{{"{CANARY}": "{CANARY}"}}\n',
        f'[{{"messages": []}} {CANARY}]',
        f'[{{"messages": []}}] {CANARY}',
        f'[{{"messages": {NUMBER}e999}}]',
        f'[{{"messages": {int(NUMBER)}{"0" * 5000}}}]',
        f'{{"{CANARY}":\n',
        f"PAR1{CANARY}",
        b"\x1f\x8b" + CANARY.encode(),
        gzip.compress(b'{"messages": []}\n', mtime=0) + CANARY.encode() * 20,
        CANARY.encode("utf-16"),
    ],
    ids=repr,
)
def test_an_unreadable_file_is_reported_without_its_text(tmp_path, content):
    """No names of fields, no values, and no quotes by libraries."""
    with pytest.raises(StageError) as raised:
        read(tmp_path, content)
    failure = raised.value.failure
    assert not contains_canary(failure.message + failure.remedy)


def test_the_terminal_of_the_user_shows_the_details(tmp_path):
    """The user of `lint` has the file."""
    with pytest.raises(DataError) as raised:
        list(records(a_file(tmp_path, '[{"a": 1} x]', "calls.json")))
    assert "found 'x'" in raised.value.detail
    assert "found 'x'" not in raised.value.failure.message


def test_a_crash_affects_one_row_and_does_not_quote_it(tmp_path, monkeypatch, caplog):
    """Python's messages quote values. The other rows are read and checked."""
    problems = reading.lint.problems

    def fail(row, contract):
        return {}[CANARY] if row.messages[0].content == "fail" else problems(row, contract)

    monkeypatch.setattr(reading.lint, "problems", fail)
    rows = [openai_row("a"), openai_row("fail"), openai_row("b"), openai_row("c", town="Rome")]
    found = read(tmp_path, rows, maxInvalidFraction="0.5")
    assert (found.kept, found.invalid) == (2, 2)
    assert [str(finding) for finding in found.findings.listed[:2]] == [
        "calls.jsonl line 2: internal-error",
        "calls.jsonl line 4: extra-argument at turn 2, call 1",
    ]
    assert "KeyError in test_private_rows.py line " in found.findings.listed[0].problem.message
    assert CANARY not in caplog.text + found.findings.listed[0].problem.message
    assert "calls.jsonl line 2: Tunemill failed to process the row" in caplog.text


def test_the_report_keeps_the_full_text(tmp_path):
    """The workspace has the full findings, where users with access to the data can read them."""
    good = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]} for n in range(9)
    ]
    found = read(tmp_path, [*good, good[0] | {"tools": CANARY}], maxInvalidFraction="0.5")
    assert CANARY in json.dumps(found.findings.to_json())
