"""Chooses the chat template: the user's, or the base model's if it supports the rows, or else Tunemill's."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import resources

from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason

from tunemill_trainer.chat.encoding import Encoder
from tunemill_trainer.chat.rendering import ChatTemplate, TemplateError
from tunemill_trainer.chat.tokenizer import Tokenizer, Vocabulary, prepare_vocabulary
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.findings import Problem, Rule
from tunemill_trainer.data.rows import Call, Message, Role, Row, Source, Tool
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.parse import ReplyFormat


class Origin(StrEnum):
    """Where a template comes from."""

    USER = "user"
    BASE = "base"
    ADAPTER = "adapter"
    TUNEMILL = "tunemill"


@dataclass(frozen=True)
class Choice:
    """A template that supports the rows.

    Attributes:
        encoder: the encoder with the template.
        origin: where the template comes from.
        ends_of_turns: the end-of-turn tokens of the assistant; several if turns with calls end differently.
        rejected_because: why the base model's template was not used; empty if it was, or the user gave one.
    """

    encoder: Encoder
    origin: Origin
    ends_of_turns: tuple[int, ...]
    rejected_because: str = ""


@dataclass(frozen=True)
class _Turns:
    """How a family of models writes turns. An empty `system` means that it has no system role."""

    start: str
    role_end: str
    end: str
    gap: str
    system: str
    user: str
    assistant: str

    def is_written_with(self, tokens: Collection[str]) -> bool:
        """Return whether a vocabulary has the tokens of the turns. Some families have one token for a whole header."""
        return self.end in tokens and (self.start in tokens or f"{self.start}{self.user}{self.role_end}" in tokens)


_FAMILIES = (
    _Turns("<start_of_turn>", "\n", "<end_of_turn>", "\n", "", "user", "model"),
    _Turns("<|im_start|>", "\n", "<|im_end|>", "\n", "system", "user", "assistant"),
    _Turns("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "", "system", "user", "assistant"),
    _Turns("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "\n", "system", "user", "assistant"),
    _Turns("<|", "|>", "<|end|>", "", "system", "user", "assistant"),
)
"""Gemma, ChatML (Qwen and many others), Llama 3, Granite, Phi."""


_SERVED = tuple(call_format for call_format in ReplyFormat if call_format.served)
"""The call formats that vLLM has a parser for, starting with Hermes, the format of Tunemill's template."""


def choose_and_extend(
    tokenizer: Tokenizer,
    mode: TokenizerMode,
    features: Features,
    more: Iterable[str],
    of_user: str | None,
    auto: TokenizerMode = TokenizerMode.EXTEND,
    expected: ReplyFormat | None = None,
    own: Origin = Origin.BASE,
) -> tuple[Choice, Vocabulary]:
    """Choose the template, and add the tags that it needs to the tokenizer.

    Args:
        tokenizer: the tokenizer of the base model, with its template; changed.
        mode: spec.tokenizer.mode.
        features: the features of the rows.
        more: spec.tokenizer.addTokens.
        of_user: the content of spec.tokenizer.chatTemplate, or None.
        auto: how the mode Auto handles missing tags, Text or Extend.
        expected: the call format of the base model's family. It is tried first: several formats may parse a reply.
        own: where the tokenizer's template comes from: the base model, or the adapter from which training starts.

    Raises:
        StageError: see `choose` and `prepare_vocabulary`.
    """
    # Add the user's tokens first: the user's template may use them as end-of-turn tokens.
    user_tokens = prepare_vocabulary(tokenizer, mode, Features(), more)
    choice = choose(tokenizer, features, of_user, expected, own)
    mode_for_tags = user_tokens.mode_for_tags(mode, auto)
    tags = prepare_vocabulary(tokenizer, mode_for_tags, features, (), choice.encoder.call_format)
    # With new tokens, the templates must be checked again.
    return (choose(tokenizer, features, of_user, expected, own) if tags.added else choice), user_tokens.then(tags)


