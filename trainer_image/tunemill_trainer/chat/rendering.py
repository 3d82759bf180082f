"""Renders conversations with a chat template, as Transformers and servers do, and locates the assistant turns."""

import json
import re
from collections.abc import Sequence
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


class ChatTemplate:
    """A chat template with the special tokens that it can use.

    Args:
        source: the Jinja template.
        special_tokens: special tokens by name, such as bos_token.
        marked: whether to locate assistant turns by `{% generation %}`, or else by comparing renderings.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], *, marked: bool) -> None:
        self.source = source
        self.marked = marked
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

    def conversation(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[str, list[Span]]:
        """Render a complete conversation, and return the text and the spans of the assistant turns in order.

        Raises:
            TemplateError: with Jinja's message, or if the turns cannot be located.
        """
        text, spans = self._render(messages, tools)
        turns = [index for index, message in enumerate(messages) if message.role is Role.ASSISTANT]
        if not self.marked:
            spans = [self._compared(text, messages, tools, index) for index in turns]
        if len(spans) != len(turns):
            raise TemplateError(f"marks {len(spans)} spans with {{% generation %}} for {len(turns)} assistant turns")
        return text, spans

    def _compared(self, text: str, messages: Sequence[Message], tools: Sequence[Tool], index: int) -> Span:
        """Locate a turn by comparing the prompt for it with the rendering up to it. Both must be prefixes of `text`."""
        before = self.prompt(messages[:index], tools)
        upto = self._render(messages[: index + 1], tools)[0].rstrip()
        if not (upto.startswith(before) and text.startswith(upto)):
            raise TemplateError("renders an assistant turn differently if turns follow, so it cannot be located")
        return len(before), len(upto)

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
