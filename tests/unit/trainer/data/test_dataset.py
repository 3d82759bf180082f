"""The first pass over the data: reading, checks, duplicates, and the split."""

import json

import pytest
from trainer.data.building import openai_row, some_data
from tunemill_api.data import Dataset, DatasetFormat
from tunemill_api.failures import Reason
from tunemill_trainer.data import dataset
from tunemill_trainer.data.dataset import Split
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.errors import StageError


def read(folder, train, held_out=None, chosen_by=None, *, workers=1, contract=(), keep_unsupervised=False, **spec):
    """Read rows as configured in spec.dataset; held-out rows and validation rows (`chosen_by`) may be in own files."""
    configured = Dataset.model_validate({"uri": "s3://team-a/calls.jsonl", **spec})
    how = dataset.ReadOptions(
        configured.format,
        contract,
        keep_unsupervised=keep_unsupervised,
        split_by=configured.evaluation.split_by,
        workers=workers,
    )
    separate = {Split.HELD_OUT: (held_out, "held-out.jsonl"), Split.VALIDATION: (chosen_by, "validation.jsonl")}
    files = {part: some_data(folder, rows, key) for part, (rows, key) in separate.items() if rows is not None}
    return dataset.read(configured, how, some_data(folder, train), files, folder / "spool", lambda: None)


def good(count, start=0):
    """Different valid rows."""
    return [openai_row(f"What is the weather in town {number}?") for number in range(start, start + count)]


BAD = openai_row("And there?", town="Rome")
SILENT = {"messages": [{"role": "user", "content": "Anybody here?"}]}


def test_every_valid_row_gets_one_split(tmp_path):
    """The spool returns the rows in order, with their numbers and splits."""
    found = read(tmp_path, good(40))
    rows = list(found)
    assert found.format is DatasetFormat.OPENAI
    assert [item.number for item in rows] == list(range(1, 41))
    assert {item.split for item in rows} == {Split.TRAIN, Split.HELD_OUT}
    assert (found.rows, found.kept, set(found.offers)) == (40, 40, {"get_weather"})


def test_duplicates_are_used_once(tmp_path):
    """A repeated row is excluded and counted, even if the id of its call differs."""
    again = json.loads(json.dumps(good(1)[0]).replace("c1", "c9"))
    found = read(tmp_path, [*good(3), again])
    assert (found.kept, found.duplicates, found.invalid) == (3, 1, 0)
    (finding,) = found.findings.listed
    assert str(finding) == "calls.jsonl line 4: duplicate"
    assert finding.problem.message.startswith("duplicate of the row at calls.jsonl line 1")


def test_invalid_rows_end_the_run_and_are_named(tmp_path):
    """By default, no row may be invalid. The message has place, rule and field."""
    with pytest.raises(StageError) as raised:
        read(tmp_path, [*good(3), BAD, BAD, BAD, BAD])
    assert raised.value.reason is Reason.DATASET_INVALID_ROWS
    assert raised.value.message.startswith("4 of 7 rows are invalid, spec.dataset.maxInvalidFraction allows 0. ")
    assert "calls.jsonl line 4: extra-argument at turn 2, call 1; " in raised.value.message
    assert raised.value.message.endswith("and 1 more rows")


def test_some_invalid_rows_can_be_allowed(tmp_path):
    """Up to the allowed share, invalid rows are excluded and counted."""
    found = read(tmp_path, [*good(3), BAD], maxInvalidFraction="0.25")
    assert (found.rows, found.invalid, found.kept) == (4, 1, 3)
    assert found.findings.counts[Rule.EXTRA_ARGUMENT] == 1


def test_a_line_that_is_not_json_is_malformed_data(tmp_path):
    """An invalid line has a separate reason, and is named."""
    text = "".join(json.dumps(row) + "\n" for row in good(3)) + '{"messages": [\n'
    with pytest.raises(StageError) as raised:
        read(tmp_path, text)
    assert raised.value.reason is Reason.DATASET_MALFORMED
    assert "calls.jsonl line 4: not-json" in raised.value.message


@pytest.mark.parametrize(
    ("train", "reason", "message"),
    [
        ("", Reason.DATASET_EMPTY, "expected rows in s3://team-a/calls.jsonl, found none"),
        ("\n\n", Reason.DATASET_EMPTY, "expected rows"),
        ("hello\n", Reason.DATASET_MALFORMED, "calls.jsonl line 1: not-json"),
        (
            [{"asked": "a", "said": "b"}],
            Reason.DATASET_FORMAT_UNKNOWN,
            "found none of these in the first 1 rows",
        ),
        (
            [{"prompt": "a", "completion": "b"}] * 2,
            Reason.DATASET_FORMAT_UNKNOWN,
            "most rows of s3://team-a/calls.jsonl are prompts and completions of plain text",
        ),
        (good(1), Reason.DATASET_TOO_SMALL, "two rows with different requests"),
        ([SILENT], Reason.NOTHING_TO_LEARN, "expected assistant messages"),
    ],
)
def test_each_kind_of_unusable_data_has_a_reason(tmp_path, train, reason, message):
    """The reasons for having nothing to train on are distinguished."""
    with pytest.raises(StageError) as raised:
        read(tmp_path, train)
    assert raised.value.reason is reason
    assert message in raised.value.message


