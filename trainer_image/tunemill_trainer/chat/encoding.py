"""Encodes rows as token ids with assistant masks. Every assistant turn is decoded and parsed again to verify it."""

import json
import marshal
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunemill_trainer.chat.prefix_cache import PrefixCache, Tokens
from tunemill_trainer.chat.rendering import MEMORY, ChatTemplate, Rendered, TemplateError
from tunemill_trainer.chat.tokenizer import Tokenizer
from tunemill_trainer.data.findings import Problem, Rule
from tunemill_trainer.data.rows import Call, Message, Role, Row, Tool
from tunemill_trainer.judge.parse import ReplyFormat, parse_reply
from tunemill_trainer.prepared import IGNORED

CHARACTERS_A_TOKEN = 128
"""An upper bound for the mean number of characters per token. Only the longest tokens have this many characters."""
_WITHOUT_REFERENCES = 2
"""A version of marshal in which equal values have equal bytes; five times as fast as JSON."""


@dataclass(frozen=True)
class Turn:
    """One assistant turn that is trained on.

    Attributes:
        message: the index of the message in the row.
        start: the index of its first token.
        end: the index after its last token, which is the end-of-turn token.
    """

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """A training example as token ids.

    Attributes:
        input_ids: the conversation up to its last trained turn, or all of it.
        turns: the trained turns.
    """

    input_ids: list[int]
    turns: tuple[Turn, ...]

    def labels(self, *, everything: bool) -> list[int]:
        """Return the labels: the ids of assistant turns and IGNORED elsewhere, or all ids."""
        if everything:
            return list(self.input_ids)
        labels = [IGNORED] * len(self.input_ids)
        for turn in self.turns:
            labels[turn.start : turn.end] = self.input_ids[turn.start : turn.end]
        return labels


@dataclass(frozen=True)
class Encoded:
    """A row as training examples. A row with a problem cannot be trained on."""

    examples: tuple[Example, ...]
    problem: Problem | None = None

    @property
    def turns(self) -> Iterator[tuple[Turn, list[int]]]:
        """Yield the trained turns of all examples in order, each with its token ids."""
        for example in self.examples:
            for turn in example.turns:
                yield turn, example.input_ids[turn.start : turn.end]


