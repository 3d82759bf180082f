"""Removes reasoning from a reply before calls are parsed, as the reasoning parser of the model's server does.

A reply without reasoning marks is unchanged, because models without reasoning are served without such a parser. A reply
with unclosed reasoning has no content, and so no calls.
"""

import re
from collections.abc import Callable

from tunemill_trainer.judge.replies.mistral import is_listed

ContentOf = Callable[[str], str]
"""Returns a reply without its reasoning."""

_GRANITE = re.compile(r"(?:Here's|Here is) my thought process:(.*?)(?:Here's|Here is) my response:(.*)", re.DOTALL)
_OLMO = re.compile(r"^(?:<think>)?.*?</think>(.*)$", re.DOTALL)
_THOUGHT = "thought\n"


def after_think(text: str) -> str:
    """Return the text after `</think>`, as vLLM's deepseek_r1, which most models with `<think>` use."""
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
    """Return a function for models whose first call also ends the reasoning: vLLM's qwen3, seed_oss, glm45, kimi_k2, ….

    Args:
        start: the start mark of reasoning, which is optional in replies.
        end: the end mark of reasoning.
        calls: the mark that starts a call.
        reopens: whether reasoning can start again later.
        trims: whether to remove line breaks before the content.
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
    """Return the text after `Here is my response:` (Granite 3)."""
    found = _GRANITE.search(text)
    return found[2] if found else text


def olmo3(text: str) -> str:
    """Return the text after `</think>`, or else the whole text (OLMo 3)."""
    found = _OLMO.match(text)
    return found[1] if found else text


def gemma4(text: str) -> str:
    """Return the text outside `<|channel>` and `<channel|>` (Gemma 4); the first mark is optional."""
    if "<|channel>" not in text and ("<channel|>" in text or text.startswith(_THOUGHT) or text == _THOUGHT.strip()):
        text = "<|channel>" + text
    text = re.sub(r"<\|channel>.*?(?:<channel\|>|(?=<\|tool_call>)|\Z)", "", text, flags=re.DOTALL)
    return text.replace("<channel|>", "")


def whole(text: str) -> str:
    """Return the reply unchanged, for formats whose reader handles reasoning."""
    return text


def mistral(text: str) -> str:
    """Return the text outside `[THINK]` and `[/THINK]`, or `<think>` before tokenizer version 13 (Magistral).

    Models that write calls as a list have no reasoning.
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
