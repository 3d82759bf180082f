"""Any conversation: the supervised tokens decode to the assistant's turns, in the templates of every family."""

from functools import cache

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainer.chat.speakers import CHATML, EVERYTHING, GEMMA, LLAMA3, PLAIN, a_speaker
from tunemill_api.data import TokenizerMode
from tunemill_trainer.chat import templates, tokenizer
from tunemill_trainer.data.findings import invalidating
from tunemill_trainer.data.lint import problems
from tunemill_trainer.data.rows import Call, Message, Role, Row, Source, Tool
from tunemill_trainer.data.text_calls import MARKS
from tunemill_trainer.judge.parse import parse_reply
from tunemill_trainer.prepared import IGNORED

SPECIAL = [*GEMMA, *CHATML, *LLAMA3, *PLAIN]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(
    lambda value: not any(marker in value for marker in [*MARKS, *SPECIAL, "think>"])
)
said = text.filter(lambda value: value.strip())
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(Call, st.sampled_from(["look_up", "send"]), st.dictionaries(text, values, max_size=3))
TOOLS = tuple(
    Tool(name, "Does things", {"type": "object", "additionalProperties": True}) for name in ("look_up", "send")
)


@st.composite
def conversations(draw) -> Row:
    """A conversation that lint accepts."""
    messages = [Message(Role.SYSTEM, draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(Role.USER, draw(said)))
        thought = draw(st.just("") | said)
        called = tuple(draw(st.lists(calls, max_size=2)))
        if called:
            messages.append(Message(Role.ASSISTANT, draw(text), reasoning=thought, calls=called))
            messages += [Message(Role.TOOL, draw(text)) for _ in called]
        messages.append(Message(Role.ASSISTANT, draw(said), reasoning=thought))
    return Row(tuple(messages), TOOLS, Source("calls.jsonl", 1))


@cache
def prepared(family: int):
    """A tokenizer with all tags and its encoder."""
    speaker = a_speaker([GEMMA, CHATML, LLAMA3, PLAIN][family])
    tokenizer.prepare_vocabulary(speaker, TokenizerMode.EXTEND, EVERYTHING, [])
    return speaker, templates.tunemill_template(speaker, EVERYTHING, "").encoder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(row=conversations(), family=st.integers(0, 3))
def test_supervised_tokens_decode_to_the_assistant_turns(row, family):
    """Every turn decodes to its reasoning, its text and exactly its calls, with the end of turn."""
    assert not invalidating(problems(row))
    speaker, encoder = prepared(family)
    (encoded,) = encoder.encode([row])
    assert encoded.problem is None
    (example,) = encoded.examples
    labels = example.labels(everything=False)
    assert sum(label != IGNORED for label in labels) == sum(turn.end - turn.start for turn in example.turns)
    spoken = [message for message in row.messages if message.role is Role.ASSISTANT]
    assert len(example.turns) == len(spoken)
    for turn, message in zip(example.turns, spoken, strict=True):
        assert encoder.prompt_ids(row.messages[: turn.message], row.tools) == example.input_ids[: turn.start]
        reply = speaker.decode(labels[turn.start : turn.end - 1])
        assert parse_reply(reply).calls == message.calls
        beginning = f"<think>{message.reasoning.strip()}</think>\n" if message.reasoning else ""
        assert reply.startswith(beginning + message.content.strip())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(row=conversations())
def test_a_row_round_trips(row):
    """Through the file between the two passes, and through a held-out case."""
    assert tuple(Message.from_json(message.to_json()) for message in row.messages) == row.messages
    assert tuple(Tool.from_json(tool.to_json()) for tool in row.tools) == row.tools
