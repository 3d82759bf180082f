"""Generates the replies of a model on all ranks, with progress reports. For the stages train and evaluate."""

import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from tunemill_trainer.chat.tokenizer import Tokenizer
from tunemill_trainer.judge.generate import Decoding, answer_limit, generate, usual_answer
from tunemill_trainer.judge.metrics import Reply
from tunemill_trainer.learn.micro_batches import deal
from tunemill_trainer.prepared import Tokens
from tunemill_trainer.process import tracing
from tunemill_trainer.stages.context import StageContext


class ReplyProgress:
    """Reports the number of generated replies of all models together.

    Args:
        context: of the stage.
        total: the number of replies.
    """

    def __init__(self, context: StageContext, total: int) -> None:
        self.ranks = context.ranks
        self.check_stop = context.stop.check
        self.memory_kills = context.run.memory_kills
        self._progress = context.progress
        self._total = total
        self._before = 0
        self._started = time.monotonic()

    def replied(self, count: int) -> None:
        """Report that the current model has generated `count` replies."""
        done = self._before + count
        left = (time.monotonic() - self._started) / done * (self._total - done)
        self._progress.report(100 * done / self._total, left, {"replies": done, "total_replies": self._total})

    def of_rank(self, prompts: int) -> Callable[[int], None]:
        """Return a function that gets the number of cases that this rank has done, of `prompts` cases of all ranks."""

        def on_progress(count: int) -> None:
            # The other ranks are about as far as this one.
            self.replied(min(prompts, count * self.ranks.count))

        return on_progress

    def next_model(self, count: int) -> None:
        """Continue with another model after `count` replies of the current one."""
        self._before += count


def decoding_of(answers: Sequence[int], tokens: Tokens, memory_kills: int, max_new_tokens: int = 0) -> Decoding:
    """Return the settings of generation.

    Args:
        answers: the number of tokens of each expected answer. The longest one limits the replies.
        tokens: the vocabulary of the model.
        memory_kills: number of earlier pods that exceeded their memory limit. Each halves the memory of a batch.
        max_new_tokens: the most tokens of a reply; 0 for a limit from the expected answers.
    """
    limit = max_new_tokens or answer_limit(answers)
    usual = min(limit, usual_answer(answers))
    return Decoding(tokens.stop_token_ids, tokens.pad_token_id, limit, usual, 0.5**memory_kills)


@tracing.step("generate")
def reply_ids(
    model: Any,  # noqa: ANN401 - transformers ships no types
    prompts: Sequence[Sequence[int]],
    settings: Decoding,
    progress: ReplyProgress,
) -> list[list[int]]:
    """Return the token ids of the reply to each prompt, including the stop token, if any."""
    dealt = deal([len(prompt) for prompt in prompts], progress.ranks.count)
    mine = dealt[progress.ranks.index]
    own = [prompts[at] for at in mine]
    on_progress = progress.of_rank(len(prompts))
    generated = generate(model, own, settings, check_stop=progress.check_stop, on_progress=on_progress)
    of_all = dict(zip((at for share in dealt for at in share), chain(*progress.ranks.gather(generated)), strict=True))
    progress.next_model(len(prompts))
    return [of_all[at] for at in range(len(prompts))]


def as_replies(tokenizer: Tokenizer, sequences: Sequence[Sequence[int]], settings: Decoding) -> list[Reply]:
    """Return replies as texts without their stop token."""
    finished = [ids[-1] in settings.stop_token_ids for ids in sequences]
    without_stop = [ids[:-1] if ended else ids for ids, ended in zip(sequences, finished, strict=True)]
    return [Reply(text, ended) for text, ended in zip(texts(tokenizer, without_stop), finished, strict=True)]


def texts(tokenizer: Tokenizer, sequences: Sequence[Sequence[int]]) -> list[str]:
    """Return token ids as texts."""
    # Keep special tokens, as vLLM does for requests with tools: some models mark calls with them.
    ids = [list(sequence) for sequence in sequences]
    return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
