"""The vocabulary of a tokenizer.json as llama.cpp reads it from a GGUF file.

llama.cpp has two tokenizers for it: SentencePiece's (`llama`, with a score for each piece) and byte-level BPE (`gpt2`,
with merges and the name of the regular expression that splits a text first). The name is found by the expression
itself. llama.cpp's own converter knows tokenizers by a digest of what they make of a text, and needs the
tokenizer.model that a release does not have.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from tunemill_trainer.release.gguf_architecture import NotConvertibleError

_SPACE = "▁"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_TEKKEN = rf"{_WORDS[0]}|{_WORDS[1]}|\p{{N}}|{_SLASHED}"
_GPT_4O = rf"{_WORDS[0]}{_CONTRACTIONS}?|{_WORDS[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SLASHED}"

# With ignore_merges, a word that is a token stays one, whatever the merges make of it.
_SPLITS = {
    (_QWEN2, False): "qwen2",
    (_LLAMA3, False): "dbrx",
    (_LLAMA3, True): "llama-bpe",
    (_TEKKEN, True): "tekken",
    (_GPT_4O, False): "gpt-4o",
}
"""llama.cpp's name of a pre-tokenizer by its regular expression and by ignore_merges."""


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a GGUF file.

    Attributes:
        model: llama.cpp's name of the tokenizer: llama or gpt2.
        pre: llama.cpp's name of the pre-tokenizer.
        tokens: the text of each token; its index is its id.
        types: the type of each token.
        scores: of each token; empty with gpt2.
        merges: of two tokens, separated by a space; empty with llama.
        space_prefix: whether a text begins with a space that is added.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float]
    merges: list[str]
    space_prefix: bool = False

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the vocabulary."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        writer.add_add_space_prefix(self.space_prefix)


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """Read tokenizer.json.

    Args:
        folder: the folder of the tokenizer.
        rows: of the model's embeddings: tokens above the vocabulary's are unused.

    Raises:
        NotConvertibleError: for a tokenizer of which llama.cpp would make other tokens.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    if model.get("type", "BPE") != "BPE":
        raise NotConvertibleError(f"its tokenizer is {model['type']}, and llama.cpp's tokenizers are BPE")
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [TokenType.UNUSED] * rows
    sentencepiece = bool(model.get("byte_fallback"))
    for text, number in model["vocab"].items():
        if number >= rows:
            raise NotConvertibleError(f"its tokenizer has the id {number}, and its embeddings have {rows} rows")
        tokens[number] = text
        types[number] = _type(text, model) if sentencepiece else TokenType.NORMAL
    for token in content.get("added_tokens", []):
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise NotConvertibleError(
                f"its token {token['content']} takes spaces away or needs spaces around it, which GGUF cannot express"
            )
        if token["id"] >= rows:
            raise NotConvertibleError(f"its tokenizer has the id {token['id']}, and its embeddings have {rows} rows")
        tokens[token["id"]] = token["content"].replace(_SPACE, " ") if sentencepiece else token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    merges = [_pair(merge) for merge in model["merges"]]
    if sentencepiece:
        return Vocabulary(
            "llama", "default", tokens, types, _scores(tokens, merges), [], space_prefix=_space_prefix(content)
        )
    return Vocabulary("gpt2", _pre_tokenizer(content), tokens, types, [], [f"{one} {two}" for one, two in merges])


def _type(text: str, model: dict[str, Any]) -> TokenType:
    if text == model.get("unk_token"):
        return TokenType.UNKNOWN
    is_byte = len(text) == len("<0x00>") and text.startswith("<0x") and text.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _pair(merge: list[str] | str) -> tuple[str, str]:
    one, two = merge.split(" ") if isinstance(merge, str) else merge
    return one, two


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """Return SentencePiece's score of each piece: an earlier merge makes a piece with a higher one.

    Pieces that no merge makes, such as single characters, are never chosen over another. SentencePiece gives the merges
    of one piece the same score; a tokenizer.json that was converted from it has them together.
    """
    first: dict[str, int] = {}
    for rank, (one, two) in enumerate(merges):
        first.setdefault(one + two, rank)
    return [-float(first.get(text, len(merges))) for text in tokens]


def _space_prefix(content: dict[str, Any]) -> bool:
    """Return whether a text begins with a space that is added; refuse other ways to treat spaces."""
    steps, splits = (
        _parts(content.get("normalizer"), "normalizers"),
        _parts(content.get("pre_tokenizer"), "pretokenizers"),
    )
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepends = {"type": "Prepend", "prepend": _SPACE}
    between_words = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if steps in ([replaces], [prepends, replaces]) and splits in ([], [between_words]):
        return prepends in steps
    raise NotConvertibleError("its tokenizer treats spaces in a way that llama.cpp does not know")


def _pre_tokenizer(content: dict[str, Any]) -> str:
    """Return llama.cpp's name for the way in which a byte-level tokenizer splits a text."""
    if [step["type"] for step in _parts(content.get("normalizer"), "normalizers")] not in ([], ["NFC"]):
        raise NotConvertibleError("its tokenizer changes the text before it splits it, which llama.cpp does not do")
    splits = _parts(content.get("pre_tokenizer"), "pretokenizers")
    if not splits or splits[-1]["type"] != "ByteLevel" or splits[-1].get("add_prefix_space"):
        raise NotConvertibleError("its tokenizer is neither SentencePiece nor byte-level BPE")
    *before, bytes_ = splits
    found: str | None = None
    if bytes_.get("use_regex", True):
        if not before:
            found = "gpt-2"
        elif before == [{"type": "Digits", "individual_digits": True}]:
            found = "smollm"
    elif len(before) == 1 and before[0]["type"] == "Split" and before[0]["behavior"] == "Isolated":
        expression = before[0]["pattern"].get("Regex", "")
        found = _SPLITS.get((expression, bool(content["model"].get("ignore_merges"))))
    if found is None:
        raise NotConvertibleError("its tokenizer splits a text in a way that llama.cpp does not know")
    return found


def _parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, one after the other."""
    if step is None:
        return []
    return list(step[name]) if step["type"] == "Sequence" else [step]
