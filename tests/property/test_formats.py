"""Any conversation, written in every format and variant, is read unchanged."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tunemill_api.data import DatasetFormat
from tunemill_trainer.data import formats
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import Call, Message, Role, Source

letters = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="<>[")
text = st.text(letters, max_size=30).map(str.strip)
said = text.filter(bool)
words = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
calls = st.builds(Call, words, st.dictionaries(words, values, max_size=3))
several = st.lists(calls, min_size=1, max_size=3).map(tuple)
spelling = st.sampled_from([json.dumps, repr])
"""JSON, or as Python's str() wrote much of the public data."""

thorough = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(form, row):
    """The turns of a row, as comparable text: 1, 1.0 and true are different values."""
    return as_text(formats.READERS[form](row)[0])


def as_text(messages):
    """Turns as text, without tool names of responses, which only some formats have."""
    return json.dumps([message.to_json() | {"name": ""} for message in messages], sort_keys=True)


def conversation(question, thought, called, answers, reply):
    """A request, calls, their responses, a reply."""
    return [
        Message(Role.USER, question),
        Message(Role.ASSISTANT, "", reasoning=thought, calls=called),
        *[Message(Role.TOOL, answer) for answer in answers],
        Message(Role.ASSISTANT, reply),
    ]


@thorough
@given(question=text, thought=text, called=several, answer=text, reply=said, as_object=st.booleans())
def test_openai_format_round_trips(question, thought, called, answer, reply, as_object):
    """Arguments as text or as an object, parallel calls with ids, reasoning in its own field."""
    meant = conversation(question, thought, called, [answer] * len(called), reply)
    made = [
        {
            "id": f"c{number}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call.arguments if as_object else json.dumps(call.arguments),
            },
        }
        for number, call in enumerate(called)
    ]
    turns = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    turns.append({"role": "assistant", "content": None, "reasoning_content": thought, "tool_calls": made})
    turns += [{"role": "tool", "tool_call_id": call["id"], "content": answer} for call in made]
    turns.append({"role": "assistant", "content": reply})
    assert read(DatasetFormat.OPENAI, {"messages": turns}) == as_text(meant)


@thorough
@given(question=text, thought=said, called=several, answer=said, reply=said, write=spelling, sharegpt=st.booleans())
def test_hermes_format_round_trips(question, thought, called, answer, reply, write, sharegpt):
    """Tags around JSON or Python literals, several in a turn, with both names of fields."""
    meant = conversation(question, thought, called, [answer] * len(called), reply)
    blocks = "\n".join(f"<tool_call>\n{write(call.to_json())}\n</tool_call>" for call in called)
    responses = "\n".join(f"<tool_response>\n{answer}\n</tool_response>" for _ in called)
    turns = [("human", question), ("gpt", f"<think>{thought}</think>{blocks}"), ("tool", responses), ("gpt", reply)]
    who, what = ("from", "value") if sharegpt else ("role", "content")
    assert read(DatasetFormat.HERMES, {"conversations": [{who: a, what: b} for a, b in turns]}) == as_text(meant)


@thorough
@given(question=text, called=several, answer=said, reply=said)
def test_sharegpt_format_round_trips(question, called, answer, reply):
    """Calls as separate turns."""
    meant = conversation(question, "", called, [answer], reply)
    made = json.dumps([call.to_json() for call in called])
    turns = [("human", question), ("function_call", made), ("observation", answer), ("gpt", reply)]
    assert read(DatasetFormat.SHAREGPT, {"conversations": [{"from": a, "value": b} for a, b in turns]}) == as_text(
        meant
    )


@thorough
@given(question=text, called=several)
def test_xlam_format_round_trips(question, called):
    """All fields as JSON text."""
    row = {"query": question, "tools": "[]", "answers": json.dumps([call.to_json() for call in called])}
    meant = [Message(Role.USER, question), Message(Role.ASSISTANT, "", calls=called)]
    assert read(DatasetFormat.XLAM, row) == as_text(meant)


@thorough
@given(question=text, called=several, answer=text, reply=said, write=spelling)
def test_toolace_format_round_trips(question, called, answer, reply, write):
    """Calls in brackets, with quotes and brackets in values."""

    def written(call):
        arguments = ", ".join(f"{name}={write(value)}" for name, value in call.arguments.items())
        return f"{call.name}({arguments})"

    meant = conversation(question, "", called, [answer], reply)
    turns = [("user", question), ("assistant", f"[{', '.join(map(written, called))}]"), ("tool", answer)]
    turns.append(("assistant", reply))
    row = {"system": "", "conversations": [{"from": a, "value": b} for a, b in turns]}
    assert read(DatasetFormat.TOOLACE, row) == as_text(meant)


