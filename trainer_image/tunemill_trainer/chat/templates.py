"""Chooses the chat template: the user's, the base model's own where it is proven to carry the rows, or ours."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    """Whose template it is."""

    USER = "user"
    BASE = "base"
    TUNEMILL = "tunemill"


@dataclass(frozen=True)
class Choice:
    """A template that carries the rows.

    Attributes:
        encoder: renders with it.
        origin: whose it is.
        ends_of_turns: the tokens that end an assistant's turn; several where a call ends in another than a text.
        passed_over: why the base model's own was not taken; empty when there was no question.
    """

    encoder: Encoder
    origin: Origin
    ends_of_turns: tuple[int, ...]
    passed_over: str = ""


@dataclass(frozen=True)
class _Turns:
    """How a family of models writes turns; an empty system role means that it has none."""

    start: str
    role_end: str
    end: str
    gap: str
    system: str
    user: str
    assistant: str


_FAMILIES = (
    _Turns("<start_of_turn>", "\n", "<end_of_turn>", "\n", "", "user", "model"),
    _Turns("<|im_start|>", "\n", "<|im_end|>", "\n", "system", "user", "assistant"),
    _Turns("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", "", "system", "user", "assistant"),
)
"""Gemma, ChatML (Qwen and many others), Llama 3."""


_SERVED = tuple(call_format for call_format in ReplyFormat if call_format.served)
"""The ways to write calls that a server has a parser for; Hermes, our own, first."""


def settle(
    tokenizer: Tokenizer,
    mode: TokenizerMode,
    features: Features,
    more: Iterable[str],
    of_user: str | None,
    auto: TokenizerMode = TokenizerMode.EXTEND,
    expected: ReplyFormat | None = None,
) -> tuple[Choice, Vocabulary]:
    """Return the template to use, and give the tokenizer the tags that it lacks for it.

    Args:
        tokenizer: of the base model, with its template; changed.
        mode: spec.tokenizer.mode.
        features: what occurs in the rows.
        more: spec.tokenizer.addTokens.
        of_user: the text of spec.tokenizer.chatTemplate.
        auto: what the mode Auto does about tags that are lacking, Text or Extend.
        expected: how the base model's family writes calls; tried first, because a reply may be read in several formats.

    Raises:
        StageError: as `choose` and `prepare_vocabulary` do.
    """
    # A template of the user's may end its turns in them.
    asked = prepare_vocabulary(tokenizer, mode, Features(), more)
    choice = choose(tokenizer, features, of_user, expected)
    for_tags = asked.mode_for_tags(mode, auto)
    tags = prepare_vocabulary(tokenizer, for_tags, features, (), choice.encoder.call_format)
    # With new tokens the proof is another one.
    return (choose(tokenizer, features, of_user, expected) if tags.added else choice), asked.then(tags)


def choose(
    tokenizer: Tokenizer, features: Features, of_user: str | None, expected: ReplyFormat | None = None
) -> Choice:
    """Return the template to use.

    Args:
        tokenizer: of the base model, with its template.
        features: what occurs in the rows, which the template has to carry.
        of_user: the text of spec.tokenizer.chatTemplate.
        expected: how the base model's family writes calls; tried first.

    Raises:
        StageError: InvalidChatTemplate, or BaseModelUnsupported when not even ours can be used.
    """
    if of_user is not None:
        chosen, reason = _first_proven(tokenizer, features, of_user, Origin.USER, expected)
        if chosen is None:
            raise StageError(Reason.INVALID_CHAT_TEMPLATE, f"the template of spec.tokenizer.chatTemplate {reason}")
        return chosen
    own = _own_template(tokenizer, features)
    if own is None:
        return ours(tokenizer, features, "the base model has no chat template")
    chosen, reason = _first_proven(tokenizer, features, own, Origin.BASE, expected)
    return chosen or ours(tokenizer, features, f"the base model's chat template {reason}")


def ours(tokenizer: Tokenizer, features: Features, passed_over: str) -> Choice:
    """Return our template in the turns of the base model.

    Raises:
        StageError: BaseModelUnsupported, when the tokenizer cannot even end a turn.
    """
    chosen, reason = _first_proven(tokenizer, features, _our_source(tokenizer, features), Origin.TUNEMILL)
    if chosen is None:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED, f"with the tokenizer of spec.baseModel our chat template {reason}"
        )
    return Choice(chosen.encoder, chosen.origin, chosen.ends_of_turns, passed_over)


def is_unrenderable(choice: Choice, problem: Problem) -> bool:
    """Return whether a row is not wrong, but cannot be rendered with the base model's own template.

    Such rows are left out, and counted apart from wrong ones. A model is served with the template that it was trained
    with, so a few odd rows must not replace the template that it knows.
    """
    return choice.origin is Origin.BASE and problem.rule is Rule.NOT_REPRODUCIBLE


def _first_proven(
    tokenizer: Tokenizer, features: Features, source: str, origin: Origin, expected: ReplyFormat | None = None
) -> tuple[Choice | None, str]:
    """Return the template with the first way of finding turns and calls that works, or why none does."""
    reason = ""
    formats = _SERVED if features.calls and origin is not Origin.TUNEMILL else (ReplyFormat.HERMES,)
    if expected in formats:
        formats = tuple(dict.fromkeys((expected, *formats)))
    # Some templates leave the end-of-turn marker outside of {% generation %}: then comparing may still find the turns.
    for marked in (True, False) if ChatTemplate.has_markers(source) else (False,):
        template = ChatTemplate(
            source, tokenizer.special_tokens_map, marked=marked, keeps_history=origin is Origin.TUNEMILL
        )
        for call_format in formats:
            encoder = Encoder(tokenizer, template, call_format)
            found = _shortcoming(encoder, features)
            if not found:
                return Choice(encoder, origin, encoder.ends_of_turns(_probe(features))), ""
            reason = reason or found
    return None, reason


def _shortcoming(encoder: Encoder, features: Features) -> str:
    """Return what a template cannot carry of what the rows hold, found by rendering a conversation that has it all."""
    probe = _probe(features)
    try:
        text = encoder.template.conversation(probe.messages, probe.tools)
    except TemplateError as error:
        return str(error)
    missing = [fact for fact in _facts(probe) if not _holds(text, fact)]
    if missing:
        return f"leaves out what a conversation holds: {missing[0]}"
    encoded = encoder.encode([probe])[0]
    if encoded.problem:
        return f"does not carry the assistant's turns: {encoded.problem.message}"
    if encoder.heads_are_learnt(probe, encoded):
        return "does not write the head of an assistant turn when it asks for one"
    return ""


def _facts(probe: Row) -> Iterator[str]:
    """Yield texts that have to be in the rendering."""
    for tool in probe.tools:
        yield from (tool.name, tool.description, *_PARAMETERS)
    yield from (message.content for message in probe.messages)


def _holds(text: str, fact: str) -> bool:
    """Return whether a text holds a fact as it is, or as a JSON string: Llama 3 and gpt-oss quote tool responses so."""
    return fact in text or json.dumps(fact, ensure_ascii=False)[1:-1] in text


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
    """Return a conversation with everything that the rows have, in words that no template has by itself."""
    call = Call(_TOOL.name, {_PARAMETERS[0]: 'east "quay"\n7', _PARAMETERS[1]: "Österø"})
    calls = (call, Call(_TOOL.name, {_PARAMETERS[0]: "west", _PARAMETERS[1]: "Ålesund"}))[: 1 + features.many_parallel]
    thought = "The lighthouse keeper would look it up." * features.reasoning
    messages = [Message(Role.SYSTEM, "Answer as a harbourmaster would.")] * features.system
    messages.append(Message(Role.USER, "Is a berth free at the east quay?"))
    if features.calls:
        messages.append(Message(Role.ASSISTANT, "", reasoning=thought, calls=calls))
    if features.calls and features.responses:
        response = Message(Role.TOOL, json.dumps({"berths": "eleven"}), name=_TOOL.name)
        messages += [response] * len(calls)
    if not features.calls or features.responses:
        messages.append(Message(Role.ASSISTANT, "Eleven berths wait for you.", reasoning=thought))
    return Row(tuple(messages), (_TOOL,) * features.tools, Source("probe", 1))


def _own_template(tokenizer: Tokenizer, features: Features) -> str | None:
    """Return the base model's template; of several, the one for what the rows hold, as Transformers chooses."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        return own.get("tool_use" if features.tools and "tool_use" in own else "default")
    return own


def _our_source(tokenizer: Tokenizer, features: Features) -> str:
    tokens = tokenizer.get_vocab()
    turns = next((family for family in _FAMILIES if {family.start, family.end} <= tokens.keys()), None)
    if turns is None:
        if tokenizer.eos_token is None:
            raise StageError(
                Reason.BASE_MODEL_UNSUPPORTED, "the tokenizer of spec.baseModel has no token that could end a turn"
            )
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
    """Return whether the base model is used to a beginning-of-text token: from its template or from its tokenizer."""
    if tokenizer.bos_token is None:
        return False
    by_tokenizer = (
        tokenizer(["a"], add_special_tokens=True)["input_ids"][0][0] == tokenizer.get_vocab()[tokenizer.bos_token]
    )
    return by_tokenizer or "bos_token" in (_own_template(tokenizer, features) or "")
