"""Writes calls in the syntax of each model family: the inverse of the parsers."""

import json
from collections.abc import Iterable, Sequence

from tunemill_trainer.data.rows import Call, JsonObject
from tunemill_trainer.judge.parse import ReplyFormat


def written(calls: Sequence[Call], reply_format: ReplyFormat) -> str:  # noqa: PLR0911, PLR0912 - a case a format
    """Return the calls in the syntax of a model family."""
    objects = [dumped(call.to_json()) for call in calls]
    listed = f"[{', '.join(objects)}]"
    match reply_format:
        case ReplyFormat.HERMES | ReplyFormat.GRANITE4:
            return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in objects)
        case ReplyFormat.QWEN3_CODER | ReplyFormat.SEED_OSS:
            space = "seed:" if reply_format is ReplyFormat.SEED_OSS else ""
            return "\n".join(f"<{space}tool_call>\n{_in_tags(call)}\n</{space}tool_call>" for call in calls)
        case ReplyFormat.GLM45:
            return "\n".join(f"<tool_call>{call.name}\n{_in_pairs(call.arguments)}</tool_call>" for call in calls)
        case ReplyFormat.GRANITE:
            return f"<|tool_call|>{listed}"
        case ReplyFormat.FUNCTIONGEMMA:
            marks = ("<start_function_call>", "<end_function_call>")
            return "".join(f"{marks[0]}call:{call.name}{in_gemma(call.arguments)}{marks[1]}" for call in calls)
        case ReplyFormat.GEMMA4:
            return "".join(
                f"<|tool_call>call:{call.name}{in_gemma(call.arguments, _GEMMA4_QUOTE)}<tool_call|>" for call in calls
            )
        case ReplyFormat.DEEPSEEK_V3:
            return _in_deepseek(
                f"function<｜tool▁sep｜>{call.name}\n```json\n{dumped(call.arguments)}\n```" for call in calls
            )
        case ReplyFormat.DEEPSEEK_V31:
            return _in_deepseek(f"{call.name}<｜tool▁sep｜>{dumped(call.arguments)}" for call in calls)
        case ReplyFormat.KIMI_K2:
            inside = "".join(map(_in_kimi, range(len(calls)), calls))
            return f"<|tool_calls_section_begin|>{inside}<|tool_calls_section_end|>"
        case ReplyFormat.MINIMAX_M2:
            return f"<minimax:tool_call>\n{''.join(map(_in_minimax, calls))}</minimax:tool_call>"
        case ReplyFormat.OPENAI:
            head = "<|channel|>commentary to=functions."
            return "<|start|>assistant".join(
                f"{head}{call.name} <|constrain|>json<|message|>{dumped(call.arguments)}<|call|>" for call in calls
            )
        case ReplyFormat.COHERE_COMMAND3:
            actions = [
                dumped({"tool_call_id": str(index), "tool_name": call.name, "parameters": call.arguments})
                for index, call in enumerate(calls)
            ]
            return "<|START_ACTION|>[\n    " + ",\n    ".join(actions) + "\n]<|END_ACTION|>"
        case ReplyFormat.JAMBA:
            return f"<tool_calls>{listed}</tool_calls>"
        case ReplyFormat.NEMOTRON_JSON:
            return f"<TOOLCALL>{listed}</TOOLCALL>"
        case ReplyFormat.PHI4_MINI_JSON:
            return f"functools{listed}"
        case ReplyFormat.MISTRAL:
            return f"[TOOL_CALLS] {listed}"
        case ReplyFormat.LLAMA3_JSON:
            return "; ".join(text.replace('"arguments":', '"parameters":', 1) for text in objects)
        case ReplyFormat.JSON | ReplyFormat.XLAM:
            return listed
        case ReplyFormat.OLMO3:
            return "\n".join(["<function_calls>", *map(_in_python, calls), "</function_calls>"])
        case ReplyFormat.PYTHONIC | ReplyFormat.LLAMA4_PYTHONIC | ReplyFormat.LFM2:
            begin, end = _PYTHON_MARKS.get(reply_format, ("", ""))
            return f"{begin}[{', '.join(map(_in_python, calls))}]{end}"


_GEMMA4_QUOTE = '<|"|>'
_PYTHON_MARKS = {
    ReplyFormat.LLAMA4_PYTHONIC: ("<|python_start|>", "<|python_end|>"),
    ReplyFormat.LFM2: ("<|tool_call_start|>", "<|tool_call_end|>"),
}


def dumped(value: object) -> str:
    """Return a value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def in_gemma(value: object, quote: str = "<escape>") -> str:
    """Return a value in the syntax of the chat templates of Gemma's function-calling models."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_gemma(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(in_gemma(item, quote) for item in value) + "]"
    return f"{quote}{value}{quote}" if isinstance(value, str) else json.dumps(value)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else dumped(value)


def _in_tags(call: Call) -> str:
    parameters = "".join(f"<parameter={key}>\n{_plain(value)}\n</parameter>\n" for key, value in call.arguments.items())
    return f"<function={call.name}>\n{parameters}</function>"


def _in_pairs(arguments: JsonObject) -> str:
    return "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{_plain(value)}</arg_value>\n" for key, value in arguments.items()
    )


def _in_minimax(call: Call) -> str:
    parameters = "".join(
        f'<parameter name="{key}">{_plain(value)}</parameter>\n' for key, value in call.arguments.items()
    )
    return f'<invoke name="{call.name}">\n{parameters}</invoke>\n'


def _in_kimi(index: int, call: Call) -> str:
    head = f"<|tool_call_begin|>functions.{call.name}:{index}<|tool_call_argument_begin|>"
    return f"{head}{dumped(call.arguments)}<|tool_call_end|>"


def _in_deepseek(calls: Iterable[str]) -> str:
    inside = "\n".join(f"<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>" for call in calls)
    return f"<｜tool▁calls▁begin｜>{inside}<｜tool▁calls▁end｜>"


def _in_python(call: Call) -> str:
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"
