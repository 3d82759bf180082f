"""Every call format, parsed like the server's parser of the same name."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from tunemill_dev.agreement.writing import written
from tunemill_trainer.data.rows import Call, JsonObject, Tool
from tunemill_trainer.judge.lenient import read_leniently
from tunemill_trainer.judge.parse import ReplyFormat, detect, parse_reply
from tunemill_trainer.judge.replies import functiongemma

OSLO = Call("get_weather", {"city": "Oslo", "days": 2})
TIMER = Call("timer", {})
GEMMA_TIMER = "<start_function_call>call:timer{a:<escape>1<escape>}"

WELL_WRITTEN = {
    ReplyFormat.HERMES: '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "timer", "arguments": {}}\n</tool_call>',
    ReplyFormat.MISTRAL: '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}, '
    '{"name": "timer", "arguments": {}}]',
    ReplyFormat.LLAMA3_JSON: '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 2}}; '
    '{"name": "timer", "parameters": {}}',
    ReplyFormat.PYTHONIC: '[get_weather(city="Oslo", days=2), timer()]',
    ReplyFormat.LLAMA4_PYTHONIC: '<|python_start|>[get_weather(city="Oslo", days=2), timer()]<|python_end|>',
    ReplyFormat.JSON: '[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}, '
    '{"name": "timer", "arguments": {}}]',
}


@pytest.mark.parametrize("reply_format", WELL_WRITTEN)
def test_two_calls_as_each_family_writes_them(reply_format: ReplyFormat):
    """A name, arguments of any type, and no arguments."""
    reply = parse_reply(WELL_WRITTEN[reply_format], reply_format)
    assert (reply.calls, reply.blocks, reply.error) == ((OSLO, TIMER), 2, "")
    assert detect([WELL_WRITTEN[reply_format]]) is reply_format


@pytest.mark.parametrize("reply_format", ReplyFormat)
@pytest.mark.parametrize(
    "text",
    ["", "Hello!", "It is [1] about {braces} (and such).", '{"city": "Oslo"}', "[1, 2]", "a[0](b)", "def f(x): {x}"],
)
def test_prose_is_no_call(reply_format: ReplyFormat, text: str):
    """Brackets, braces and JSON replies are not calls."""
    reply = parse_reply(text, reply_format)
    assert (reply.calls, reply.blocks, reply.error) == ((), 0, "")


@pytest.mark.parametrize(
    ("reply_format", "text"),
    [
        (ReplyFormat.MISTRAL, '[TOOL_CALLS]timer{"a": }'),
        (ReplyFormat.MISTRAL, "[TOOL_CALLS] []"),
        (ReplyFormat.PYTHONIC, "[\n  timer()\n]"),
        (ReplyFormat.PYTHONIC, "[my.timer()]"),
        (ReplyFormat.PYTHONIC, '[timer("Oslo")]'),
        (ReplyFormat.PYTHONIC, "[timer(a=1),]"),
        (ReplyFormat.QWEN3_CODER, "<tool_call>timer</tool_call><tool_call>"),
        (
            ReplyFormat.DEEPSEEK_V3,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>timer<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        ),
        (ReplyFormat.DEEPSEEK_V31, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\n}<｜tool▁call▁end｜>"),
        (ReplyFormat.KIMI_K2, "<|tool_calls_section_begin|><|tool_call_begin|>f<|tool_call_argument_begin|>{}"),
        (ReplyFormat.GRANITE, "<|tool_call|>timer"),
        (ReplyFormat.GRANITE4, '<tool_call>{"name": "timer", "arguments": {}}'),
        (ReplyFormat.JAMBA, '<tool_calls>[{"name": "timer", "arguments": {}}]'),
        (ReplyFormat.PHI4_MINI_JSON, 'functools[{"name": "timer", "arguments": {"a": [1]}}]'),
        (ReplyFormat.COHERE_COMMAND3, '<|START_ACTION|>[{"tool_name": "timer", "parameters": {}}]<|END_ACTION|>'),
        (ReplyFormat.LFM2, "<|tool_call_start|>[]<|tool_call_end|>"),
        (ReplyFormat.OPENAI, "<|channel|>commentary now to=functions.f<|message|>{}<|call|>"),
        (ReplyFormat.OPENAI, '<|channel|>commentary to=functions.f<|message|>{"a": }<|call|>'),
        (ReplyFormat.NEMOTRON_JSON, "<TOOLCALL>[]</TOOLCALL>"),
        (ReplyFormat.OLMO3, "<function_calls>\ntimer(\n</function_calls>"),
        (ReplyFormat.LLAMA3_JSON, '{"name": "timer"}'),
        (ReplyFormat.LLAMA3_JSON, '{"name": "timer", "parameters": {}'),
        (ReplyFormat.LLAMA3_JSON, '{"name": "timer", "parameters": {}}{"name": "timer", "parameters": {}}'),
        (ReplyFormat.LLAMA3_JSON, "<|python_tag|>timer()"),
        (ReplyFormat.PYTHONIC, "[timer(), timer(]"),
        (ReplyFormat.PYTHONIC, "[timer()] Done."),
        (ReplyFormat.PYTHONIC, "[timer(a=x)]"),
        (ReplyFormat.PYTHONIC, "[timer(**{'a': 1})]"),
        (ReplyFormat.PYTHONIC, "[timer(a=1e999)]"),
        (ReplyFormat.PYTHONIC, "[timer(), 3]"),
        (ReplyFormat.PYTHONIC, "[timer(a='cut"),
        (ReplyFormat.PYTHONIC, f"[timer(a={'1+' * 1500}1)]"),
        (ReplyFormat.PYTHONIC, f"[timer(a={'-' * 1500}1)]"),
        (ReplyFormat.PYTHONIC, f"[timer{'.a' * 1500}()]"),
        (ReplyFormat.PYTHONIC, "[timer(a='\\ud83d')]"),
        (ReplyFormat.LLAMA4_PYTHONIC, "<|python_start|>[timer()] Done.<|python_end|>"),
        (ReplyFormat.JSON, '```json\n{"name": "timer", "arguments": {}}\n```'[8:]),
        (ReplyFormat.JSON, '{"name": "timer", "arguments": {}} Done.'),
        (ReplyFormat.JSON, '{"name": "timer", "arguments": "{}"}'),
        (ReplyFormat.JSON, '{"name": "timer", "arguments": {"a": NaN}}'),
        (ReplyFormat.FUNCTIONGEMMA, "<start_function_call>timer{}<end_function_call>"),
        (ReplyFormat.FUNCTIONGEMMA, "<start_function_call>call:my.timer{}<end_function_call>"),
        (ReplyFormat.FUNCTIONGEMMA, "<start_function_call>call:timer{a:<escape>NaN<escape>}<end_function_call>"),
        (ReplyFormat.HERMES, '<tool_call>{"name": "timer", "arguments": {"a": "\\ud83d"}}</tool_call>'),
        (ReplyFormat.HERMES, '<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>'),
        (ReplyFormat.HERMES, '<tool_call>{"name": "timer", "arguments": {"a": 1e999}}</tool_call>'),
        (ReplyFormat.LLAMA3_JSON, '{"name": "timer", "parameters": {"a": -1e999}}'),
        (ReplyFormat.PYTHONIC, f"[timer(a=0x{'f' * 9999})]"),
        (ReplyFormat.MISTRAL, "[TOOL_CALLS][ARGS]{}"),
    ],
)
def test_a_broken_call_breaks_the_reply(reply_format: ReplyFormat, text: str):
    """Clients receive no call from these replies, and the error has the reason."""
    reply = parse_reply(text, reply_format)
    assert reply.calls == ()
    assert reply.blocks >= 1
    assert reply.error


@pytest.mark.parametrize(
    ("reply_format", "text"),
    [
        (ReplyFormat.MISTRAL, 'I look. [TOOL_CALLS]timer{"a": 1}[TOOL_CALLS]timer[ARGS]{"a": 1}'),
        (ReplyFormat.MISTRAL, '[TOOL_CALLS] timer[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}\n[TOOL_CALLS] timer {"a": 1}'),
        (
            ReplyFormat.LLAMA3_JSON,
            '<|python_tag|>{"name": "timer", "arguments": {"a": 1}}; {"name": "timer", "parameters": {"a": 1}} Done.',
        ),
        (
            ReplyFormat.MISTRAL,
            (
                '[TOOL_CALLS] [{"name": "timer", "arguments": {"a": 1}}, '
                '{"name": "timer", "arguments": "{\\"a\\": 1}"}] Done.'
            ),
        ),
        (ReplyFormat.PYTHONIC, "[timer(a=+1), timer(a=1)]\nprint(1)"),
        (ReplyFormat.PYTHONIC, "<think>[timer(a=2)]</think>\n\n[timer(a=1), timer(a=1)]"),
        (ReplyFormat.LFM2, "Well. <|tool_call_start|>[timer(a=01), timer(a=1)]<|tool_call_end|> Done."),
        (ReplyFormat.OLMO3, "<function_calls>\ntimer(a=1)\n\ntimer(a=1)\n</function_calls>"),
        (
            ReplyFormat.GRANITE,
            (
                'Well.<tool_call> [{"name": "timer", "arguments": {"a": 1}} '
                '{"name": "timer", "arguments": {"a": 1}}] Done.'
            ),
        ),
        (
            ReplyFormat.XLAM,
            '```json\n[{"name": "timer", "arguments": {"a": 1}}, {"name": "timer", "arguments": "{\\"a\\": 1}"}]\n```',
        ),
        (ReplyFormat.JSON, ' [{"arguments": {"a": 1}, "name": "timer"}, {"name": "timer", "arguments": {"a": 1}}]\n'),
        (ReplyFormat.FUNCTIONGEMMA, f"Well.{GEMMA_TIMER}<end_function_call>{GEMMA_TIMER}"),
    ],
)
def test_variants_that_servers_accept(reply_format: ReplyFormat, text: str):
    """Both field names of Llama, Mistral's newer form, text that the parser ignores, a missing end."""
    assert parse_reply(text, reply_format).calls == (Call("timer", {"a": 1}),) * 2


