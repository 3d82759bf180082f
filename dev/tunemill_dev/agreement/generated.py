"""Generates replies from a seed: calls of a few tools in the syntax of each model family, most of them mutated."""

import random
from collections.abc import Callable, Iterator

from pydantic import JsonValue
from tunemill_trainer.data.rows import Call, JsonObject, Tool
from tunemill_trainer.judge.parse import ReplyFormat

from tunemill_dev.agreement.writing import dumped, written


def _tool(name: str, required: tuple[str, ...] = (), **properties: JsonObject) -> Tool:
    schema: JsonObject = {"type": "object", "properties": dict(properties), "required": list(required)}
    return Tool(name, f"Does {name}", schema)


TOOLS = (
    _tool("get_weather", ("city",), city={"type": "string"}, days={"type": "integer"}, celsius={"type": "boolean"}),
    _tool(
        "book.table",
        guests={"type": ["integer", "null"]},
        price={"type": "number"},
        notes={"type": "array", "items": {"type": "string"}},
        where={"type": "object", "properties": {"floor": {"type": "integer"}, "name": {"type": "string"}}},
    ),
    _tool(
        "find",
        query={"anyOf": [{"type": "string"}, {"type": "number"}]},
        kind={"enum": ["a", "b", 3]},
        ids={"type": "array", "items": {"type": "integer"}},
        anything={},
    ),
    _tool("timer"),
)
"""The tools that are offered in all replies."""

_TEXTS = (
    *("Oslo", "", "2", "true", "null", "1.50", "São Paulo", "a, b", "it's", 'say "x"', "line\nbreak", "[1, 2]", "{}"),
    *(
        "50 %",
        "c:\\temp",
        "</think>",
        "<b>bold</b>",
        "f(x)=[y]",
        "日本",
        "😀",
        "0150",
        "key: value",
        "a\tb",
        "1e5",
        "-3",
    ),
)
_SEPARATORS = (" ", "\n", ", ", "; ", "\n\n", "")
_PROSE = ("I will look.", "Sure!\n", "Here: ", "Done.", "\n", " ", "It is [1] of {2}.", "<p>")
_ENDINGS = ("", "", "", "\n", " Done.", "<|im_end|>")
_RENAMED = {"get_weather": "getWeather", "timer": "alarm"}
_THINKING: dict[ReplyFormat, tuple[str, str]] = {
    ReplyFormat.SEED_OSS: ("<seed:think>", "</seed:think>"),
    ReplyFormat.GEMMA4: ("<|channel>thought\n", "<channel|>"),
    ReplyFormat.GRANITE: ("Here is my thought process:", "Here is my response:"),
    ReplyFormat.OPENAI: ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    ReplyFormat.COHERE_COMMAND3: ("<|START_THINKING|>", "<|END_THINKING|>"),
    ReplyFormat.MISTRAL: ("[THINK]", "[/THINK]"),
}
_PIECES = "{}[]()<>\"'\\:,=/|\n \t0a.-"


def replies(reply_format: ReplyFormat, count: int, seed: int = 0) -> Iterator[str]:
    """Yield replies: a quarter of them correct, the others with one to three mutations."""
    chosen = random.Random(f"{reply_format.value} {seed}")
    for _ in range(count):
        text = _reply(chosen, reply_format)
        for _ in range(chosen.choice((0, 1, 1, 2, 3)) if chosen.random() < 0.9 else 0):
            text = _mutated(chosen, text)
        yield text


def _reply(chosen: random.Random, reply_format: ReplyFormat) -> str:
    calls = [_call(chosen) for _ in range(chosen.choice((1, 1, 1, 2, 2, 3)))]
    if reply_format is ReplyFormat.MISTRAL and chosen.random() < 0.5:
        mark = chosen.choice(("[ARGS]", ""))
        text = "".join(f"[TOOL_CALLS]{call.name}{mark}{dumped(call.arguments)}" for call in calls)
    else:
        text = written(calls, reply_format)
    if reply_format is ReplyFormat.XLAM:
        text = chosen.choice((text, text, f"```json\n{text}\n```", f"<tool_call>{text}</tool_call>"))
    if chosen.random() < 0.15:
        start, end = _THINKING.get(reply_format, ("<think>", "</think>"))
        thought = text if chosen.random() < 0.2 else chosen.choice(_PROSE)
        text = f"{start if chosen.random() < 0.8 else ''}{thought}{end}{chosen.choice(_SEPARATORS)}{text}"
    elif chosen.random() < 0.15:
        text = chosen.choice(_PROSE) + text
    return text + chosen.choice(_ENDINGS)


def _call(chosen: random.Random) -> Call:
    tool = chosen.choice(TOOLS)
    properties = tool.parameters["properties"]
    names = [name for name in properties if chosen.random() < 0.7] if isinstance(properties, dict) else []
    if chosen.random() < 0.1:
        names.append("extra")
    name = _RENAMED.get(tool.name, tool.name) if chosen.random() < 0.05 else tool.name
    return Call(name, {name: _value(chosen, 2) for name in names})


def _value(chosen: random.Random, depth: int) -> JsonValue:
    kinds: list[Callable[[], JsonValue]] = [
        lambda: chosen.choice(_TEXTS),
        lambda: chosen.choice(_TEXTS),
        lambda: chosen.randint(-5, 3000),
        lambda: round(chosen.uniform(-9, 99), chosen.randint(0, 3)),
        lambda: chosen.random() < 0.5,
        lambda: None,
    ]
    if depth:
        kinds.append(lambda: [_value(chosen, depth - 1) for _ in range(chosen.randint(0, 3))])
        kinds.append(lambda: {key: _value(chosen, depth - 1) for key in chosen.sample(("floor", "name", "c"), 2)})
    return chosen.choice(kinds)()


def _mutated(chosen: random.Random, text: str) -> str:  # noqa: PLR0911 - a return a kind of mutation
    at = chosen.randrange(len(text) + 1)
    until = min(len(text), at + chosen.choice((1, 1, 2, 5, 20)))
    match chosen.randrange(8):
        case 0:
            return text[:at]
        case 1:
            return text[:at] + text[until:]
        case 2:
            return text[:at] + chosen.choice(_PIECES) + text[at:]
        case 3:
            return text[:until] + text[at:]
        case 4:
            return text[:at] + chosen.choice(_PIECES) + text[until:]
        case 5:
            return text.replace(chosen.choice(_PIECES), chosen.choice(_PIECES), 1)
        case 6:
            other = chosen.randrange(len(text) + 1)
            return text[:at] + text[other : other + 20] + text[at:]
        case _:
            return text[at:] if chosen.random() < 0.3 else chosen.choice(_PROSE) + text
