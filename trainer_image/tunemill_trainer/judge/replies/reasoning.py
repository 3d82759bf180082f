"""Splits reasoning off a reply before calls are looked for, as the reasoning parser of the model's server does.

A reply without any mark of reasoning is left as it is: the server of a model that does not think has no such parser.
One whose reasoning does not end has no content, and so no call.
"""

import re
from collections.abc import Callable

from tunemill_trainer.judge.replies.mistral import is_listed

ContentOf = Callable[[str], str]
"""Takes a reply, and returns it without its reasoning."""

_GRANITE = re.compile(r"(?:Here's|Here is) my thought process:(.*?)(?:Here's|Here is) my response:(.*)", re.DOTALL)
_OLMO = re.compile(r"^(?:<think>)?.*?</think>(.*)$", re.DOTALL)
_THOUGHT = "thought\n"


def after_think(text: str) -> str:
    """Return what follows `</think>`: vLLM's deepseek_r1, of most models that write `<think>`."""
    if "<think>" not in text and "</think>" not in text:
        return text
    before, mark, after = text.partition("<think>")
    return (after if mark else before).partition("</think>")[2]


def engine(
    start: str = "<think>",
    end: str = "</think>",
    calls: str = "<tool_call>",
    *,
    reopens: bool = False,
    trims: bool = False,
) -> ContentOf:
    """Return a split for models whose first call ends the reasoning, too: vLLM's qwen3, seed_oss, glm45, kimi_k2, ….

    Args:
        start: the mark of reasoning; it may be missing.
        end: the mark of its end.
        calls: the mark that begins a call.
        reopens: reasoning may begin again later.
        trims: line breaks before the content go, too.
    """
    closing = re.compile(f"{re.escape(end)}|(?={re.escape(calls)})")
    again = re.compile(f"{re.escape(start)}.*?(?:{re.escape(end)}|(?={re.escape(calls)})|\\Z)", re.DOTALL)

    def content_of(text: str) -> str:
        if start not in text and end not in text:
            return text
        closed = closing.search(text)
        if closed is None:
            return ""
        content = text[closed.end() :]
        if reopens:
            content = again.sub("", content)
        content = content.replace(end, "")
        return content.lstrip("\n") if trims else content

    return content_of


def granite(text: str) -> str:
    """Return what follows `Here is my response:`: Granite 3."""
    found = _GRANITE.search(text)
    return found[2] if found else text


def olmo3(text: str) -> str:
    """Return what follows `</think>`; without it, everything: OLMo 3."""
    found = _OLMO.match(text)
    return found[1] if found else text


def gemma4(text: str) -> str:
    """Return what stands outside of `<|channel>` and `<channel|>`: Gemma 4, whose first mark may be missing."""
    if "<|channel>" not in text and ("<channel|>" in text or text.startswith(_THOUGHT) or text == _THOUGHT.strip()):
        text = "<|channel>" + text
    text = re.sub(r"<\|channel>.*?(?:<channel\|>|(?=<\|tool_call>)|\Z)", "", text, flags=re.DOTALL)
    return text.replace("<channel|>", "")


def whole(text: str) -> str:
    """Return the reply as it is: its reader knows what is reasoning."""
    return text


def mistral(text: str) -> str:
    """Return what stands outside of `[THINK]` and `[/THINK]`, or of `<think>` before tokenizer version 13: Magistral.

    The models that list their calls do not think.
    """
    if is_listed(text):
        return text
    for start, end in (("[THINK]", "[/THINK]"), ("<think>", "</think>")):
        if start in text or end in text:
            text = re.sub(
                f"{re.escape(start)}.*?(?:{re.escape(end)}|(?=\\[TOOL_CALLS\\])|\\Z)", "", text, flags=re.DOTALL
            )
            return text.replace(end, "")
    return text
