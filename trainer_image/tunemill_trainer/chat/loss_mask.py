"""Renders a row as the model sees it, and marks the parts that the loss includes, from the token ids and labels."""

from dataclasses import dataclass
from typing import Self

from tunemill_trainer.chat.check import choose_template
from tunemill_trainer.chat.encoding import Example
from tunemill_trainer.chat.templates import Choice
from tunemill_trainer.chat.tokenizer import Tokenizer
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.findings import Problem
from tunemill_trainer.data.rows import Row


@dataclass(frozen=True)
class Part:
    """A part of the rendered text that the loss includes as a whole, or not at all."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Rendered:
    """A row as rendered text.

    Attributes:
        examples: the training examples of the row, each as parts.
        tokens: the number of tokens in all examples.
        learnt_tokens: the number of these tokens that the loss includes.
        problems: why the row cannot be trained on; empty if it can.
    """

    examples: tuple[tuple[Part, ...], ...]
    tokens: int
    learnt_tokens: int
    problems: tuple[Problem, ...]


class Renderer:
    """Renders rows with the template that prepare would choose.

    Args:
        base_tokenizer: the tokenizer of the base model.
        choice: the chat template.
    """

    def __init__(self, base_tokenizer: Tokenizer, choice: Choice) -> None:
        self._tokenizer = base_tokenizer
        self._choice = choice

    @classmethod
    def load(cls, base: str, features: Features) -> Self:
        """Return a renderer for a base model; see `choose_template`."""
        return cls(*choose_template(base, features))

    def __call__(self, row: Row) -> Rendered:
        """Render a row."""
        encoded = self._choice.encoder.encode([row])[0]
        texts = self._choice.encoder.template.examples(row.messages, row.tools) if encoded.examples else []
        return Rendered(
            tuple(
                self._parts(rendered.text, example) for rendered, example in zip(texts, encoded.examples, strict=True)
            ),
            sum(len(example.input_ids) for example in encoded.examples),
            sum(len(ids) for _, ids in encoded.turns),
            () if encoded.problem is None else (encoded.problem,),
        )

    def _parts(self, text: str, example: Example) -> tuple[Part, ...]:
        """Split the rendered text at the start and end of each trained turn, by the offsets of its tokens.

        Decoding only the tokens of a turn would lose white space with some tokenizers.
        """
        offsets = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).offsets
        parts, at = [], 0
        for turn in example.turns:
            start, end = offsets[turn.start][0], offsets[turn.end - 1][1]
            parts += [Part(text[at:start], learnt=False), Part(text[start:end], learnt=True)]
            at = end
        return tuple(part for part in (*parts, Part(text[at:], learnt=False)) if part.text)
