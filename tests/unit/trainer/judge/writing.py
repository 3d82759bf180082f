"""Writes calls as the models of each family do: the other direction of the parsers."""

import json
from collections.abc import Sequence

from tunemill_trainer.data.rows import Call
from tunemill_trainer.judge.parse import ReplyFormat


def written(calls: Sequence[Call], reply_format: ReplyFormat) -> str:
    """The calls as a model of that family writes them."""
    objects = [json.dumps(call.to_json(), ensure_ascii=False) for call in calls]
    match reply_format:
        case ReplyFormat.HERMES:
            return "".join(f"<tool_call>{text}</tool_call>" for text in objects)
        case ReplyFormat.MISTRAL:
            return f"[TOOL_CALLS] [{', '.join(objects)}]"
        case ReplyFormat.LLAMA3_JSON:
            return "; ".join(text.replace('"arguments":', '"parameters":', 1) for text in objects)
        case ReplyFormat.JSON:
            return f"[{', '.join(objects)}]"
        case ReplyFormat.PYTHONIC | ReplyFormat.LLAMA4_PYTHONIC:
            each = [f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})" for call in calls]
            begin, end = ("", "") if reply_format is ReplyFormat.PYTHONIC else ("<|python_start|>", "<|python_end|>")
            return f"{begin}[{', '.join(each)}]{end}"
        case ReplyFormat.FUNCTIONGEMMA:
            return "".join(
                f"<start_function_call>call:{call.name}{in_gemma(call.arguments)}<end_function_call>" for call in calls
            )


def in_gemma(value: object) -> str:
    """A value as FunctionGemma's template writes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_gemma(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(in_gemma, value)) + "]"
    return f"<escape>{value}<escape>" if isinstance(value, str) else json.dumps(value)
