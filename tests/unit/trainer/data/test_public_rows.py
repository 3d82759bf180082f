"""Rows like those of public data sets: the format is detected, and all calls are read."""

import json
import re
from pathlib import Path

import pytest
from trainer.data.building import WEATHER
from trainer.data.public_rows import MADE, rows
from tunemill_api.data import DatasetFormat
from tunemill_api.failures import Reason
from tunemill_trainer.data import formats
from tunemill_trainer.data.findings import DataError, Rule
from tunemill_trainer.data.formats import unsupported
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import Role, Source
from tunemill_trainer.data.tools import read_tools

PAGE = Path(__file__).parents[4] / "docs/how-to/data.md"
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def as_records(made):
    """Objects as read from a file."""
    return [Record(Source("calls.jsonl", line), row) for line, row in enumerate(made, start=1)]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_rows_are_detected_and_read_with_all_calls(make):
    """Two hundred rows of each: no call is lost or invented, and the only findings are renamed tools."""
    made = list(rows(make, 200))
    records = as_records(row for row, _ in made)
    form = formats.detect(records, "calls.jsonl")
    assert form is MADE[make]
    reader = RowReader(form, read_tools([WEATHER]) if form is DatasetFormat.TAU_BENCH else ())
    for record, (_, count) in zip(records, made, strict=True):
        found = reader.read(record)
        assert {problem.rule for problem in found.problems} <= {Rule.RENAMED_TOOL}, found.problems
        assert sum(len(message.calls) for message in found.row.messages) == count
        assert not any("<tool" in message.content or "Action" in message.content for message in found.row.messages)


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_few_rows_of_another_kind_do_not_change_the_format(make):
    """Many files also contain plain conversations."""
    made = [row for row, _ in rows(make, 20)]
    assert formats.detect(as_records([TALK, TALK, *made]), "calls.jsonl") is MADE[make]


@pytest.mark.parametrize(
    ("name", "learnt"),
    [("prompt_completion", [False, True]), ("toolbench", None), ("tau_bench", None)],
)
def test_turns_of_the_history_are_excluded_from_training(name, learnt):
    """The prompt's turns, a turn that gives up, a greeting."""
    make = next(make for make in MADE if make.__name__ == name)
    seen = set()
    for row, _ in rows(make, 40):
        messages, _ = formats.read(row, MADE[make])
        seen.add(tuple(message.learnt for message in messages if message.role is Role.ASSISTANT))
    assert any(False in each for each in seen)
    assert learnt is None or seen == {tuple(learnt)}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": [], "chosen": [], "rejected": []}, "preference data"),
        ({**TALK, "rejected_response": "No"}, "preference data"),
        ({"messages": [], "chosen_response": {}, "rejected_response": {}, "tools": []}, "preference data"),
        ({"prompt": "a", "completion": "b", "label": True}, "KTO data"),
        ({**TALK, "images": ["a.png"]}, "rows with images, audio or video"),
        ({"prompt": "a", "completion": "b"}, "prompts and completions of plain text"),
        ({"prompt": [{"role": "user", "content": "Hi"}]}, "prompts without completions"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "rows in the Alpaca format"),
        ({"id": "simple_0", "question": [[]], "function": []}, "BFCL questions without answers"),
        ({"id": "simple_0", "ground_truth": []}, "BFCL answers without questions"),
        ({"simulations": [], "tasks": []}, "results of tau2-bench"),
        ({"Name": "x", "Instances": [], "Function_Description": {}}, "rows in the ToolAlpaca format"),
        ({"code": "x", "api_call": "f()", "api_data": {}}, "rows of Gorilla's APIBench"),
        ({"text": "<|im_start|>user\nHi<|im_end|>"}, "text rendered by a chat template"),
    ],
)
def test_unsupported_rows_are_rejected_by_name(row, name):
    """As a whole file, and as one row; the remedy says what to do."""
    with pytest.raises(DataError) as raised:
        formats.detect(as_records([row, row]), "calls.jsonl")
    assert raised.value.reason is Reason.DATASET_FORMAT_UNKNOWN
    assert name in raised.value.message
    assert raised.value.remedy
    found = RowReader(DatasetFormat.OPENAI).read(Record(Source("calls.jsonl", 1), row))
    assert [problem.rule for problem in found.problems] == [Rule.FORMAT]
    assert found.problems[0].message.startswith(name)


def test_each_unsupported_kind_is_tested():
    """And is in the table of the docs."""
    tried = {case[1] for case in test_unsupported_rows_are_rejected_by_name.pytestmark[0].args[1]}
    assert tried == {kind.name for kind in unsupported.KINDS}
    page = PAGE.read_text()
    assert [kind.name for kind in unsupported.KINDS if f"| {kind.name} |" not in page] == []


def test_the_table_of_the_docs_has_each_format_with_its_source():
    """A row for each format: its name, its module, and the URL of its definition, as in the module."""
    table = re.findall(r"^\| `(\w+)` \| (.+) \| \[`(\w+)\.py`\]\((\S+)\) \|", PAGE.read_text(), re.MULTILINE)
    assert {name for name, *_ in table} == {form.value for form in DatasetFormat} - {"Auto"}
    for name, _, module, address in table:
        read = formats.READERS[DatasetFormat(name)]
        assert read.__module__.rsplit(".", 1)[1] == module
        source = Path(formats.__file__).parent / f"{module}.py"
        assert address in source.read_text(), f"{module}.py names another source than {address}"


def test_multi_turn_entries_are_rejected():
    """BFCL's multi-turn entries have calls but no tool responses."""
    row = {"question": [[{"role": "user", "content": "x"}]] * 2, "function": [WEATHER], "ground_truth": [["f()"], []]}
    (problem,) = RowReader(DatasetFormat.BFCL).read(Record(Source("calls.jsonl", 1), row)).problems
    assert (problem.rule, problem.field) == (Rule.FORMAT, "question")


def test_labels_in_another_order_are_rejected():
    """NESTFUL's arguments refer to labels, which are not trained on."""
    calls = [{"name": "add", "label": "$var_2", "arguments": {"arg_0": "$var_1.result$"}}]
    row = {"input": "x", "output": json.dumps(calls), "tools": "[]", "sample_id": "1"}
    (problem,) = RowReader(DatasetFormat.NESTFUL).read(Record(Source("calls.jsonl", 1), row)).problems
    assert (problem.rule, problem.field) == (Rule.BROKEN_CALL, "output")
