"""Tokenises what many rows begin with only once: the tools, which are the same for all, are most of their tokens.

Tokenizers split a text at added tokens before they do anything else, so what stands before one and what begins with it
can be tokenised apart. That is not taken on trust: it is compared with the whole text for every beginning, and given up
for good when it is not so.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import tokenizers
from tokenizers import AddedToken

_KEPT = 512
_START, _END = itemgetter(0), itemgetter(1)
"""Of a token's offsets: its first character, and the one after its last."""


@dataclass(frozen=True)
class Tokens:
    """A text as tokens; offsets are those behind the beginning.

    Attributes:
        ids: of the whole text.
        offsets: of the tokens behind the beginning, counted from its end.
        skipped: tokens of the beginning.
        cut: its characters.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    skipped: int = 0
    cut: int = 0

    def between(self, start: int, end: int) -> tuple[int, int]:
        """Return the first token, and the one after the last, of the characters from start to end."""
        return (
            self.skipped + bisect_right(self.offsets, start - self.cut, key=_END),
            self.skipped + bisect_left(self.offsets, end - self.cut, key=_START),
        )


class Beginnings:
    """Tokenises texts.

    Args:
        backend: the tokenizer.
        added: its added tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, added: Iterable[AddedToken]) -> None:
        self._backend = backend
        # The others take part in what stands beside them.
        self._added = [
            token.content
            for token in added
            if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        ]
        self._marks: list[str] | None = None
        self._known: dict[str, list[int] | None] = {}

    def tokenise(self, texts: Sequence[str], own: Sequence[str]) -> list[Tokens]:
        """Return texts as tokens.

        Args:
            texts: as the template renders them, with their beginning-of-text token.
            own: for each, a text in it that is not shared, such as the first request.
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
        """Return where the last added token before the row's own text begins; 0 when there is none."""
        if self._marks is None:
            self._marks = [token for token in self._added if token in text]
        at = text.find(own) if own else 0
        return max((text.rfind(mark, 0, at) for mark in self._marks), default=0) if at > 0 else 0

    def _learn(self, text: str, cut: int, whole: Tokens) -> None:
        """Remember a beginning that comes for the second time, if it can be tokenised apart."""
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