@thorough
@given(question=said, call=calls, answer=said, reply=said, quoted=st.booleans())
def test_glaive_format_round_trips(question, call, answer, reply, quoted):
    """Arguments as JSON in single quotes with escaped apostrophes, or as an object."""
    arguments = json.dumps(call.arguments)
    if quoted:
        arguments = "'" + arguments.replace("'", "\\'") + "'"
    made = f'<functioncall> {{"name": "{call.name}", "arguments": {arguments}}} <|endoftext|>'
    turns = [f"USER: {question}", f"ASSISTANT: {made}", f"FUNCTION RESPONSE: {answer}", f"ASSISTANT: {reply}"]
    row = {"system": "", "chat": "\n\n\n".join(turns) + " <|endoftext|>"}
    assert read(DatasetFormat.GLAIVE, row) == as_text(conversation(question, "", (call,), [answer], reply))


@thorough
@given(question=text, call=calls, as_object=st.booleans())
def test_simple_format_round_trips(question, call, as_object):
    """One request and one call, with the guide's instruction."""
    arguments = call.arguments if as_object else json.dumps(call.arguments)
    row = {"user_content": question, "tool_name": call.name, "tool_arguments": arguments}
    meant = [Message(Role.USER, question), Message(Role.ASSISTANT, "", calls=(call,))]
    messages, _ = formats.READERS[DatasetFormat.SIMPLE](row)
    assert as_text(messages[1:]) == as_text(meant)


names = st.sampled_from(
    [
        "messages",
        "conversations",
        "role",
        "from",
        "content",
        "value",
        "tool_calls",
        "function_call",
        "function",
        "name",
        "arguments",
        "parameters",
        "tools",
        "system",
        "chat",
        "query",
        "answers",
        "user_content",
        "tool_name",
        "tool_arguments",
        "id",
        "tool_call_id",
        "type",
        "properties",
        "required",
        "items",
        "default",
        "text",
        "weight",
        "loss",
        "mask",
        "prompt",
        "completion",
        "request",
        "response",
        "choices",
        "message",
        "traj",
        "reward_info",
        "instruction",
        "input",
        "output",
        "question",
        "ground_truth",
        "correct_answer",
        "history",
        "input_schema",
        "tool_use_id",
    ]
)
fragments = (
    st.sampled_from(
        [
            "user",
            "assistant",
            "tool",
            "human",
            "gpt",
            "function_call",
            "f",
            "object",
            "dict",
            "{}",
            "[]",
            "[f(a=1)]",
            "'",
        ]
    )
    | st.sampled_from(
        [
            "<tool_call>{'name': 'f'}</tool_call>",
            "<tools>[</tools>",
            "USER: x ASSISTANT: <functioncall> {",
            '[{"name": "f"}',
            "[TOOL_CALLS][{'name': {[1]: 2}}]",
            "Thought: x\nAction: f\nAction Input: {",
            "[ToolCall(function=f)]",
            "API-Request: [f(a=1)]->",
            "```tool_code\nf(a={{}})\n```",
            "<think>x</think>call:f{",
        ]
    )
    | st.sampled_from(["tool_use", "tool_result", "tool_call", "tool_response", "reasoning", "function_call_output"])
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | fragments | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
    max_leaves=25,
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(row=st.dictionaries(names, anything, min_size=1, max_size=6), form=st.sampled_from(list(formats.READERS)))
def test_a_row_of_any_shape_gives_findings_but_never_an_exception(row, form):
    """With any value in place of the expected one."""
    found = RowReader(form).read(Record(Source("calls.jsonl", 1), row))
    assert found.row is not None or found.problems
    assert all(problem.message for problem in found.problems)


def test_extreme_nesting_is_rejected():
    """Checking it would exhaust Python's stack, in a call and in a tool's schema."""
    deep: dict = {}
    for _ in range(400):
        deep = {"items": deep}
    turns = [{"role": "user", "content": "x"}]
    calling = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}
    for row in (
        {"messages": [*turns, calling], "tools": [{"name": "f"}]},
        {"messages": turns, "tools": [{"name": "f", "parameters": {"type": "object", "properties": {"a": deep}}}]},
    ):
        (problem,) = RowReader(DatasetFormat.OPENAI).read(Record(Source("calls.jsonl", 1), row)).problems
        assert "nested too deeply" in problem.message
