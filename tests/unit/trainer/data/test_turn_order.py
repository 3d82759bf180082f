"""Merging consecutive assistant turns, and ordering tool responses."""

import pytest
from trainer.data.building import openai_row
from tunemill_api.data import DatasetFormat
from tunemill_trainer.data.findings import Rule
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import Role, Source

ROLES = ["user", "assistant", "tool", "tool", "assistant"]


def read(row, form=DatasetFormat.OPENAI):
    """Read one row."""
    return RowReader(form).read(Record(Source("calls.jsonl", 1), row))


def a_conversation(*more):
    """A row with a call, and the given turns after it."""
    row = openai_row()
    row["messages"] += more
    return row


def two_calls(*ids, answered=()):
    """A row with parallel calls, some of them answered."""
    row = openai_row()
    (call,) = row["messages"][1]["tool_calls"]
    row["messages"][1]["tool_calls"] = [call | {"id": identifier} for identifier in ids]
    row["messages"] += [
        {"role": "tool", "tool_call_id": identifier, "content": f"answer to {identifier}"} for identifier in answered
    ]
    return row


def sharegpt(*turns):
    """A row with turns from pairs of role and text."""
    listed = [{"from": speaker, "value": said} for speaker, said in turns]
    return {"conversations": listed, "tools": openai_row()["tools"]}


CALL = '{"name": "get_weather", "arguments": {"city": "Rome"}}'


@pytest.mark.parametrize("ids", [("c1", "c2"), (1, 2)])
def test_responses_are_in_the_order_of_their_calls(ids):
    """Chat templates match them by order; the next turn can reuse the ids."""
    row = two_calls(*ids, answered=reversed(ids))
    row["messages"] += two_calls(*ids)["messages"][1:]
    messages = read(row).row.messages
    assert [len(message.calls) for message in messages] == [0, 2, 0, 0, 2]
    assert [message.name for message in messages[2:4]] == ["get_weather", "get_weather"]
    assert [message.content for message in messages[2:4]] == [f"answer to {each}" for each in ids]


def test_responses_without_ids_are_matched_by_tool():
    """If each tool is called once; otherwise by order."""
    row = two_calls("", "", answered=["", ""])
    row["messages"][1]["tool_calls"][1] = {"function": {"name": "other", "arguments": {}}}
    row["tools"].append({"function": {"name": "other"}})
    for answer, name in zip(row["messages"][2:], ("other", "get_weather"), strict=True):
        answer |= {"name": name, "content": name}
    assert [message.content for message in read(row).row.messages[2:]] == ["get_weather", "other"]


@pytest.mark.parametrize(
    ("row", "rule", "message"),
    [
        (a_conversation({"role": "tool", "tool_call_id": "c2", "content": "7"}), Rule.UNKNOWN_CALL_ID, "has the id c2"),
        (a_conversation({"role": "user", "content": "And?"}), Rule.UNANSWERED_CALL, "the call id c1"),
        (
            a_conversation(*[{"role": "tool", "tool_call_id": "c1", "content": "7"}] * 2),
            Rule.DUPLICATE_CALL_ID,
            "two tool messages have the call id c1",
        ),
        (two_calls("c1", "c1"), Rule.DUPLICATE_CALL_ID, "two calls of the assistant turn have the id c1"),
        (two_calls("c1", "c2", answered=["c2"]), Rule.UNANSWERED_CALL, "the call id c1"),
    ],
)
def test_calls_and_responses_that_do_not_match(row, rule, message):
    """Every mistake has its rule; nothing is guessed."""
    (problem,) = read(row).problems
    assert problem.rule is rule
    assert message in problem.message
    assert problem.field.startswith("turn ")


def test_calls_in_consecutive_turns_are_parallel():
    """In LLaMA-Factory and ms-swift, each call is a turn."""
    turns = [
        ("human", "x"),
        ("function_call", CALL),
        ("function_call", CALL),
        ("observation", "1"),
        ("observation", "2"),
    ]
    found = read(sharegpt(*turns, ("gpt", "both")), DatasetFormat.SHAREGPT)
    assert [message.role for message in found.row.messages] == ROLES
    assert len(found.row.messages[1].calls) == 2
    assert found.problems == ()


def test_text_before_a_call_belongs_to_its_turn():
    """As a server would return it."""
    found = read(sharegpt(("human", "x"), ("gpt", "I look."), ("function_call", CALL)), DatasetFormat.SHAREGPT)
    (_, message) = found.row.messages
    assert (message.content, len(message.calls), found.problems) == ("I look.", 1, ())


def test_two_consecutive_texts_are_merged_and_reported():
    """A model generates one turn at a time."""
    found = read(sharegpt(("human", "x"), ("gpt", "One."), ("gpt", "Two.")), DatasetFormat.SHAREGPT)
    assert found.row.messages[1].content == "One.\n\nTwo."
    assert [problem.rule for problem in found.problems] == [Rule.JOINED_TURNS]


def test_turns_with_different_loss_masks_are_not_merged():
    """The loss includes whole turns."""
    row = sharegpt(("human", "x"), ("gpt", "One."), ("gpt", "Two."))
    row["conversations"][1]["weight"] = 0
    assert [problem.rule for problem in read(row, DatasetFormat.SHAREGPT).problems] == [Rule.ROLE_ORDER]


def test_text_after_a_call_is_not_its_response():
    """It stays a separate turn, and the call is unanswered."""
    found = read(sharegpt(("human", "x"), ("function_call", CALL), ("gpt", "Done.")), DatasetFormat.SHAREGPT)
    assert [problem.rule for problem in found.problems] == [Rule.UNANSWERED_CALL]


def test_training_can_be_limited_to_the_last_turn():
    """The other assistant turns are history."""
    row = two_calls("c1", "c2", answered=["c1", "c2"])
    row["messages"].append({"role": "assistant", "content": "Done."})
    reader = RowReader(DatasetFormat.OPENAI, last_turn_only=True)
    messages = reader.read(Record(Source("calls.jsonl", 1), row)).row.messages
    assert [message.learnt for message in messages if message.role is Role.ASSISTANT] == [False, True]