def test_rows_of_another_format_than_the_configured_one_are_invalid(tmp_path):
    """The message names the missing fields."""
    with pytest.raises(StageError) as raised:
        read(tmp_path, [{"conversations": good(1)[0]["messages"]}], format="OpenAI")
    assert raised.value.reason is Reason.DATASET_INVALID_ROWS
    assert "calls.jsonl line 1: format at messages" in raised.value.message


def test_messages_with_hermes_tags_are_in_hermes_format(tmp_path):
    """Many public data sets have `messages` with calls in tags."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Town {number}?"},
                {"role": "assistant", "content": '<tool_call>{"name": "f", "arguments": {}}</tool_call>'},
            ],
            "tools": [{"name": "f"}],
        }
        for number in range(3)
    ]
    found = read(tmp_path, rows)
    assert found.format is DatasetFormat.HERMES
    assert all(item.row.messages[1].calls for item in found)


def test_max_rows_counts_from_the_start(tmp_path):
    """spec.dataset.maxRows limits the rows that are read."""
    assert read(tmp_path, [*good(5), BAD], maxRows=5).rows == 5


def test_rows_without_an_assistant_turn_need_loss_on_all(tmp_path):
    """Otherwise they are excluded and counted. They are always training rows."""
    assert (read(tmp_path, [*good(3), SILENT]).unsupervised, read(tmp_path, [*good(3), SILENT]).kept) == (1, 3)
    kept = list(read(tmp_path, [*good(3), SILENT], keep_unsupervised=True))
    assert (len(kept), kept[-1].split) == (4, Split.TRAIN)
    rows = [*good(3), *({"messages": [{"role": "user", "content": f"Anybody {n}?"}]} for n in range(20))]
    kept = list(read(tmp_path, rows, keep_unsupervised=True, validation={"fraction": "0.8"}))
    assert {item.split for item in kept[3:]} == {Split.TRAIN}


def test_evaluation_data_is_held_out(tmp_path):
    """With evaluation.uri, all of its rows are held out, and training rows with their requests are excluded."""
    found = read(tmp_path, good(10), good(3), evaluation={"uri": "s3://team-a/held-out.jsonl"})
    assert [item.split for item in found] == [Split.HELD_OUT] * 3 + [Split.TRAIN] * 7
    assert (found.duplicates, found.leaked) == (0, 3)
    first = found.findings.listed[0]
    assert str(first) == "calls.jsonl line 1: leaked"
    assert first.problem.message == "the held-out row at held-out.jsonl line 1 has the same request"


def splits(found):
    """The split of each row, by its question."""
    return {item.row.messages[0].content: item.split for item in found}


def test_validation_rows_come_from_the_training_rows(tmp_path):
    """Held-out rows stay the same, adding rows moves none, and rows with the same question share a split."""
    spec = {"validation": {"fraction": "0.2"}}
    without, some = splits(read(tmp_path, good(200))), splits(read(tmp_path, good(200), **spec))
    assert {row for row, split in without.items() if split is Split.HELD_OUT} == {
        row for row, split in some.items() if split is Split.HELD_OUT
    }
    assert 20 < sum(split is Split.VALIDATION for split in some.values()) < 60
    answers = [openai_row(f"What is the weather in town {number}?", city="Oslo") for number in range(200)]
    more = read(tmp_path, [*good(300), *answers], **spec)
    assert {item.split is some.get(item.row.messages[0].content, item.split) for item in more} == {True}


def calling(question, *names):
    """A row that calls these tools, and offers one more."""
    row = openai_row(question)
    (call,) = row["messages"][1]["tool_calls"]
    row["messages"][1]["tool_calls"] = [
        {**call, "id": name, "function": {"name": name, "arguments": "{}"}} for name in names
    ]
    row["tools"] = [{"type": "function", "function": {"name": name}} for name in (*names, "other")]
    return row


def test_whole_tools_are_held_out(tmp_path):
    """No training or validation row calls a tool that is held out, also if it calls several."""
    spec = {"evaluation": {"splitBy": "Tools", "fraction": "0.2"}, "validation": {"fraction": "0.2"}}
    tools = [f"tool_{number}" for number in range(50)]
    single = [calling(f"Question {number}", tools[number % 50]) for number in range(200)]
    pairs = [calling(f"Both {number}", tools[number % 50], tools[(number + 1) % 50]) for number in range(100)]
    plain = [
        {"messages": [{"role": "user", "content": f"Hello {number}"}, {"role": "assistant", "content": "Hello!"}]}
        for number in range(100)
    ]
    called = {split: set() for split in Split}
    counts = dict.fromkeys(Split, 0)
    for item in read(tmp_path, [*single, *pairs, *plain], **spec):
        found = {call.name for message in item.row.messages for call in message.calls}
        called[item.split] |= found
        counts[item.split] += not found
    held_out = {item for item in tools if item not in called[Split.TRAIN] | called[Split.VALIDATION]}
    validation = {item for item in tools if item not in called[Split.TRAIN]} - held_out
    assert 3 <= len(held_out) <= 20
    assert 3 <= len(validation) <= 20
    assert held_out <= called[Split.HELD_OUT]
    assert min(counts[split] for split in (Split.TRAIN, Split.VALIDATION, Split.HELD_OUT)) > 5, "without a call"


def test_of_few_tools_one_is_held_out(tmp_path):
    """Whatever the fraction. With a single tool, nothing could be trained on."""
    spec = {"evaluation": {"splitBy": "Tools", "fraction": "0.000001"}}
    rows = [calling(f"Question {number}", f"tool_{number % 2}") for number in range(20)]
    found = [item.split for item in read(tmp_path, rows, **spec)]
    assert (found.count(Split.HELD_OUT), found.count(Split.TRAIN)) == (10, 10)
    with pytest.raises(StageError, match="two rows that call different tools"):
        read(tmp_path, rows[::2], **spec)


def test_validation_rows_are_drawn_in_addition_to_separate_evaluation_data(tmp_path):
    """The rows of evaluation.uri are all held out; those of the same question were excluded before."""
    spec = {"validation": {}, "evaluation": {"uri": "s3://team-a/held-out.jsonl"}}
    found = [item.split for item in read(tmp_path, good(400), good(3), **spec)]
    assert found[:3] == [Split.HELD_OUT] * 3
    assert set(found[3:]) == {Split.TRAIN, Split.VALIDATION}
    assert 5 < found.count(Split.VALIDATION) < 45


def test_validation_rows_can_be_in_a_separate_file(tmp_path):
    """No row of another split has their request, and all other rows are split as without them."""
    spec = {"validation": {"uri": "s3://team-a/validation.jsonl", "fraction": "0.9"}}
    found = read(tmp_path, good(200), chosen_by=good(10, start=195), **spec)
    assert [item.split for item in found][:10] == [Split.VALIDATION] * 10
    assert found.leaked == 5
    last = found.findings.listed[-1].problem.message
    assert last == "the validation row at validation.jsonl line 5 has the same request"
    without, some = splits(read(tmp_path, good(195))), splits(found)
    assert {row: some[row] for row in without} == without

    both = read(tmp_path, good(20), good(3), good(5), evaluation={"uri": "s3://team-a/held-out.jsonl"}, **spec)
    expected = [Split.HELD_OUT] * 3 + [Split.VALIDATION] * 2 + [Split.TRAIN] * 15
    assert [item.split for item in both] == expected
    assert both.leaked == 3 + 5

    with pytest.raises(StageError, match=r"one usable row in s3://.*/validation\.jsonl that is not in another split"):
        read(tmp_path, good(20), good(3), good(3), evaluation={"uri": "s3://team-a/held-out.jsonl"}, **spec)


def others(folder, rows, found, *splits, key="chat.jsonl"):
    """Read rows of another file, without those whose requests are in these splits of a data set."""
    with dataset.Requests(found, splits, lambda: None) as known:
        how = dataset.ReadOptions()
        return dataset.read_others(how, some_data(folder, rows, key), folder / "others", known)


def test_a_suite_has_no_training_rows(tmp_path):
    """Held-out rows may be in it, as they are not trained on. Each excluded row is a finding with both places."""
    found = read(tmp_path, good(40), validation={"fraction": "0.2"})
    suite = others(tmp_path, good(60), found, Split.TRAIN, Split.VALIDATION)
    held_out = {question for question, split in splits(found).items() if split is Split.HELD_OUT}
    new = {row["messages"][0]["content"] for row in good(20, start=40)}
    assert set(splits(suite)) == held_out | new
    assert set(splits(suite).values()) == {Split.HELD_OUT}
    assert suite.leaked == 40 - len(held_out)
    first = suite.findings.listed[0]
    assert first.problem.rule is Rule.LEAKED
    assert (
        first.problem.message == f"the row of spec.dataset at calls.jsonl line {first.source.line} has the same request"
    )
    assert list(read(tmp_path, good(40), validation={"fraction": "0.2"})) == list(found), "the data set is as before"


def replayed(folder, count, rows, seed=42):
    """Add general rows to 40 rows."""
    found = read(folder, good(40), validation={"fraction": "0.2"})
    found.add_replay(others(folder, rows, found, *Split), count, seed)
    return found


def test_general_rows_are_added_without_moving_other_rows(tmp_path):
    """None has the request of another row, of whatever split; the others keep their splits and numbers."""
    before = [*read(tmp_path, good(40), validation={"fraction": "0.2"})]
    found = replayed(tmp_path, 30, good(100))
    rows = [*found]
    assert rows[:40] == before
    assert {item.split for item in rows[40:]} == {Split.REPLAY}
    assert len(rows) == found.kept == 70
    assert len({item.number for item in rows}) == 70
    assert len(splits(found)) == 70
    assert found.rows == 40


def test_the_seed_selects_general_rows(tmp_path):
    """The same seed selects the same rows wherever they are in the file; fewer rows than wanted are all used."""

    def chosen(count, rows, seed=42):
        return {
            item.row.messages[0].content for item in replayed(tmp_path, count, rows, seed) if item.split is Split.REPLAY
        }

    pool = good(100, start=40)
    assert chosen(30, pool) == chosen(30, pool[::-1])
    assert chosen(30, pool) != chosen(30, pool, seed=7)
    assert chosen(30, pool) < chosen(31, pool)
    assert len(chosen(500, pool)) == 100


def test_at_least_one_row_is_trained_on(tmp_path):
    """The fractions add up to more than 1, which only the CRD refuses."""
    found = [item.split for item in read(tmp_path, good(20), validation={"fraction": "0.95"})]
    assert found.count(Split.TRAIN) == 1


def test_a_leak_depends_only_on_the_request(tmp_path):
    """A training row with the request of a held-out row is excluded, even if the reply differs."""
    again = openai_row("what is the weather  in town 1?", city="Oslo")
    found = read(tmp_path, [*good(3, start=5), again], good(3), evaluation={"uri": "s3://team-a/held-out.jsonl"})
    assert (found.kept, found.leaked) == (6, 1)


def test_the_number_of_processes_does_not_change_the_result(tmp_path):
    """Rows return in order, with the same splits and findings."""
    rows = [*good(700), BAD, *good(5), SILENT]
    one, many = (read(tmp_path, rows, workers=workers, maxInvalidFraction="0.1") for workers in (1, 2))
    assert one.findings.listed == many.findings.listed
    assert (many.invalid, many.duplicates, many.unsupervised) == (1, 5, 1)
    assert list(one) == list(many)


def test_rarely_called_tools_are_reported(tmp_path):
    """One warning names the tools, at the first row that declares the rarest one."""
    rows = good(30)
    for row in rows[3:]:
        row["tools"].append({"function": {"name": "get_news", "parameters": {}}})
    rows[5]["messages"][1]["tool_calls"][0]["function"] |= {"name": "get_news", "arguments": "{}"}
    (finding,) = read(tmp_path, rows).findings.listed
    assert finding.problem.rule is Rule.IMBALANCE
    assert str(finding) == "calls.jsonl line 4: imbalance"
    assert finding.problem.message == "get_weather is called 29 times, but get_news 1 times"
    assert read(tmp_path, rows[:15]).findings.listed == []


def test_uncalled_tools_are_reported(tmp_path):
    """One warning for all of them, if there are enough calls."""
    rows = good(30)
    for row in rows[3:]:
        row["tools"] += [{"function": {"name": f"tool_{number}"}} for number in range(7)]
    (finding,) = read(tmp_path, rows).findings.listed
    assert str(finding) == "calls.jsonl line 4: uncalled-tool"
    assert finding.problem.message == "no row calls tool_0, tool_1, tool_2, tool_3, tool_4 and 2 more"
    assert read(tmp_path, rows[:15]).findings.listed == []


def test_rows_that_differ_only_in_ids_are_duplicates(tmp_path):
    """The ids of rows and calls are not trained on."""
    first, second = good(2)[:1] * 2
    second = json.loads(json.dumps(second | {"id": "another"}).replace('"c1"', '"c2"'))
    assert first != second
    dataset = read(tmp_path, [*good(3), second])
    assert (dataset.duplicates, dataset.findings.counts) == (1, {Rule.DUPLICATE: 1})


def test_evaluation_data_equal_to_the_training_data_is_rejected(tmp_path):
    """Training on held-out requests is not allowed."""
    with pytest.raises(StageError) as raised:
        read(tmp_path, good(3), good(3), evaluation={"uri": "s3://team-a/held-out.jsonl"})
    assert raised.value.reason is Reason.DATASET_TOO_SMALL
    assert "s3://team-a/calls.jsonl" in raised.value.message
