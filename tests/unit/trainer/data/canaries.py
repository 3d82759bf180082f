"""Rows of every format with a canary in each place that can hold text, one place a row; most are wrong by it."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from trainer.data.building import WEATHER, openai_row
from tunemill_api.data import DatasetFormat

CANARY = "zqx-canary"
"""Stands in no message of this program. Without capitals and spaces: some formats change those."""
NUMBER = 7319420586.25
"""Stands where a number may."""

_CALL = {"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}
_TOOL = {"type": "function", "function": WEATHER}
_TOOLS = json.dumps([_TOOL])


def _conversation(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


GOOD: dict[DatasetFormat, dict[str, Any]] = {
    DatasetFormat.OPENAI: {
        "messages": [
            {"role": "system", "content": "Be brief."},
            *openai_row(city="Rome", days=2)["messages"],
            {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "It rains."},
            {"role": "assistant", "content": "It rains.", "weight": 1, "reasoning_content": "Rain."},
        ],
        "tools": [_TOOL],
    },
    DatasetFormat.HERMES: {
        "conversations": _conversation(
            ("system", f"Be brief. <tools>{_TOOLS}</tools>"),
            ("human", "Weather?"),
            ("gpt", f"<tool_call>{json.dumps(_CALL)}</tool_call>"),
            ("tool", "<tool_response>It rains.</tool_response>"),
            ("gpt", "It rains."),
        )
    },
    DatasetFormat.SHAREGPT: {
        "tools": _TOOLS,
        "system": "Be brief.",
        "conversations": _conversation(
            ("human", "Weather?"), ("function_call", json.dumps(_CALL)), ("observation", "It rains."), ("gpt", "Rain.")
        ),
    },
    DatasetFormat.XLAM: {
        "query": "Weather?",
        "answers": json.dumps([_CALL]),
        "tools": json.dumps(
            [
                {
                    "name": "get_weather",
                    "description": "Weather",
                    "parameters": {"city": {"type": "str"}, "days": {"type": "int"}},
                }
            ]
        ),
    },
    DatasetFormat.TOOLACE: {
        "system": f"Here are functions: {json.dumps([WEATHER])}. Be brief.",
        "conversations": _conversation(
            ("user", "Weather?"),
            ("assistant", '[get_weather(city="Rome", days=2)]'),
            ("tool", "It rains."),
            ("assistant", "Rain."),
        ),
    },
    DatasetFormat.GLAIVE: {
        "system": f"SYSTEM: You are a helper with access to the following functions. {json.dumps(WEATHER)}",
        "chat": "USER: Weather?\n\nASSISTANT: <functioncall> "
        '{"name": "get_weather", "arguments": \'{"city": "Rome"}\'} <|endoftext|>\n\n'
        "FUNCTION RESPONSE: It rains.\n\nASSISTANT: Rain. <|endoftext|>",
    },
    DatasetFormat.SIMPLE: {
        "user_content": "Weather?",
        "tool_name": "get_weather",
        "tool_arguments": json.dumps(_CALL["arguments"]),
        "tools": _TOOLS,
    },
}
"""A row without fault of each format."""

_VALUES: tuple[Any, ...] = (CANARY, [CANARY], {CANARY: CANARY}, {"type": CANARY}, [[{CANARY: [CANARY]}]], NUMBER)
_BREAKS = (
    "{",
    "[1, ",
    "{'a': ",
    "<tool_call>",
    "[get_weather(",
    "[x(a=1) ",
    "\n\nASSISTANT: <functioncall> {",
    "sk-proj-" + "a1B2" * 9,
)
"""What makes a text look like the begin of something, or like a secret."""


def rows(form: DatasetFormat) -> Iterator[dict[str, Any]]:
    """Yield rows of a format, each with the canary in one place: as a value, as a key, in JSON within text."""
    for row in _changed(GOOD[form]):
        yield row | {"id": CANARY}


def _changed(value: Any) -> Iterator[Any]:
    """Yield a value with each of its parts replaced or made wrong in turn."""
    if isinstance(value, dict):
        for key, part in value.items():
            rest = {name: copy.deepcopy(other) for name, other in value.items() if name != key}
            yield rest | {CANARY: part}
            yield {**value, f"{key}-{CANARY}": part}
            for changed in (*_VALUES, *_changed(part)):
                yield {**value, key: changed}
    elif isinstance(value, list):
        yield [*value, CANARY]
        yield [*value, *value]
        for index, part in enumerate(value):
            for changed in (*_VALUES, *_changed(part)):
                yield [*value[:index], changed, *value[index + 1 :]]
            yield [*value[:index], *value[index + 1 :], CANARY]
    elif isinstance(value, str):
        yield from _changed_text(value)


def _changed_text(text: str) -> Iterator[str]:
    for begin in _BREAKS:
        yield f"{begin}{CANARY} {text}"
        yield f"{text} {begin}{CANARY}"
    for at in range(0, len(text), 5):
        yield f"{text[:at]}{CANARY}{text[at:]}"
        yield f'{text[:at]}"{CANARY}{text[at:]}'
        yield f"{text[:at]}'{CANARY}"
    if text[:1] in {"[", "{"}:
        try:
            written = json.loads(text)
        except ValueError:
            return
        for changed in _changed(written):
            yield json.dumps(changed)