class Encoder:
    """Renders and tokenises rows with one chat template.

    Args:
        tokenizer: the tokenizer of the base model.
        template: the chat template.
        call_format: the format in which the template writes calls. A server's rules for it are used to verify turns.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, call_format: ReplyFormat = ReplyFormat.HERMES
    ) -> None:
        self.template = template
        self.call_format = call_format
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._enders = set(tokenizer.added_tokens_decoder)
        self._prefixes = PrefixCache(self._backend, tokenizer.added_tokens_decoder.values())

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """Return the prompt's token ids: the messages and the generation prompt."""
        return self.all_prompt_ids([(messages, tools)])[0]

    def all_prompt_ids(self, histories: Sequence[tuple[Sequence[Message], Sequence[Tool]]]) -> list[list[int]]:
        """Return the token ids of several prompts, each of messages and tools; see `prompt_ids`."""
        with MEMORY:
            prompts = [self.template.prompt(messages, tools) for messages, tools in histories]
        requests = [_request(messages) for messages, _ in histories]
        return [tokens.ids for tokens in self._prefixes.tokenise(prompts, requests)]

    def ends_of_turns(self, row: Row) -> tuple[int, ...]:
        """Return the end-of-turn tokens of the assistant turns in a row, each once."""
        return tuple(dict.fromkeys(ids[-1] for _, ids in self.encode([row])[0].turns))

    def trains_on_headers(self, row: Row, encoded: Encoded) -> bool:
        """Return whether a trained turn starts with a special token, such as that of the turn's header.

        The model would then have to generate the header. Special tokens that are part of a call are allowed.
        """
        added = self._tokenizer.added_tokens_decoder
        for turn, ids in encoded.turns:
            first = added.get(ids[0])
            rest = self._backend.decode(ids[1:-1], skip_special_tokens=False)
            calls = row.messages[turn.message].calls
            own = calls and parse_reply(rest, self.call_format, row.tools).calls != calls
            if first is not None and first.special and not own:
                return True
        return False

    def encode(self, rows: Sequence[Row], max_length: int | None = None) -> list[Encoded]:
        """Encode rows as token ids, each with its problem, if any.

        Args:
            rows: the rows.
            max_length: the maximum length in tokens. A row that is certainly longer is not tokenised, because that
                could take any amount of time and memory; its problem is OVERLONG. None tokenises all rows.
        """
        most = None if max_length is None else max_length * CHARACTERS_A_TOKEN
        rendered: list[list[Rendered] | Problem] = []
        with MEMORY:
            for row in rows:
                try:
                    found = self.template.examples(row.messages, row.tools)
                except TemplateError as error:
                    rendered.append(Problem(Rule.NOT_REPRODUCIBLE, f"the chat template {error}"))
                    continue
                longest = max(len(example.text) for example in found)
                if most is not None and longest > most:
                    message = f"the row has {longest} characters, which is certainly more than {max_length} tokens"
                    rendered.append(Problem(Rule.OVERLONG, message))
                else:
                    rendered.append(found)
        texts, requests = [], []
        for row, item in zip(rows, rendered, strict=True):
            if not isinstance(item, Problem):
                texts += [example.text for example in item]
                requests += [_request(row.messages)] * len(item)
        tokenised = iter(self._prefixes.tokenise(texts, requests))
        return [
            Encoded((), item)
            if isinstance(item, Problem)
            else self._encoded(row, [(example, next(tokenised)) for example in item])
            for row, item in zip(rows, rendered, strict=True)
        ]

    def _encoded(self, row: Row, rendered: Sequence[tuple[Rendered, Tokens]]) -> Encoded:
        encoded = Encoded(
            tuple(
                Example(tokens.ids, tuple(Turn(index, *tokens.between(*span)) for index, span in example.turns))
                for example, tokens in rendered
            )
        )
        turns = list(encoded.turns)
        texts = self._backend.decode_batch([ids[:-1] for _, ids in turns], skip_special_tokens=False)
        for (turn, ids), text in zip(turns, texts, strict=True):
            message = row.messages[turn.message]
            problem = self._ending_problem(ids) or self._reading_problem(message, text, row.tools)
            if problem:
                return Encoded(encoded.examples, problem)
        return encoded

    def _ending_problem(self, ids: list[int]) -> Problem | None:
        if not ids or ids[-1] not in self._enders:
            return Problem(
                Rule.NOT_REPRODUCIBLE, "an assistant turn does not end with an end-of-turn token included in the loss"
            )
        if ids[-1] in ids[:-1]:
            return Problem(Rule.MARKER_IN_TEXT, "the text of an assistant turn contains the end-of-turn token")
        return None

    def _reading_problem(self, message: Message, text: str, tools: Sequence[Tool]) -> Problem | None:
        """Compare a turn with the calls and the text that are parsed from its tokens."""
        read = parse_reply(text, self.call_format, tools)
        same = read.blocks == len(message.calls) and _same_calls(read.calls, message.calls)
        if not same:
            return Problem(
                Rule.NOT_REPRODUCIBLE, "the calls of an assistant turn change when its tokens are decoded and parsed"
            )
        whole = _composed(text)
        for part in (message.reasoning, message.content):
            # A template may trim white space.
            if _composed(part.strip()) not in whole:
                return Problem(
                    Rule.NOT_REPRODUCIBLE, "the text of an assistant turn changes when its tokens are decoded"
                )
        return None


def _request(messages: Sequence[Message]) -> str:
    """Return the first message after the system message, which other rows do not share; "" if it is the assistant's."""
    first = next((message for message in messages if message.role is not Role.SYSTEM), None)
    return first.content.strip() if first is not None and first.role is not Role.ASSISTANT else ""


def _same_calls(read: Sequence[Call], meant: Sequence[Call]) -> bool:
    """Return whether calls are equal as JSON. In Python, 1 == 1.0 == True."""
    if not (read or meant):
        return True
    packed = (
        marshal.dumps([(call.name, call.arguments) for call in calls], _WITHOUT_REFERENCES) for calls in (read, meant)
    )
    # Equal bytes mean equal values. Equal values may still differ in the order of keys or in Unicode composition.
    return next(packed) == next(packed) or _calls(read) == _calls(meant)


def _calls(calls: Sequence[Call]) -> str:
    return _composed(json.dumps([call.to_json() for call in calls], sort_keys=True, ensure_ascii=False))


def _composed(text: str) -> str:
    """Return the text in Unicode form NFC. Some tokenizers normalise to it; the text looks the same."""
    return unicodedata.normalize("NFC", text)
