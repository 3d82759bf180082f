"""Rows of every format with a canary in each place that can have text, one place per row. Most become invalid by it."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from trainer.data.building import WEATHER, openai_row
from tunemill_api.data import DatasetFormat

CANARY = "zqx-canary"
"""Text that no message contains. It has no capitals and spaces, because some formats change those."""
NUMBER = 7319420586.25
"""The canary in places of numbers."""

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
    DatasetFormat.PROMPT_COMPLETION: {
        "prompt": [{"role": "user", "content": "Weather?"}],
        "completion": [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": _CALL}]}],
        "tools": [_TOOL],
    },
    DatasetFormat.SWIFT: {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "tool_call", "content": json.dumps(_CALL), "loss": True},
            {"role": "tool_response", "content": "It rains."},
            {"role": "assistant", "content": "Rain."},
        ],
        "tools": _TOOLS,
    },
    DatasetFormat.ANTHROPIC: {
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "get_weather", "input": _CALL["arguments"]},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "It rains."}]},
        ],
        "tools": [{"name": "get_weather", "input_schema": WEATHER["parameters"]}],
    },
    DatasetFormat.RESPONSES: {
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}],
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Rain."}]},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "It rains."},
        ],
        "tools": [{"type": "function", **WEATHER}],
    },
    DatasetFormat.CLIENT_LOG: {
        "request": {"messages": [{"role": "user", "content": "Weather?"}], "tools": [_TOOL]},
        "response": {
            "choices": [
                {
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": "[ChatCompletionMessageToolCall(id='c1', function=Function("
                        "arguments='{\"city\": \"Rome\"}', name='get_weather'), type='function')]",
                    }
                }
            ]
        },
    },
    DatasetFormat.TOOLBENCH: {
        "id": "Step 2: Weather?",
        "conversations": _conversation(
            (
                "system",
                "You are AutoGPT.\nSpecifically, you have access to the following APIs: " + str([WEATHER]),
            ),
            ("user", "\nWeather?\nBegin!\n"),
            ("assistant", 'Thought: I look.\nAction: get_weather\nAction Input: {"city": "Rome"}'),
            ("function", '{"error": "", "response": "rain"}'),
            (
                "assistant",
                'Thought: Done.\nAction: Finish\nAction Input: {"return_type": "give_answer", "final_answer": "Rain."}',
            ),
        ),
    },
    DatasetFormat.API_BANK: {
        "instruction": "Generate an API request in the format of [Name(key='value')].\nAPI descriptions:\n"
        + json.dumps({"name": "get_weather", "input_parameters": {"city": {"type": "str"}}}),
        "input": "User: Hi\nAI: Hello.\nUser: Weather?\nGenerate API Request: ",
        "output": "API-Request: [get_weather(city='Rome')]",
    },
    DatasetFormat.NESTFUL: {
        "input": "Weather?",
        "output": json.dumps([{**_CALL, "label": "$var_1"}]),
        "tools": json.dumps(
            [{"name": "get_weather", "parameters": {"city": {"type": "str"}, "days": {"type": "int"}}}]
        ),
        "gold_answer": "rain",
    },
    DatasetFormat.TAU_BENCH: {
        "traj": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Rain."},
        ],
        "reward": 1.0,
    },
    DatasetFormat.WHEN2CALL: {
        "question": "Weather?",
        "correct_answer": "tool_call",
        "answers": {"tool_call": f"<TOOLCALL>[{json.dumps(_CALL)}]</TOOLCALL>", "cannot_answer": "No."},
        "tools": [json.dumps(WEATHER)],
    },
    DatasetFormat.BFCL: {
        "question": [[{"role": "user", "content": "Weather?"}]],
        "function": [{**WEATHER, "parameters": {**WEATHER["parameters"], "type": "dict"}}],
        "ground_truth": [{"get_weather": {"city": ["Rome", "Roma"], "days": ["", 1]}}],
    },
    DatasetFormat.SIMPLE: {
        "user_content": "Weather?",
        "tool_name": "get_weather",
        "tool_arguments": json.dumps(_CALL["arguments"]),
        "tools": _TOOLS,
    },
}
"""A valid row of each format."""

WARNED: dict[DatasetFormat, list[dict[str, Any]]] = {
    DatasetFormat.OPENAI: [
        {"messages": [{"role": "user", "content": "Weather?"}, *turns], "tools": [_TOOL]}
        for turns in (
            [{"role": "assistant", "content": f"I write get_weather(city='{CANARY}') for that."}],
            [{"role": "assistant", "content": CANARY}] * 2,
            *(
                [{"role": "assistant", "tool_calls": [{"name": "get_weather", "arguments": {"city": city}}]}]
                for city in (f"[TOOL_CALLS]{CANARY}", f"['{CANARY}', True]")
            ),
        )
    ]
}
"""Rows with warnings."""

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
"""Prefixes with which text looks like the start of a call, or like a secret."""


def rows(form: DatasetFormat) -> Iterator[dict[str, Any]]:
    """Yield rows of a format, each with the canary in one place: as a value, as a key, in JSON within text."""
    for row in [*_changed(GOOD[form]), *WARNED.get(form, [])]:
        yield row | {"id": CANARY}


def _changed(value: Any) -> Iterator[Any]:
    """Yield variants of a value, each with one part replaced."""
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
