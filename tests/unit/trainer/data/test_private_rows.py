"""What rows say stays out of what many may read: canaries stand in all places of rows, and what is said is searched."""

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


def told(text):
    """Return whether a text has something of a canary row."""
    return CANARY in text or str(NUMBER) in text or str(int(NUMBER)) in text


def problems_of(form, contract=()):
    """Yield what is wrong with each of the canary rows of a format."""
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
def test_the_good_row_of_each_format_is_good(form):
    """Else its canary rows would all be wrong in the same way."""
    assert RowReader(form).read(Record(Source("calls.jsonl", 1), GOOD[form])).problems == ()


@pytest.mark.parametrize("form", GOOD)
def test_a_finding_is_told_without_the_row(form):
    """What stands in a failure has the line, the rule and the field, and of the row nothing."""
    findings = findings_of(form)
    assert sum(told(finding.problem.message) for finding in findings) > 20, "the full text does quote rows"
    for finding in findings:
        assert not told(str(finding)), finding
        assert str(finding).startswith(f"{finding.source}: {finding.problem.rule}")


@pytest.mark.slow
def test_the_canary_rows_break_every_rule():
    """A rule that no row broke would be told by messages that nobody has searched."""
    broken = {finding.problem.rule for form in GOOD for finding in findings_of(form)}
    broken |= {finding.problem.rule for finding in problems_of(DatasetFormat.OPENAI, (a_tool(),))}
    assert broken == set(Rule) - {Rule.INTERNAL_ERROR} - OF_SEVERAL_ROWS - OF_THE_SECOND_PASS - OF_LINES


def read(folder, content, **spec):
    """Run the first pass of prepare over a file."""
    wish = Dataset.model_validate({"uri": "s3://team-a/calls.jsonl", **spec})
    how = dataset.Reading(wish.format, workers=1)
    return dataset.read(wish, how, some_data(folder, content), None, folder / "spool", lambda: None)


@pytest.mark.parametrize("form", GOOD)
def test_a_failure_of_prepare_names_places_only(tmp_path, form):
    """Rows of each format that are all wrong: the message and the remedy hold nothing of them."""
    wrong = [row for number, row in enumerate(rows(form)) if number % 7 == 0]
    with pytest.raises(StageError) as raised:
        read(tmp_path, wrong, format=form.value)
    failure = raised.value.failure
    assert "calls.jsonl line " in failure.message
    assert not told(failure.message + failure.remedy)


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
def test_a_file_that_cannot_be_read_is_told_without_its_text(tmp_path, content):
    """Neither names of fields, nor what stands where something else was expected, nor what a library quotes."""
    with pytest.raises(StageError) as raised:
        read(tmp_path, content)
    failure = raised.value.failure
    assert not told(failure.message + failure.remedy)


def test_the_users_own_terminal_gets_all(tmp_path):
    """Lint prints the detail: who runs it has the file."""
    with pytest.raises(DataError) as raised:
        list(records(a_file(tmp_path, '[{"a": 1} x]', "calls.json")))
    assert "found 'x'" in raised.value.detail
    assert "found 'x'" not in raised.value.failure.message


def test_a_defect_of_this_program_costs_its_row_and_tells_nothing_of_it(tmp_path, monkeypatch, caplog):
    """Python's own errors quote what they were about. The rows around it are read, and what they lack is found."""
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
    assert "calls.jsonl line 2: Tunemill failed at the row" in caplog.text


def test_the_report_keeps_the_full_text(tmp_path):
    """Prepare writes the findings into the workspace, where the data's readers can read them."""
    good = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]} for n in range(9)
    ]
    found = read(tmp_path, [*good, good[0] | {"tools": CANARY}], maxInvalidFraction="0.5")
    assert CANARY in json.dumps(found.findings.to_json())
