"""The base model's tokenizer: loads it without torch, adds missing tags, and describes it for the later stages."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict, cast

import tokenizers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, logging
from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason

from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.prepared import NewToken, Tokens
from tunemill_trainer.process import bounds

FILES = ["*.json", "*.jinja", "additional_chat_templates/*"]
"""Patterns of the files in a model's repository that the tokenizer and its checks need."""


LARGEST_TOKENIZER = 96 << 20
"""In bytes. The largest known ones have 35 MiB."""
LARGEST_CONFIG = 8 << 20
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
"""The files that Transformers reads in addition to tokenizer.json."""
_MOST_BYTES, _MOST_SECONDS = 3 << 30, 120
"""The limits for loading a tokenizer and encoding one text. A vocabulary of 256,000 tokens takes 600 MiB and 3 s."""
_SAMPLE = "".join(map(chr, range(32, 127))) * 20 + "\n\t äß日本語 🙂" * 50
"""The text that is encoded once under the limits: a normalizer can expand every character to a megabyte."""


class Encoding(TypedDict):
    """What a tokenizer returns for a list of texts: one list of token ids per text."""

    input_ids: list[list[int]]


class Tokenizer(Protocol):
    """The part of Transformers' fast tokenizer that prepare uses. Transformers has no type hints."""

    chat_template: str | dict[str, str] | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None
    added_tokens_decoder: dict[int, AddedToken]
    special_tokens_map: dict[str, str]
    backend_tokenizer: tokenizers.Tokenizer
    """The wrapped tokenizer. Calling it directly is a third faster (370 instead of 509 microseconds for 308 tokens)."""

    def __call__(self, text: list[str], **options: bool) -> Encoding:
        """Tokenise."""

    def batch_decode(self, sequences: list[list[int]], **options: bool) -> list[str]:
        """Return the texts of token ids."""

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens with their ids."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the tokens with these ids."""

    def add_tokens(self, tokens: list[AddedToken]) -> int:
        """Add tokens and return how many are new."""

    def save_pretrained(self, folder: Path) -> object:
        """Write the tokenizer."""


@dataclass(frozen=True)
class Vocabulary:
    """How the vocabulary was changed.

    Attributes:
        mode: the effective mode: Reuse, Text or Extend.
        added: the new tokens.
    """

    mode: TokenizerMode
    added: tuple[NewToken, ...]

    def mode_for_tags(self, mode: TokenizerMode, auto: TokenizerMode) -> TokenizerMode:
        """Return the mode for missing tags, after the user's tokens were added.

        Args:
            mode: spec.tokenizer.mode.
            auto: how Auto handles missing tags, Text or Extend.
        """
        keeps = mode is TokenizerMode.AUTO and auto is TokenizerMode.TEXT
        # If the user added tokens, the vocabulary is extended anyway.
        return TokenizerMode.TEXT if keeps and not self.added else mode

    def then(self, later: "Vocabulary") -> "Vocabulary":
        """Return this change and a later one combined."""
        added = self.added + later.added
        return Vocabulary(TokenizerMode.EXTEND if added else later.mode, added)


def load(folder: Path, field: str = "spec.baseModel") -> Tokenizer:
    """Load a tokenizer from its tokenizer.json.

    PreTrainedTokenizerFast uses the file as is. AutoTokenizer would rebuild the tokenizers of some families from their
    vocabulary, and it imports torch, which takes longer than all of prepare.

    Args:
        folder: the folder.
        field: the part of the spec that names the model, for messages.

    Raises:
        StageError: BaseModelUnsupported.
    """
    logging.set_verbosity_error()
    try:
        loaded = cast("Tokenizer", PreTrainedTokenizerFast.from_pretrained(folder))
    except Exception as error:  # tokenizers raises plain Exceptions for invalid files
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED, f"the tokenizer.json of {field} cannot be read: {error}"
        ) from error
    # Some repositories contain the truncation and padding settings of their training.
    loaded.backend_tokenizer.no_truncation()
    loaded.backend_tokenizer.no_padding()
    return loaded


def load_base(folder: Path, field: str = "spec.baseModel") -> Tokenizer:
    """Load the tokenizer of an untrusted model: first in a child process with limits, then in this one.

    The tokenizers library is written in Rust and aborts the process when it runs out of memory. A few kilobytes of
    tokenizer.json can make it allocate any amount, on loading or on the first text.

    Args:
        folder: the folder.
        field: the part of the spec that names the model, for messages.

    Raises:
        StageError: BaseModelUnsupported.
    """
    for path in (folder / "tokenizer.json", *(folder / name for name in CONFIGS), *folder.rglob("*.jinja")):
        most = LARGEST_TOKENIZER if path.name == "tokenizer.json" else LARGEST_CONFIG
        if path.exists() and path.stat().st_size > most:
            raise StageError(
                Reason.BASE_MODEL_UNSUPPORTED,
                f"expected at most {most >> 20} MiB for {path.name} of {field}, found {path.stat().st_size >> 20} MiB",
            )

    def use() -> None:
        load(folder, field).backend_tokenizer.encode(_SAMPLE)

    if problem := bounds.try_in_child(use, _MOST_BYTES, _MOST_SECONDS):
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED,
            problem if field in problem else f"the tokenizer.json of {field} {problem}",
        )
    return load(folder, field)