@pytest.mark.parametrize(
    "reply_format", [kind for kind in ReplyFormat if kind not in (ReplyFormat.GRANITE4, ReplyFormat.PHI4_MINI_JSON)]
)
def test_marks_within_an_argument_do_not_start_a_call(reply_format: ReplyFormat):
    """Strings may contain marks, except the end mark of their call. Two parsers look only at marks."""
    call = Call("timer", {"a": "<tool_call>, <start_function_call>call:f{}, <|python_tag|>, [f()], {}"})
    reply = parse_reply(written([call], reply_format), reply_format)
    assert (reply.calls, reply.blocks) == ((call,), 1)


TYPED_BY_SCHEMA = (
    ReplyFormat.FUNCTIONGEMMA,
    ReplyFormat.GEMMA4,
    ReplyFormat.GLM45,
    ReplyFormat.MINIMAX_M2,
    ReplyFormat.QWEN3_CODER,
    ReplyFormat.SEED_OSS,
)
"""They write numbers as text does."""

LONG = 20_000
MONSTERS = [
    "{",
    '{"a":',
    '{"a":[1,2,3], ',
    "{} ",
    "[{",
    "[a(",
    "<tool_call>",
    "<tool_call></tool_call>",
    "```json ",
    "<start_function_call>call:f{",
    "a:<escape>",
    "[TOOL_CALLS]",
    "<pad>",
    "x",
    " ",
    "\\",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "begin", ["", "<tool_call>", "<start_function_call>call:f{", "<|python_tag|>{", "[f(a=", "[TOOL_CALLS][", "[f("]
)
def test_an_unclosed_reply_is_parsed_in_linear_time(begin: str):
    """A model can repeat itself up to the token limit."""
    for monster in MONSTERS:
        text = begin + monster * (LONG // len(monster))
        started = time.process_time()
        for reply_format in ReplyFormat:
            for reply in (parse_reply(text, reply_format), parse_reply(text + "}<end_function_call>", reply_format)):
                assert not (reply.calls and reply.error)
        read_leniently(text)
        assert time.process_time() - started < 4, monster


def test_literals_of_python_and_of_json():
    """Pythonic arguments can be nested, negative, and use JSON's names for constants."""
    reply = parse_reply("""[f(a=[1, -2.5, None], b={"c": 'ø'}, d=true, e=False, g="it's")]""", ReplyFormat.PYTHONIC)
    assert reply.calls == (Call("f", {"a": [1, -2.5, None], "b": {"c": "ø"}, "d": True, "e": False, "g": "it's"}),)


@pytest.mark.parametrize("reply_format", ReplyFormat)
def test_a_number_that_python_does_not_convert(reply_format: ReplyFormat):
    """It has more than 4,300 digits. Alone, in a list, and as an argument of each format's call."""
    number = "9" * 5000
    for text in (number, f"[{number}]", f'[{{"name": "f", "arguments": {{"a": {number}}}}}]'):
        parse_reply(text, reply_format)


def test_function_gemma_drops_unescaped_arguments():
    """The parser of vLLM only reads escaped text, as JSON if possible. Dropped arguments are named."""
    text = (
        "<start_function_call>call:f{city:<escape>a, {b}: c<escape>,days:2,deep:{list:[1,true,<escape>x<escape>]},"
        "zip:<escape>0150<escape>,code:<escape>150<escape>}<end_function_call><start_function_response>"
    )
    reply = parse_reply(text, ReplyFormat.FUNCTIONGEMMA)
    assert reply.calls == (Call("f", {"city": "a, {b}: c", "zip": "0150", "code": 150}),)
    assert reply.lost == ("f.days", "f.deep")
    meant = {"city": "a, {b}: c", "days": 2, "deep": {"list": [1, True, "x"]}, "zip": "0150", "code": "150"}
    assert functiongemma.read_all(text) == (Call("f", meant),)


@pytest.mark.parametrize("reply_format", TYPED_BY_SCHEMA[1:])
def test_values_are_converted_to_the_types_of_the_schema(reply_format: ReplyFormat):
    """Values without quotes are text until they are converted."""
    call = Call("f", {"n": 2, "t": "2", "on": True, "list": [1, 2], "none": None})
    properties = {"n": "integer", "t": "string", "on": "boolean", "list": "array", "none": ["null", "string"]}
    schema: JsonObject = {"properties": {name: {"type": kind} for name, kind in properties.items()}}
    if reply_format is ReplyFormat.GEMMA4:
        schema["properties"]["list"]["items"] = {"type": "integer"}  # type: ignore[index, call-overload]
    text = written([call], reply_format)
    assert parse_reply(text, reply_format, [Tool("f", "", schema)]).calls == (call,)
    assert parse_reply(text, reply_format).calls[0].arguments["n"] == "2"


THINKING = {
    ReplyFormat.SEED_OSS: ("<seed:think>", "</seed:think>"),
    ReplyFormat.GEMMA4: ("<|channel>thought\n", "<channel|>"),
    ReplyFormat.GRANITE: ("Here is my thought process:", "Here is my response:"),
    ReplyFormat.OPENAI: ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    ReplyFormat.COHERE_COMMAND3: ("<|START_THINKING|>", "<|END_THINKING|>"),
}


@pytest.mark.parametrize("reply_format", ReplyFormat)
def test_reasoning_is_removed_first(reply_format: ReplyFormat):
    """Reasoning, whose start mark may be in the prompt, changes nothing. Without an end mark, it is the whole reply."""
    call = Call("timer", {})
    start, end = THINKING.get(reply_format, ("<think>", "</think>"))
    if reply_format is not ReplyFormat.MISTRAL:  # whose list belongs to models that do not think
        assert parse_reply(f"{start}I look.{end}{written([call], reply_format)}", reply_format).calls == (call,)
    assert parse_reply(f"{start}I look.", reply_format).calls == ()


@pytest.mark.parametrize(
    "reply_format",
    [kind for kind in ReplyFormat if kind not in (ReplyFormat.GRANITE4, ReplyFormat.XLAM, ReplyFormat.LLAMA3_JSON)],
)
def test_a_format_is_detected_by_its_marks(reply_format: ReplyFormat):
    """Formats share tags such as <tool_call>; the text after the tag decides."""
    assert detect([written([OSLO], reply_format)]) is reply_format


def test_an_unknown_format_is_detected():
    """The name of a tool within unknown marks: no format, and so no metrics."""
    text = '<action>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</action>'
    assert detect([text, text, "Hello"], ["get_weather"]) is None
    assert detect([text, written([OSLO], ReplyFormat.HERMES)], ["get_weather"]) is ReplyFormat.HERMES
    assert detect(["I would use get_weather.", "<b>Hello</b>"], ["get_weather"]) is ReplyFormat.HERMES


def test_pythonic_drops_positional_arguments():
    """The client receives a call without them."""
    reply = parse_reply('[timer(a=1), get_weather("Oslo")]', ReplyFormat.PYTHONIC)
    assert (reply.calls, reply.lost) == ((Call("timer", {"a": 1}), Call("get_weather", {})), ("get_weather.1",))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{'name': 'get_weather', 'arguments': {'city': 'Oslo', 'days': 2}}</tool_call>",
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 2}"}</tool_call>',
        '<tool_call>\n```json\n{"name": "get_weather", "parameters": {"city": "Oslo", "days": 2}}\n```\n</tool_call>',
        'Sure:\n```json\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n```\nHere you go.',
        '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}} Done.',
        '  [get_weather(city="Oslo", days=2)] is the call.',
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}] Done.',
        '<functioncall> {"name": "get_weather", "arguments": \'{"city": "Oslo", "days": 2}\'} <|endoftext|>',
        "<start_function_call>call:get_weather{city:<escape>Oslo<escape>,days:2}<end_function_call>",
    ],
)
def test_the_lenient_parser_finds_calls(text: str):
    """Calls that no Hermes client receives, although the intention is clear."""
    assert parse_reply(text).calls == ()
    assert read_leniently(text) == (OSLO,)


