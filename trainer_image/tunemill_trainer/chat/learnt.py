"""A row as the model sees it, and what of it the loss is on: read off the token ids and labels that prepare writes."""

from dataclasses import dataclass

from tunemill_api.data import TokenizerMode

from tunemill_trainer.bases import catalogue
from tunemill_trainer.chat import templates, tokenizer
from tunemill_trainer.chat.check import folder_of
from tunemill_trainer.chat.encoding import Example
from tunemill_trainer.data.dataset import Features
from tunemill_trainer.data.findings import Problem
from tunemill_trainer.data.rows import Row


@dataclass(frozen=True)
class Part:
    """A stretch of the rendered text: the loss is on all of it, or on none."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    Attributes:
        examples: the training examples of the row, each in parts.
        tokens: of all examples.
        learnt_tokens: of these, tokens that the loss is on.
        problems: why it cannot be learnt from.
    """

    examples: tuple[tuple[Part, ...], ...]
    tokens: int
    learnt_tokens: int
    problems: tuple[Problem, ...]


class Renderer:
    """Renders rows with the template that prepare would choose.

    Args:
        base: a folder with a base model's tokenizer, or the model's id on the Hub.
        features: what occurs in all rows.

    Raises:
        StageError: the tokenizer cannot be loaded, or no template fits it.
    """

    def __init__(self, base: str, features: Features) -> None:
        folder = folder_of(base)
        self._speaker = tokenizer.load_base(folder)
        family = catalogue.family_in(folder, str(self._speaker.chat_template or ""))
        expected = family.calls if family else None
        self._choice, _ = templates.settle(self._speaker, TokenizerMode.AUTO, features, [], None, expected=expected)

    def __call__(self, row: Row) -> Rendered:
        """Return a row as text."""
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
        """Cut the rendered text where the first token of each learnt turn begins, and where its last one ends.

        Decoding the tokens of a turn by themselves would lose white space with some tokenizers.
        """
        offsets = self._speaker.backend_tokenizer.encode(text, add_special_tokens=False).offsets
        parts, at = [], 0
        for turn in example.turns:
            start, end = offsets[turn.start][0], offsets[turn.end - 1][1]
            parts += [Part(text[at:start], learnt=False), Part(text[start:end], learnt=True)]
            at = end
        return tuple(part for part in (*parts, Part(text[at:], learnt=False)) if part.text)