def choose(
    tokenizer: Tokenizer,
    features: Features,
    of_user: str | None,
    expected: ReplyFormat | None = None,
    origin: Origin = Origin.BASE,
) -> Choice:
    """Choose the template.

    Args:
        tokenizer: the tokenizer of the base model, with its template.
        features: the features of the rows, which the template must support.
        of_user: the content of spec.tokenizer.chatTemplate, or None.
        expected: the call format of the base model's family, which is tried first.
        origin: where the tokenizer's template comes from.

    Raises:
        StageError: InvalidChatTemplate; BaseModelUnsupported if Tunemill's template does not work either, or the
            template of an adapter does not work, which no other can replace.
    """
    if of_user is not None:
        chosen, reason = _first_proven(tokenizer, features, of_user, Origin.USER, expected)
        if chosen is None:
            raise StageError(Reason.INVALID_CHAT_TEMPLATE, f"the template of spec.tokenizer.chatTemplate {reason}")
        return chosen
    own = _own_template(tokenizer, features)
    if own is None:
        return tunemill_template(tokenizer, features, "the base model has no chat template")
    chosen, reason = _first_proven(tokenizer, features, own, origin, expected)
    if chosen is None and origin is Origin.ADAPTER:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED,
            f"the chat template of spec.baseModel.adapter {reason}",
            "Leave out the rows that it cannot render, or remove spec.baseModel.adapter to train from the base model.",
        )
    return chosen or tunemill_template(tokenizer, features, f"the base model's chat template {reason}")


def tunemill_template(tokenizer: Tokenizer, features: Features, rejected_because: str) -> Choice:
    """Return Tunemill's template, with turns as in the base model's family.

    Raises:
        StageError: BaseModelUnsupported, if the template does not work with the tokenizer.
    """
    chosen, reason = _first_proven(tokenizer, features, _tunemill_source(tokenizer, features), Origin.TUNEMILL)
    if chosen is None:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED,
            f"with the tokenizer of spec.baseModel, Tunemill's chat template {reason}",
        )
    return Choice(chosen.encoder, chosen.origin, chosen.ends_of_turns, rejected_because)


def is_unrenderable(choice: Choice, problem: Problem) -> bool:
    """Return whether a row is valid, but the own template of the base model or adapter cannot render it.

    Such rows are excluded and counted separately from invalid ones. A model is served with the template that it was
    trained with, so a few unusual rows must not replace the template that the base model knows.
    """
    return choice.origin in {Origin.BASE, Origin.ADAPTER} and problem.rule is Rule.NOT_REPRODUCIBLE


def _first_proven(
    tokenizer: Tokenizer, features: Features, source: str, origin: Origin, expected: ReplyFormat | None = None
) -> tuple[Choice | None, str]:
    """Return the template with the first way to locate turns and parse calls that works, or why none does."""
    reason = ""
    formats = _SERVED if features.calls and origin is not Origin.TUNEMILL else (ReplyFormat.HERMES,)
    if expected in formats:
        formats = tuple(dict.fromkeys((expected, *formats)))
    # Some templates have the end-of-turn token outside {% generation %}. Comparing renderings may still work for them.
    for marked in (True, False) if ChatTemplate.has_markers(source) else (False,):
        template = ChatTemplate(
            source, tokenizer.special_tokens_map, marked=marked, keeps_history=origin is Origin.TUNEMILL
        )
        for call_format in formats:
            encoder = Encoder(tokenizer, template, call_format)
            found = _unsupported(encoder, features)
            if not found:
                return Choice(encoder, origin, encoder.ends_of_turns(_probe(features))), ""
            reason = reason or found
    return None, reason


def _unsupported(encoder: Encoder, features: Features) -> str:
    """Render a conversation that has all features, and return what the template does not support; "" if nothing."""
    probe = _probe(features)
    try:
        text = encoder.template.conversation(probe.messages, probe.tools)
    except TemplateError as error:
        return str(error)
    missing = [content for content in _contents(probe) if not _contains(text, content)]
    if missing:
        return f"omits a part of the conversation: {missing[0]}"
    encoded = encoder.encode([probe])[0]
    if encoded.problem:
        return f"does not preserve assistant turns: {encoded.problem.message}"
    if not _writes_header(encoder.template, probe):
        # Without reasoning, because a turn may start with a special token that starts the reasoning.
        plain = _probe(replace(features, reasoning=False))
        if encoder.trains_on_headers(plain, encoder.encode([plain])[0]):
            return "does not write the header of an assistant turn with add_generation_prompt"
    return ""


