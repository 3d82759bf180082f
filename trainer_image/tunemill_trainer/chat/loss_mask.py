"""Renders a row as the model sees it, and marks the parts that the loss includes, from the token ids and labels."""

from dataclasses import dataclass
from typing import Self

from tunemill_api.data import TokenizerMode

from tunemill_trainer.chat import templates
from tunemill_trainer.chat.check import folder_of
from tunemill_trainer.chat.encoding import Encoded
from tunemill_trainer.chat.tokenizer import Tokenizer, load_base
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.findings import Problem
from tunemill_trainer.data.rows import Row
from tunemill_trainer.prepared import IGNORED


@dataclass(frozen=True)
class Part:
    """A part of the rendered text that the loss includes as a whole, or not at all."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Rendered:
    """A row as rendered text. If it has `problems`, it cannot be trained on."""

    parts: tuple[Part, ...]
    tokens: int
    learnt_tokens: int
    problems: tuple[Problem, ...]


class Renderer:
    """Renders rows with the template that prepare would choose.

    Args:
        base_tokenizer: the tokenizer of the base model; changed.
        features: the features of all rows.

    Raises:
        StageError: no chat template works with the tokenizer.
    """

    def __init__(self, base_tokenizer: Tokenizer, features: Features) -> None:
        self._tokenizer = base_tokenizer
        self._choice, _ = templates.choose_and_extend(base_tokenizer, TokenizerMode.AUTO, features, [], None)
        self._fallback = templates.Fallback(self._choice, base_tokenizer, features)
        self._features = features

    @classmethod
    def load(cls, base: str, features: Features) -> Self:
        """Return a renderer for a base model.

        Args:
            base: a folder with a base model's tokenizer, or the model's id on the Hub, from which it is downloaded.
            features: the features of all rows.

        Raises:
            StageError: the tokenizer cannot be loaded, or no chat template works with it.
        """
        return cls(load_base(folder_of(base)), features)

    def __call__(self, row: Row) -> Rendered:
        """Render a row."""
        encoded = self._choice.encoder.encode([row])[0]
        if encoded.problem is not None and self._fallback.supports(row, encoded.problem):
            # As prepare does, start over with Tunemill's template.
            self._choice = templates.tunemill_template(self._tokenizer, self._features, "")
            encoded = self._choice.encoder.encode([row])[0]
        labels = encoded.labels(everything=False)
        return Rendered(
            self._parts(row, encoded) if labels else (),
            len(labels),
            len(labels) - labels.count(IGNORED),
            () if encoded.problem is None else (encoded.problem,),
        )

    def _parts(self, row: Row, encoded: Encoded) -> tuple[Part, ...]:
        """Split the rendered text at the start and end of each trained turn, by the offsets of its tokens.

        Decoding only the tokens of a turn would lose white space with some tokenizers.
        """
        text, _ = self._choice.encoder.template.conversation(row.messages, row.tools)
        offsets = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
        parts, at = [], 0
        for turn in encoded.turns:
            start, end = offsets[turn.start][0], offsets[turn.end - 1][1]
            parts += [Part(text[at:start], learnt=False), Part(text[start:end], learnt=True)]
            at = end
        return tuple(part for part in (*parts, Part(text[at:], learnt=False)) if part.text)
