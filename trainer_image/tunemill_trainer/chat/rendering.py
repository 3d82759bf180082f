"""Renders conversations with a chat template, as Transformers and servers do, and locates the assistant turns."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2

# The Jinja environment of Transformers. Its public function first copies all messages and tools, which takes a third of
# the time (77 of 221 microseconds for a row with three tools). Here they are plain values already.
from transformers.utils.chat_template_utils import _compile_jinja_template

from tunemill_trainer.data.caches import IdentityCache
from tunemill_trainer.data.rows import Message, Role, Tool
from tunemill_trainer.process.bounds import MemoryBound, OutOfBoundsError, TimeBound

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

TIME = TimeBound(seconds=5.0)
"""The time limit for one rendering. The longest rows normally take a hundredth of a second."""
MEMORY = MemoryBound(1 << 30)
"""The memory limit for one rendering, or for a batch of them, which costs less."""

Span = tuple[int, int]
"""Start and exclusive end of an assistant turn, in characters. The turn includes its end-of-turn token."""


class TemplateError(Exception):
    """The template cannot render a conversation, or its assistant turns cannot be located."""


@dataclass(frozen=True)
class Rendered:
    """One training example as text.

    Attributes:
        text: the conversation up to its last trained turn, or all of it.
        turns: the trained assistant turns in order: the index of the message, and its span in the text.
    """

    text: str
    turns: tuple[tuple[int, Span], ...]


class ChatTemplate:
    """A chat template with the special tokens that it can use.

    Args:
        source: the Jinja template.
        special_tokens: special tokens by name, such as bos_token.
        marked: whether to locate assistant turns by `{% generation %}`, or else by comparing the rendering up to a turn
            with the prompt for it.
        keeps_history: whether the template is known to render a turn the same way whatever follows. A conversation is
            then one example, and renderings are not compared.
    """

    def __init__(
        self, source: str, special_tokens: dict[str, str], *, marked: bool, keeps_history: bool = False
    ) -> None:
        self.source = source
        self.marked = marked
        self._keeps_history = keeps_history
        self._special_tokens = special_tokens

    @staticmethod
    def has_markers(source: str) -> bool:
        """Return whether the template has `{% generation %}` blocks."""
        return _MARKER.search(source) is not None

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        """Render messages with the generation prompt, as a server does.

        Raises:
            TemplateError: with Jinja's message.
        """
        return self._render(messages, tools, add_generation_prompt=True)[0]

    def conversation(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        """Render a complete conversation.

        Raises:
            TemplateError: with Jinja's message.
        """
        return self._render(messages, tools)[0]

    def examples(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Rendered]:
        """Render a conversation as training examples in which every trained turn follows the prompt of a server.

        Many templates render a turn differently if other turns follow: Qwen 3 drops the reasoning of turns before the
        last user message. A server renders the history before each reply, so the example of a turn ends with that turn.
        Turns share an example, and the computation of their common prefix, if the history of one is a prefix of the
        other's. If a template renders turns the same way throughout, a conversation is one example.

        Returns:
            The examples in the order of their turns; the complete conversation if no turn is trained on.

        Raises:
            TemplateError: with Jinja's message, or if a turn does not continue the prompt for it.
        """
        text, spans = self._render(messages, tools)
        turns = [index for index, message in enumerate(messages) if message.role is Role.ASSISTANT]
        if self.marked and len(spans) != len(turns):
            raise TemplateError(f"marks {len(spans)} spans with {{% generation %}} for {len(turns)} assistant turns")
        trained = [index for index in turns if messages[index].learnt]
        if self._keeps_history or not trained:
            known = dict(zip(turns, spans, strict=self.marked))
            return [Rendered(text, tuple((index, known[index]) for index in trained))]
        found: list[Rendered] = []
        group: list[tuple[int, Span]] = []
        for index in reversed(trained):
            served, span = self._as_served(messages, tools, index)
            if not text.startswith(served):
                if group:
                    found.append(Rendered(text, tuple(reversed(group))))
                text, group = served, []
            group.append((index, span))
        found.append(Rendered(text, tuple(reversed(group))))
        return found[::-1]

    def _as_served(self, messages: Sequence[Message], tools: Sequence[Tool], index: int) -> tuple[str, Span]:
        """Render the conversation up to the end of an assistant turn, and locate the turn, which follows the prompt."""
        prompt = self.prompt(messages[:index], tools)
        text, spans = self._render(messages[: index + 1], tools)
        if self.marked and not spans:
            raise TemplateError("marks no span with {% generation %} for an assistant turn")
        start, end = spans[-1] if self.marked else (len(prompt), len(text.rstrip()))
        if text[:start] == prompt:
            return text[:end], (start, end)
        # Some templates write the last message differently from earlier ones: Hermes 3 ends a tool response with a line
        # feed only if a turn follows. A server's prompt ends with that message, so the turn is put after the prompt.
        header = prompt.removeprefix(self.conversation(messages[:index], tools))
        turn = None if self.marked or header == prompt else _turn_in(text, prompt, header, messages[index - 1].content)
        if turn is None:
            raise TemplateError("starts an assistant turn differently with add_generation_prompt")
        served = prompt + turn.rstrip()
        return served, (len(prompt), len(served))

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        blocks: list[str] = []
        spans: list[Span] = []
        try:
            # Compiling already evaluates constant expressions.
            with MEMORY, TIME:
                compiled = _compile_jinja_template(self.source)
                compiled.environment.filters["tojson"] = _to_json
                with compiled.environment.activate_tracker(blocks, spans):
                    # The tracker reads the blocks rendered so far, so they must be added one by one.
                    for block in compiled.generate(
                        messages=[_chat_message(message) for message in messages],
                        tools=_declared(tuple(tools)),
                        documents=None,
                        add_generation_prompt=add_generation_prompt,
                        **self._special_tokens,
                    ):
                        blocks.append(block)  # noqa: PERF402 - see above
                return "".join(blocks), spans
        except OutOfBoundsError as error:
            raise TemplateError(str(error)) from error
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"is not valid Jinja at line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A template is third-party code: its exceptions describe what it does not support.
            raise TemplateError(f"fails with {type(error).__name__}: {error}") from error
        except RecursionError as error:
            raise TemplateError("recurses too deeply") from error


def _turn_in(text: str, prompt: str, header: str, last: str) -> str | None:
    """Return the text of the last turn of a conversation, without its header; None if it cannot be located.

    Args:
        text: the conversation.
        prompt: the rendering of the messages before the turn, with the header.
        header: what add_generation_prompt adds.
        last: the content of the message before the turn.
    """
    # Some templates write a tool response as a JSON string.
    forms = (last.strip(), json.dumps(last.strip(), ensure_ascii=False)[1:-1])
    history = prompt.removesuffix(header)
    last, end = next((form for form in forms if form in history), ""), 0
    for _ in range(history.count(last) if last else 0):
        found = text.find(last, end)
        end = found + len(last) if found >= 0 else len(text)
    start = text.find(header, end) if header and end else -1
    return text[start + len(header) :] if start >= 0 else None


def _chat_message(message: Message) -> dict[str, Any]:
    """Return a turn with the field names that chat templates expect."""
    value: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        # Transformers passes both names; gpt-oss uses `thinking`.
        value["reasoning_content"] = value["thinking"] = message.reasoning
    if message.calls:
        value["tool_calls"] = [{"type": "function", "function": call.to_json()} for call in message.calls]
    if message.name:
        value["name"] = message.name
    return value


class _Declared(dict[str, Any]):
    """A part of a tool's declaration, with its JSON cached, because rows share tools."""

    @cached_property
    def _json(self) -> str:
        """The part as JSON. The sandbox hides names with a leading underscore from templates."""
        return _encode(self)


def _to_json(
    value: Any,  # noqa: ANN401 - any JSON value
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as the `tojson` filter of Transformers, but without creating an encoder for each value."""
    if ensure_ascii or sort_keys or indent is not None or separators is not None:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return value._json if type(value) is _Declared else _encode(value)  # noqa: SLF001 - hidden from templates


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _declare(tools: tuple[Tool, ...]) -> list[dict[str, Any]] | None:
    """Return tools as chat templates expect them."""
    return [_Declared(type="function", function=_Declared(tool.to_json())) for tool in tools] or None


_declared = IdentityCache(_declare, size_of=lambda tools: 2 * sum(tool.size for tool in tools))