@pytest.mark.parametrize("text", ["", "Hello", '{"city": "Oslo"}', "{a} and [b]", "```\ncode()\n```", '{"name": "Bo"}'])
def test_the_lenient_parser_invents_no_calls(text: str):
    """If no call is intended, it finds none."""
    assert read_leniently(text) == ()


def test_one_format_for_all_replies():
    """The most frequent format is used, plain text does not count, and Hermes is the default."""
    hermes, pythonic = WELL_WRITTEN[ReplyFormat.HERMES], WELL_WRITTEN[ReplyFormat.PYTHONIC]
    assert detect([pythonic, hermes, pythonic, "Hello", "Hi", "No"]) is ReplyFormat.PYTHONIC
    assert detect(["Hello", 'Sure: ```json\n{"name": "f", "arguments": {}}\n```']) is ReplyFormat.HERMES
    assert detect([]) is ReplyFormat.HERMES


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
PLAIN_TEXT = TEXT.filter(lambda text: "<" not in text and "TOOL_CALLS" not in text)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN_TEXT, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.lists(
    st.builds(Call, st.sampled_from(["f", "get_weather"]), st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


@given(
    CALLS,
    st.sampled_from([kind for kind in ReplyFormat if kind not in (*TYPED_BY_SCHEMA, ReplyFormat.PHI4_MINI_JSON)]),
)
def test_arguments_round_trip(calls: list[Call], reply_format: ReplyFormat):
    """Any arguments, in every format that can represent them."""
    assert parse_reply(written(calls, reply_format), reply_format).calls == tuple(calls)


@given(
    st.lists(
        st.builds(Call, st.just("f"), st.dictionaries(st.sampled_from("abc"), st.text("ab1 ,:{}[]", max_size=9))),
        min_size=1,
        max_size=3,
    )
)
def test_function_gemma_round_trips_text(calls: list[Call]):
    """With any marks in escaped text; the server parses text that is JSON."""
    text = written(calls, ReplyFormat.FUNCTIONGEMMA)
    assert functiongemma.read_all(text) == tuple(calls)
    served = [Call(call.name, {name: served_text(str(it)) for name, it in call.arguments.items()}) for call in calls]
    reply = parse_reply(text, ReplyFormat.FUNCTIONGEMMA)
    assert (reply.calls, reply.blocks, reply.lost) == (tuple(served), len(calls), ())


def served_text(text: str) -> JsonValue:
    """Text between two `<escape>`, as the server returns it."""
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value


@given(st.text(max_size=60), st.sampled_from(ReplyFormat))
def test_no_reply_crashes_a_parser(text: str, reply_format: ReplyFormat):
    """Every parser handles any text, including the lenient one."""
    for begin in (
        "",
        "<tool_call>",
        "[TOOL_CALLS]",
        "[f(",
        '{"name":',
        "<start_function_call>call:f{",
        "<|python_tag|>",
    ):
        reply = parse_reply(begin + text, reply_format)
        assert not (reply.calls and reply.error)
        read_leniently(begin + text)