def read_json(path: Path) -> JsonObject:
    """Read a small JSON file of the base model that contains an object.

    Raises:
        ValueError: the file is too large or not a JSON object.
    """
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"it has more than {LARGEST_CONFIG >> 20} MiB")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def prepare_vocabulary(
    tokenizer: Tokenizer,
    mode: TokenizerMode,
    features: Features,
    more: Iterable[str],
    call_format: ReplyFormat = ReplyFormat.HERMES,
) -> Vocabulary:
    """Add missing tags and the user's tokens to the tokenizer, if the mode allows it.

    The vocabulary can be reused if every tag that the assistant generates is a single token. Tags that are only part of
    prompts, such as `<tools>`, may consist of several tokens then.

    Args:
        tokenizer: the tokenizer of the base model; changed.
        mode: spec.tokenizer.mode. Auto means Extend if anything is missing, or else Reuse.
        features: the features of the rows.
        more: spec.tokenizer.addTokens.
        call_format: the call format of the chat template. Only the tags of Hermes can be missing: a base model whose
            template uses another format has the tokens for it.

    Raises:
        StageError: TokenizerLacksTags, with the mode Reuse; InvalidSpec, with the mode Text and tokens to add.
    """
    written, read = _hermes_tags(features) if call_format is ReplyFormat.HERMES else ([], [])
    lacking = [token for token in dict.fromkeys([*written, *more]) if not _is_one_token(tokenizer, token)]
    if not lacking and mode is not TokenizerMode.EXTEND:
        return Vocabulary(TokenizerMode.REUSE, ())
    if mode is TokenizerMode.TEXT:
        if refused := [token for token in more if token in lacking]:
            raise StageError(
                Reason.INVALID_SPEC,
                "expected spec.tokenizer.addTokens to be empty with spec.tokenizer.mode Text, which adds no tokens, "
                f"found {', '.join(refused)}",
            )
        return Vocabulary(TokenizerMode.TEXT, ())
    if mode is TokenizerMode.REUSE:
        raise StageError(
            Reason.TOKENIZER_LACKS_TAGS,
            f"spec.tokenizer.mode is Reuse, but the base model's vocabulary has no {', '.join(lacking)}",
        )
    tokens = dict.fromkeys([*read, *written, *more])
    new = [token for token in tokens if not _is_one_token(tokenizer, token)]
    if not new:
        return Vocabulary(TokenizerMode.REUSE, ())
    pieces = tokenizer(new, add_special_tokens=False)["input_ids"]
    # Not special: decoding removes special tokens from replies. Not normalized: the exact text must match.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in new])
    ids = tokenizer.get_vocab()
    added = (NewToken(ids[token], token, tuple(before)) for token, before in zip(new, pieces, strict=True))
    return Vocabulary(TokenizerMode.EXTEND, tuple(added))


def tokens_added_to(base: Tokenizer, extended: Tokenizer) -> tuple[NewToken, ...]:
    """Return the tokens that a tokenizer has in addition to those of the base model, by id.

    Raises:
        ValueError: it has other ids for tokens of the base model, or lacks some.
    """
    known, found = base.get_vocab(), extended.get_vocab()
    changed = next((token for token, number in known.items() if found.get(token) != number), None)
    if changed is not None:
        raise ValueError(
            f"the token {changed!r} has the id {found.get(changed)}, and {known[changed]} in the base model"
        )
    new = sorted(found.keys() - known.keys(), key=found.__getitem__)
    pieces = base(new, add_special_tokens=False)["input_ids"] if new else []
    return tuple(NewToken(found[token], token, tuple(before)) for token, before in zip(new, pieces, strict=True))


def describe(
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    ends_of_turns: tuple[int, ...],
    base: Path,
    call_format: ReplyFormat = ReplyFormat.HERMES,
) -> Tokens:
    """Return what the later stages need to know about the tokenizer. Sets a padding token if it has none.

    Args:
        tokenizer: the tokenizer, after prepare_vocabulary.
        vocabulary: the result of prepare_vocabulary.
        ends_of_turns: the end-of-turn tokens of the assistant.
        base: the folder of the base model, for generation_config.json.
        call_format: the call format of the chat template.
    """
    ids = tokenizer.get_vocab()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or next(token for token, at in ids.items() if at == ends_of_turns[0])
    assert tokenizer.pad_token_id is not None
    stops = [*ends_of_turns, tokenizer.eos_token_id, *_generation_stops(base / "generation_config.json")]
    return Tokens(
        mode=vocabulary.mode.value,
        added=vocabulary.added,
        stop_token_ids=tuple(dict.fromkeys(stop for stop in stops if stop is not None)),
        pad_token_id=tokenizer.pad_token_id,
        vocabulary=max(ids.values()) + 1,
        call_format=call_format.value,
    )


def _hermes_tags(features: Features) -> tuple[list[str], list[str]]:
    """Return the tags of Tunemill's template that the assistant generates, and those that are only in prompts."""
    written, read = [], []
    if features.calls:
        written += ["<tool_call>", "</tool_call>"]
    if features.reasoning:
        written += ["<think>", "</think>"]
    if features.tools:
        read += ["<tools>", "</tools>"]
    if features.responses:
        read += ["<tool_response>", "</tool_response>"]
    return written, read


def _is_one_token(tokenizer: Tokenizer, token: str) -> bool:
    # Being in the vocabulary is not enough: the merges may never produce the token.
    identifier = tokenizer.get_vocab().get(token)
    return identifier in tokenizer([f"a{token}{{"], add_special_tokens=False)["input_ids"][0]


def _generation_stops(path: Path) -> list[int]:
    if not path.exists():
        return []
    try:
        stops = read_json(path).get("eos_token_id")
    except ValueError as error:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED, f"the generation_config.json of spec.baseModel cannot be read: {error}"
        ) from error
    listed = stops if isinstance(stops, list) else [stops]
    return [stop for stop in listed if isinstance(stop, int)]