def _writes_header(template: ChatTemplate, probe: Row) -> bool:
    """Return whether add_generation_prompt adds the header of an assistant turn after a request."""
    first = next(at for at, message in enumerate(probe.messages) if message.role is Role.ASSISTANT)
    history = probe.messages[:first]
    prompt, conversation = template.prompt(history, probe.tools), template.conversation(history, probe.tools)
    return prompt.startswith(conversation) and bool(prompt.removeprefix(conversation).strip())


def _contents(probe: Row) -> Iterator[str]:
    """Yield the texts that the rendering must contain."""
    for tool in probe.tools:
        yield from (tool.name, tool.description, *_PARAMETERS)
    yield from (message.content for message in probe.messages)


def _contains(text: str, content: str) -> bool:
    """Return whether a text contains some content, or the same as a JSON string, as Llama 3 writes tool responses."""
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


_PARAMETERS = ("moorings", "vessel")
_TOOL = Tool(
    "count_moorings",
    "Counts free berths of a harbour",
    {
        "type": "object",
        "properties": {name: {"type": "string"} for name in _PARAMETERS},
        "required": list(_PARAMETERS),
    },
)


def _probe(features: Features) -> Row:
    """Return a conversation with all features of the rows, in words that no template contains."""
    calls = [Call(_TOOL.name, {_PARAMETERS[0]: 'east "quay"\n7', _PARAMETERS[1]: "Österø"})]
    if features.many_parallel:
        calls.append(Call(_TOOL.name, {_PARAMETERS[0]: "west", _PARAMETERS[1]: "Ålesund"}))
    thought = "The lighthouse keeper would look it up." if features.reasoning else ""
    tools = (_TOOL,) if features.tools else ()
    messages: list[Message] = []
    if features.system:
        messages.append(Message(Role.SYSTEM, "Answer as a harbourmaster would."))
    messages.append(Message(Role.USER, "Is a berth free at the east quay?"))
    if features.calls:
        messages.append(Message(Role.ASSISTANT, "", reasoning=thought, calls=tuple(calls)))
    if features.calls and features.responses:
        messages += [Message(Role.TOOL, json.dumps({"berths": "eleven"}), name=_TOOL.name) for _ in calls]
    if not features.calls or features.responses:
        messages.append(Message(Role.ASSISTANT, "Eleven berths wait for you.", reasoning=thought))
    return Row(tuple(messages), tools, Source("probe", 1))


def _own_template(tokenizer: Tokenizer, features: Features) -> str | None:
    """Return the base model's template. If it has several, choose like Transformers: `tool_use` for rows with tools."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        return own.get("tool_use" if features.tools and "tool_use" in own else "default")
    return own


def _tunemill_source(tokenizer: Tokenizer, features: Features) -> str:
    tokens = tokenizer.get_vocab()
    turns = next((family for family in _FAMILIES if family.is_written_with(tokens)), None)
    if turns is None:
        if tokenizer.eos_token is None:
            raise StageError(Reason.BASE_MODEL_UNSUPPORTED, "the tokenizer of spec.baseModel has no end-of-turn token")
        turns = _Turns("### ", "\n", tokenizer.eos_token, "\n", "system", "user", "assistant")
    names = {
        "turn_start": turns.start,
        "role_end": turns.role_end,
        "turn_end": turns.end,
        "turn_gap": turns.gap,
        "system_role": turns.system,
        "user_role": turns.user,
        "assistant_role": turns.assistant,
    }
    lines = [f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in names.items()]
    body = resources.files("tunemill_trainer.chat").joinpath("hermes.jinja").read_text(encoding="utf-8")
    begins = ["{{- bos_token -}}"] if _begins_texts(tokenizer, features) else []
    return "\n".join([*lines, *begins, body])


def _begins_texts(tokenizer: Tokenizer, features: Features) -> bool:
    """Return whether the base model's tokenizer or chat template starts texts with a beginning-of-text token."""
    if tokenizer.bos_token is None:
        return False
    by_tokenizer = (
        tokenizer(["a"], add_special_tokens=True)["input_ids"][0][0] == tokenizer.get_vocab()[tokenizer.bos_token]
    )
    return by_tokenizer or "bos_token" in (_own_template(tokenizer, features) or "")
