"""Caches the token ids of prefixes that rows share: the tools, usually the same in all rows, are most of the tokens.

Tokenizers first split text at added tokens, so the parts before and from an added token can be tokenised separately.
Every prefix is verified: its parts must give the same ids as the whole text. Otherwise the cache is disabled.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import tokenizers
from tokenizers import AddedToken

_KEPT = 512
_START, _END = itemgetter(0), itemgetter(1)
"""The start and end in a token's offsets."""


@dataclass(frozen=True)
class Tokens:
    """A tokenised text.

    Attributes:
        ids: the token ids of the whole text.
        offsets: the character offsets of the tokens after the cached prefix, counted from its end.
        skipped: the number of tokens of the cached prefix.
        cut: the number of characters of the cached prefix.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    skipped: int = 0
    cut: int = 0

    def between(self, start: int, end: int) -> tuple[int, int]:
        """Return the range of tokens, as start and exclusive end, for a range of characters."""
        return (
            self.skipped + bisect_right(self.offsets, start - self.cut, key=_END),
            self.skipped + bisect_left(self.offsets, end - self.cut, key=_START),
        )


class PrefixCache:
    """Tokenises texts, with a cache of prefixes.

    Args:
        backend: the tokenizer.
        added: its added tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, added: Iterable[AddedToken]) -> None:
        self._backend = backend
        # Other added tokens also affect or depend on the text around them.
        self._added = [
            token.content
            for token in added
            if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        ]
        self._marks: list[str] | None = None
        self._known: dict[str, list[int] | None] = {}

    def tokenise(self, texts: Sequence[str], own: Sequence[str]) -> list[Tokens]:
        """Tokenise texts.

        Args:
            texts: the rendered texts, including the beginning-of-text token.
            own: for each text, a part that other rows do not share, such as the first request.
        """
        cuts = [self._cut(text, first) for text, first in zip(texts, own, strict=True)]
        known = [self._known.get(text[:cut]) for text, cut in zip(texts, cuts, strict=True)]
        behind = [text if ids is None else text[cut:] for text, cut, ids in zip(texts, cuts, known, strict=True)]
        encoded = self._backend.encode_batch(behind, add_special_tokens=False)
        found = [
            Tokens(each.ids, each.offsets) if ids is None else Tokens(ids + each.ids, each.offsets, len(ids), cut)
            for each, cut, ids in zip(encoded, cuts, known, strict=True)
        ]
        for text, cut, tokens in zip(texts, cuts, found, strict=True):
            if cut and not tokens.cut:
                self._learn(text, cut, tokens)
        return found

    def _cut(self, text: str, own: str) -> int:
        """Return the start of the last added token before the row's own part, or 0."""
        if self._marks is None:
            self._marks = [token for token in self._added if token in text]
        at = text.find(own) if own else 0
        return max((text.rfind(mark, 0, at) for mark in self._marks), default=0) if at > 0 else 0

    def _learn(self, text: str, cut: int, whole: Tokens) -> None:
        """Cache a prefix on its second occurrence, if it can be tokenised separately."""
        beginning = text[:cut]
        if beginning not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[beginning] = None
        elif self._known[beginning] is None:
            parts = self._backend.encode_batch_fast([beginning, text[cut:]], add_special_tokens=False)
            if parts[0].ids + parts[1].ids == whole.ids:
                self._known[beginning] = parts[0].ids
            else:
                self._marks = []
