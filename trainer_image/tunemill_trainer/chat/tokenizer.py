"""The base model's tokenizer: loaded without torch, given the tags that it lacks, described for the later stages."""

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
"""What of a model's repository a tokenizer and its checks need, as patterns."""


_LARGEST_TOKENIZER = 96 << 20
"""Bytes; the largest that we know of have 35 MiB."""
_LARGEST_CONFIG = 8 << 20
_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")
"""What transformers reads beside tokenizer.json."""
_MOST_BYTES, _MOST_SECONDS = 3 << 30, 120
"""For loading a tokenizer and for one text. Usual are 600 MiB and 3 s for a vocabulary of 256,000 tokens."""
_SAMPLE = "".join(map(chr, range(32, 127))) * 20 + "\n\t äß日本語 🙂" * 50
"""What is tokenised once with limits: some normalizers turn every character into a megabyte."""


class Encoding(TypedDict):
    """What a tokenizer returns for a list of texts, one list of tokens a text."""

    input_ids: list[list[int]]


class Tokenizer(Protocol):
    """The part of transformers' fast tokenizer that prepare uses; transformers ships no types."""

    chat_template: str | dict[str, str] | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None
    added_tokens_decoder: dict[int, AddedToken]
    special_tokens_map: dict[str, str]
    backend_tokenizer: tokenizers.Tokenizer
    """What it wraps. Asked directly it is a third faster (509 and 370 microseconds for 308 tokens)."""

    def __call__(self, text: list[str], **options: bool) -> Encoding:
        """Tokenise."""

    def batch_decode(self, sequences: list[list[int]], **options: bool) -> list[str]:
        """Return the texts of token ids."""

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens with their ids."""

    def add_tokens(self, tokens: list[AddedToken]) -> int:
        """Add tokens and return how many are new."""

    def save_pretrained(self, folder: Path) -> object:
        """Write the tokenizer."""


@dataclass(frozen=True)
class Vocabulary:
    """What was done to the vocabulary.

    Attributes:
        mode: Reuse, Text or Extend.
        added: the new tokens.
    """

    mode: TokenizerMode
    added: tuple[NewToken, ...]

    def mode_for_tags(self, wish: TokenizerMode, auto: TokenizerMode) -> TokenizerMode:
        """Return the mode in which tags are treated, after the tokens that the user wants have been.

        Args:
            wish: spec.tokenizer.mode.
            auto: what Auto does about tags that are lacking, Text or Extend.
        """
        keeps = wish is TokenizerMode.AUTO and auto is TokenizerMode.TEXT
        # With the user's own tokens in it, the vocabulary is not the base model's any more.
        return TokenizerMode.TEXT if keeps and not self.added else wish

    def then(self, later: "Vocabulary") -> "Vocabulary":
        """Return what was done in two goes."""
        added = self.added + later.added
        return Vocabulary(TokenizerMode.EXTEND if added else later.mode, added)


def load(folder: Path) -> Tokenizer:
    """Load a tokenizer from its tokenizer.json.

    This class takes the file as it is. AutoTokenizer would rebuild some families from their vocabulary, and it imports
    torch, which takes longer than all of prepare.

    Raises:
        StageError: BaseModelUnsupported.
    """
    logging.set_verbosity_error()
    try:
        loaded = cast("Tokenizer", PreTrainedTokenizerFast.from_pretrained(folder))
    except Exception as error:  # tokenizers raises bare Exceptions for what it cannot read
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED, f"the tokenizer.json of spec.baseModel cannot be read: {error}"
        ) from error
    # Some repositories were saved with the settings of their own training.
    loaded.backend_tokenizer.no_truncation()
    loaded.backend_tokenizer.no_padding()
    return loaded


def load_base(folder: Path) -> Tokenizer:
    """Load the tokenizer of a base model, which may be anybody's: first with limits, in a child process.

    Its library is written in Rust. It ends the process that gives it no more memory, and a few kilobytes of
    tokenizer.json can ask for any amount, at loading or at the first text.

    Raises:
        StageError: BaseModelUnsupported.
    """
    for path in (folder / "tokenizer.json", *(folder / name for name in _CONFIGS), *folder.rglob("*.jinja")):
        most = _LARGEST_TOKENIZER if path.name == "tokenizer.json" else _LARGEST_CONFIG
        if path.exists() and path.stat().st_size > most:
            raise StageError(
                Reason.BASE_MODEL_UNSUPPORTED,
                f"expected {path.name} of spec.baseModel to have at most {most >> 20} MiB, found "
                f"{path.stat().st_size >> 20} MiB",
            )

    def use() -> None:
        load(folder).backend_tokenizer.encode(_SAMPLE)

    if problem := bounds.try_in_child(use, _MOST_BYTES, _MOST_SECONDS):
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED,
            problem if "spec.baseModel" in problem else f"the tokenizer.json of spec.baseModel {problem}",
        )
    return load(folder)


def read_json(path: Path) -> JsonObject:
    """Return the object in a small JSON file of the base model.

    Raises:
        ValueError: it is no such file, saying why.
    """
    if path.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(f"it has more than {_LARGEST_CONFIG >> 20} MiB")
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
    """Give the tokenizer the tags that it lacks, as far as the mode says so.

    What can be reused is decided by the tags that the assistant writes: each must be one token. The tags that it only
    reads, such as `<tools>`, serve as text where the base model knows them so.

    Args:
        tokenizer: of the base model; changed.
        mode: the wish; Auto means Extend where anything is lacking, else Reuse.
        features: what occurs in the rows.
        more: spec.tokenizer.addTokens.
        call_format: how the chat template writes calls. Only Hermes' tags may be lacking: a base model whose own
            template writes them in another way has what that needs.

    Raises:
        StageError: TokenizerLacksTags, with the mode Reuse; InvalidSpec, with the mode Text and tokens to add.
    """
    written = _pair("tool_call") * features.calls + _pair("think") * features.reasoning
    read = _pair("tools") * features.tools + _pair("tool_response") * features.responses
    if call_format is not ReplyFormat.HERMES:
        written, read = [], []
    lacking = [token for token in dict.fromkeys([*written, *more]) if not _is_one_token(tokenizer, token)]
    if not lacking and mode is not TokenizerMode.EXTEND:
        return Vocabulary(TokenizerMode.REUSE, ())
    if mode is TokenizerMode.TEXT:
        if asked := [token for token in more if token in lacking]:
            raise StageError(
                Reason.INVALID_SPEC,
                f"expected spec.tokenizer.addTokens empty with spec.tokenizer.mode Text, found {', '.join(asked)}: "
                "Text adds no tokens",
            )
        return Vocabulary(TokenizerMode.TEXT, ())
    if mode is TokenizerMode.REUSE:
        raise StageError(
            Reason.TOKENIZER_LACKS_TAGS,
            f"spec.tokenizer.mode is Reuse, and the base model's vocabulary has no {', '.join(lacking)}",
        )
    wanted = dict.fromkeys([*read, *written, *more])
    new = [token for token in wanted if not _is_one_token(tokenizer, token)]
    if not new:
        return Vocabulary(TokenizerMode.REUSE, ())
    pieces = tokenizer(new, add_special_tokens=False)["input_ids"]
    # Not special: a special token would vanish from every decoded reply. Not normalized: found as it is in any text.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in new])
    ids = tokenizer.get_vocab()
    added = (NewToken(ids[token], token, tuple(before)) for token, before in zip(new, pieces, strict=True))
    return Vocabulary(TokenizerMode.EXTEND, tuple(added))


def describe(
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    ends_of_turns: tuple[int, ...],
    base: Path,
    call_format: ReplyFormat = ReplyFormat.HERMES,
) -> Tokens:
    """Return what the later stages must know; gives the tokenizer a padding token if it has none.

    Args:
        tokenizer: after prepare_vocabulary.
        vocabulary: what that returned.
        ends_of_turns: the tokens that end an assistant's turn.
        base: the folder of the base model's files, for generation_config.json.
        call_format: how the chat template writes calls.
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


def _pair(tag: str) -> list[str]:
    return [f"<{tag}>", f"</{tag}>"]


def _is_one_token(tokenizer: Tokenizer, token: str) -> bool:
    # Being in the vocabulary is not enough: a plain entry may never be reached by the merges.
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
