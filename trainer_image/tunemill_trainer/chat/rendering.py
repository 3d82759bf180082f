"""Renders conversations with a chat template, as Transformers and the servers do, and finds what the assistant says."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2

# The environment that Transformers renders with. Its public function copies all messages and tools before, which takes
# as long as rendering (77 of 221 microseconds a row with three tools); ours are plain values already.
from transformers.utils.chat_template_utils import _compile_jinja_template

from tunemill_trainer.data.memo import Memo
from tunemill_trainer.data.rows import Message, Role, Tool
from tunemill_trainer.process.bounds import MemoryBound, OutOfBoundsError, TimeBound

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")

TIME = TimeBound(seconds=5.0)
"""For one rendering. Usual is a hundredth of a second for the longest rows."""
MEMORY = MemoryBound(1 << 30)
"""For one rendering, or for a batch of them, which is cheaper."""

Span = tuple[int, int]
"""The first character of an assistant's turn and the one after its last; the end-of-turn marker is part of it."""


class TemplateError(Exception):
    """The template cannot render a conversation, or not so that the assistant's turns can be found in it."""


@dataclass(frozen=True)
class Rendered:
    """One training example as text.

    Attributes:
        text: the conversation up to its last supervised turn, or all of it.
        turns: the supervised assistant turns, in order: the index of the message and its span in the text.
    """

    text: str
    turns: tuple[tuple[int, Span], ...]


class ChatTemplate:
    """A chat template with the special tokens that it may name.

    Args:
        source: Jinja.
        special_tokens: such as bos_token, by name.
        marked: whether the assistant's turns stand in `{% generation %}`; otherwise they are found by comparing the
            rendering up to a turn with the prompt for it.
        keeps_history: whether the template is known to render a turn alike whatever follows. Then a conversation is
            one example, and nothing is compared.
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
        """Return whether the template marks what the loss is on."""
        return _MARKER.search(source) is not None

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        """Return the history as a server renders it, up to where the assistant begins to speak.

        Raises:
            TemplateError: with Jinja's message.
        """
        return self._render(messages, tools, add_generation_prompt=True)[0]

    def conversation(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        """Return a whole conversation as text.

        Raises:
            TemplateError: with Jinja's message.
        """
        return self._render(messages, tools)[0]

    def examples(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Rendered]:
        """Return a conversation as training examples in which every supervised turn follows its prompt as served.

        Many templates render a turn differently once other turns follow: Qwen 3 drops the reasoning of turns before
        the last request. A server renders the history before each reply, so the example for a turn ends with that
        turn. Turns whose histories are beginnings of one another share an example, and with it the computation of the
        prefix: a conversation that such a template renders alike throughout is one example.

        Returns:
            the examples, in the order of their turns. Without a supervised turn: the whole conversation alone.

        Raises:
            TemplateError: with Jinja's message, or when a turn does not continue the prompt for it.
        """
        text, spans = self._render(messages, tools)
        turns = [index for index, message in enumerate(messages) if message.role is Role.ASSISTANT]
        if self.marked and len(spans) != len(turns):
            raise TemplateError(f"marks {len(spans)} spans with {{% generation %}} for {len(turns)} assistant turns")
        learnt = [index for index in turns if messages[index].learnt]
        if self._keeps_history or not learnt:
            known = dict(zip(turns, spans, strict=self.marked))
            return [Rendered(text, tuple((index, known[index]) for index in learnt))]
        found: list[Rendered] = []
        group: list[tuple[int, Span]] = []
        for index in reversed(learnt):
            served, span = self._as_served(messages, tools, index)
            if not text.startswith(served):
                if group:
                    found.append(Rendered(text, tuple(reversed(group))))
                text, group = served, []
            group.append((index, span))
        found.append(Rendered(text, tuple(reversed(group))))
        return found[::-1]

    def _as_served(self, messages: Sequence[Message], tools: Sequence[Tool], index: int) -> tuple[str, Span]:
        """Return the conversation up to the end of an assistant turn, and the turn's span: what follows the prompt."""
        prompt = self.prompt(messages[:index], tools)
        text, spans = self._render(messages[: index + 1], tools)
        if self.marked and not spans:
            raise TemplateError("marks no span with {% generation %} for an assistant turn")
        start, end = spans[-1] if self.marked else (len(prompt), len(text.rstrip()))
        if text[:start] != prompt:
            raise TemplateError("begins an assistant turn differently when it asks for one")
        return text[:end], (start, end)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        blocks: list[str] = []
        spans: list[Span] = []
        try:
            # Compiling computes already what is constant.
            with MEMORY, TIME:
                compiled = _compile_jinja_template(self.source)
                compiled.environment.filters["tojson"] = _to_json
                with compiled.environment.activate_tracker(blocks, spans):
                    # The tracker counts what is there already, so blocks must come one by one.
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
            # A template is a program of somebody else's: what it raises says what it cannot do.
            raise TemplateError(f"fails with {type(error).__name__}: {error}") from error
        except RecursionError as error:
            raise TemplateError("calls itself without end") from error


def _chat_message(message: Message) -> dict[str, Any]:
    """Return a turn with the names that chat templates expect."""
    value: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.reasoning:
        # Transformers passes it under both names; gpt-oss reads the second.
        value["reasoning_content"] = value["thinking"] = message.reasoning
    if message.calls:
        value["tool_calls"] = [{"type": "function", "function": call.to_json()} for call in message.calls]
    if message.name:
        value["name"] = message.name
    return value


class _Declared(dict[str, Any]):
    """A part of a tool's declaration, which rows share: it is written as JSON only once."""

    @cached_property
    def _json(self) -> str:
        """The part as JSON. A template reaches no name that begins with an underscore, so `tool.x` stays a key."""
        return _encode(self)


def _to_json(
    value: Any,  # noqa: ANN401 - any JSON value
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as the filter `tojson` of Transformers does, which makes an encoder for each value."""
    if ensure_ascii or sort_keys or indent is not None or separators is not None:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return value._json if type(value) is _Declared else _encode(value)  # noqa: SLF001 - see there


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _declare(tools: tuple[Tool, ...]) -> list[dict[str, Any]] | None:
    """Return tools as chat templates expect them."""
    return [_Declared(type="function", function=_Declared(tool.to_json())) for tool in tools] or None


_declared = Memo(_declare, size_of=lambda tools: 2 * sum(tool.size for tool in tools))
