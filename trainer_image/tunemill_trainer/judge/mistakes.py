"""Finds the mistakes of a trained model on its training rows, as pairs of an expected answer and a wrong one."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

from tunemill_trainer.data.rows import Message, Role, Tool
from tunemill_trainer.judge.metrics import Reply, score
from tunemill_trainer.judge.parse import ReplyFormat, parse_reply
from tunemill_trainer.prepared import IGNORED


@dataclass(frozen=True)
class Pair:
    """A prompt with an expected answer and a wrong one, as token ids. Both answers include the stop token, if any."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def longer(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    def to_json(self) -> dict[str, list[int]]:
        """Return the pair with the column names that TRL's DPOTrainer uses."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, list[int]]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**value)


@dataclass(frozen=True)
class TrainedTurn:
    """An assistant turn of a training row, as a question. Only its tokens are known: it has no messages and no tools.

    Attributes:
        id: row number#turn, for messages.
        prompt_ids: the tokens before the turn.
        answer_ids: the tokens of the turn.
        gold: the calls of the turn.
    """

    id: str
    prompt_ids: list[int]
    answer_ids: list[int]
    gold: Message
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()


def trained_turns(
    rows: Sequence[Mapping[str, Sequence[int]]],
    text_of: Callable[[Sequence[int]], str],
    reply_format: ReplyFormat,
    *,
    limit: int,
    seed: int,
) -> list[TrainedTurn]:
    """Return a random sample of the supervised turns of training rows.

    Turns whose calls cannot be parsed are left out, because replies could not be compared with them.

    Args:
        rows: have input_ids and labels. Each run of supervised tokens is a turn.
        text_of: decodes the tokens of a turn, without its stop token.
        reply_format: the call format.
        limit: the maximum number of turns.
        seed: of the sample.
    """
    found: list[TrainedTurn] = []
    for index in random.Random(f"{seed}/mistakes").sample(range(len(rows)), len(rows)):  # noqa: S311 - no secret
        row = rows[index]
        for start, end in _supervised_runs(row["labels"]):
            ids = list(row["input_ids"][:end])
            parsed = parse_reply(text_of(ids[start:]), reply_format)
            if start == 0 or parsed.error:
                continue
            gold = Message(Role.ASSISTANT, "", calls=parsed.calls)
            found.append(TrainedTurn(f"{index}#{start}", ids[:start], ids[start:], gold))
            if len(found) == limit:
                return found
    return found


def mistakes(
    turns: Sequence[TrainedTurn],
    answers: Sequence[Sequence[int]],
    replies: Sequence[Reply],
    reply_format: ReplyFormat,
    max_length: int,
) -> list[Pair]:
    """Return a pair for each wrong answer: the calls are no AST match, or there is a call where none is expected.

    An answer with equivalent arguments is not wrong. Answers that make a row longer than `max_length` tokens are left
    out.

    Args:
        turns: the turns.
        answers: the token ids of the model's answers, one for each turn.
        replies: the same as text.
        reply_format: the call format.
        max_length: the maximum number of tokens of prompt and answer.
    """
    verdicts = score(turns, replies, reply_format).verdicts
    wrong = [
        Pair(turn.prompt_ids, turn.answer_ids, list(answer))
        for turn, answer, verdict in zip(turns, answers, verdicts, strict=True)
        if not verdict.ast
    ]
    return [pair for pair in wrong if pair.longer <= max_length]


def _supervised_runs(labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of supervised tokens."""
    start = None
    for at, label in enumerate([*labels, IGNORED]):
        if label != IGNORED and start is None:
            start = at
        elif label == IGNORED and start is not None:
            yield start, at
            start = None
