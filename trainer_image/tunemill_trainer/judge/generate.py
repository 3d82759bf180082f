"""Generates replies to many prompts in batches, with greedy decoding. The replies do not depend on the batch.

Batches are padded on the left, so that all replies start at the same position. In float32, the replies equal those of
single prompts (a test verifies this). In 16-bit types, rounding may decide between two equally likely tokens.

The batch size is as large as memory allows for replies of usual length. Replies are generated in spans of a few tokens.
After each span, finished rows leave the batch, and rows that no longer fit into memory are moved to a later batch with
their tokens so far. So neither one long reply nor the token limit makes every batch small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tunemill_trainer.judge.cache_size import CacheSize, cache_size

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

SPAN = 32
"""Tokens that are generated before finished rows are removed. On average, a finished row stays for half as many. Each
span costs a few milliseconds in Transformers."""
_SHARE = 0.8
"""The share of free memory that a batch can use. The rest is for memory not in the estimate, and for fragmentation."""
_FEW = 8
"""The number of rows up to which a batch may mix prompts of any length."""
_CPU_BYTES = 1 << 30
"""The most memory for a batch on a CPU, where larger batches are not faster."""


@dataclass(frozen=True)
class Decoding:
    """The generation settings, the same for all compared models.

    Attributes:
        stop_token_ids: the tokens that end a reply.
        pad_token_id: the padding token.
        max_new_tokens: the most tokens of a reply.
        usual_new_tokens: the reply length for which a batch reserves memory at the start; 0 for max_new_tokens.
        share: a factor for the memory that a batch can use.
    """

    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int
    usual_new_tokens: int = 0
    share: float = 1.0


def answer_limit(answer_tokens: Sequence[int]) -> int:
    """Return the token limit of a reply: the longest expected reply plus half its length, but at least plus 32.

    The margin is also for base models that need five tokens for a tag, because their vocabulary lacks it.
    """
    longest = max(answer_tokens)
    return longest + max(32, longest // 2)


def usual_answer(answer_tokens: Sequence[int]) -> int:
    """Return the token limit for the 90th percentile of the expected replies; few replies are longer."""
    at = -(-9 * len(answer_tokens) // 10) - 1
    return answer_limit([sorted(answer_tokens)[at]])


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can be allocated on a device; a fixed number for a CPU, whose memory the pod shares."""
    import torch

    if device.type != "cuda":
        return _CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    # Memory that PyTorch's allocator has cached is free, too.
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


@dataclass
class _Row:
    """A prompt and its reply so far.

    Attributes:
        index: the index among all prompts.
        prompt: the token ids of the prompt.
        answer: the token ids of the reply.
    """

    index: int
    prompt: Sequence[int]
    answer: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.answer]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


def generate(
    model: Any,  # noqa: ANN401 - transformers ships no types
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    check_stop: Callable[[], None],
    on_progress: Callable[[int], None],
    free: Callable[[torch.device], int] = free_bytes,
) -> list[list[int]]:
    """Return the token ids of one reply per prompt, including the stop token, if any.

    Args:
        model: a causal language model in evaluation mode.
        prompts: the token ids of each prompt, at least one each.
        decoding: the generation settings.
        check_stop: called after every token. It may raise to stop.
        on_progress: called with the number of finished replies when it has grown.
        free: returns the bytes that can be allocated on a device.

    Raises:
        RuntimeError: raised by PyTorch or its libraries if a single prompt does not fit into memory.
    """
    from transformers import GenerationConfig

    from tunemill_trainer.learn.out_of_memory import Shortage, attempt

    # Override the model's generation_config.json: Qwen's sets sampling and a repetition penalty.
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(decoding.stop_token_ids), pad_token_id=decoding.pad_token_id
    )
    size, share = cache_size(model), decoding.share * _SHARE
    rows = [_Row(index, prompt) for index, prompt in enumerate(prompts)]
    waiting = list(rows)

    def on_ended() -> None:
        on_progress(sum(_has_ended(row, decoding) for row in rows))

    while waiting:
        room = int(share * free(model.device))
        batch, waiting = _next_batch(waiting, room, size, decoding)
        answer = partial(_answer, model, batch, room, size, decoding, check_stop, on_ended)
        if len(batch) == 1:
            answer()
        elif isinstance(attempt(answer), Shortage):
            share /= 2
            _log.info("A batch of %d prompts did not fit into memory; continuing with smaller batches", len(batch))
        waiting += [row for row in batch if not _has_ended(row, decoding)]
    return [row.answer for row in rows]


def _next_batch(waiting: list[_Row], room: int, size: CacheSize, decoding: Decoding) -> tuple[list[_Row], list[_Row]]:
    """Return the rows of the next batch, and the others. The longest come first, so that memory errors show early.

    Args:
        waiting: the unfinished rows, at least one.
        room: the bytes that the batch can use.
        size: the memory per row.
        decoding: the generation settings.
    """
    ordered = sorted(waiting, key=lambda row: (-row.length, row.index))
    longest, usual = ordered[0].length, decoding.usual_new_tokens or decoding.max_new_tokens
    to_come, count = 0, 0
    for row in ordered:
        to_come = max(to_come, SPAN, usual - len(row.answer))
        fits = (count + 1) * size.row(longest, longest + to_come) <= room
        # Padding costs as much as prompt tokens.
        alike = 2 * row.length >= longest or count < _FEW
        if count and not (fits and alike):
            break
        count += 1
    return ordered[:count], ordered[count:]


def _answer(
    model: Any,  # noqa: ANN401
    batch: Sequence[_Row],
    room: int,
    size: CacheSize,
    decoding: Decoding,
    check_stop: Callable[[], None],
    on_ended: Callable[[], None],
) -> None:
    """Continue the replies of a batch until each row has finished, or was removed because of memory."""
    import torch

    def check_each_token(input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        check_stop()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    rows, cache = list(batch), None
    longest = max(row.length for row in rows)
    padding = [longest - row.length for row in rows]
    ids = torch.tensor(
        [[decoding.pad_token_id] * gap + row.ids for gap, row in zip(padding, rows, strict=True)], device=model.device
    )
    mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in padding], device=model.device)
    while rows:
        span = min(SPAN, max(decoding.max_new_tokens - len(row.answer) for row in rows))
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                max_new_tokens=span,
                return_dict_in_generate=True,
                stopping_criteria=[check_each_token],
            )
        new = output.sequences[:, ids.shape[1] :]
        for row, tokens in zip(rows, new.tolist(), strict=True):
            row.answer += _up_to_stop(tokens, decoding)[: decoding.max_new_tokens - len(row.answer)]
        ids, cache = output.sequences, output.past_key_values
        mask = torch.cat([mask, mask.new_ones(new.shape)], dim=1)
        going = [at for at, row in enumerate(rows) if not _has_ended(row, decoding)]
        if len(going) < len(rows):
            on_ended()
        fitting = max(1, room // size.row(0, ids.shape[1] + SPAN))
        kept = going[:fitting]
        if len(kept) == len(rows):
            continue
        rows, selected = [rows[at] for at in kept], torch.tensor(kept, dtype=torch.long, device=model.device)
        ids, mask = ids[selected], mask[selected]
        if hasattr(cache, "batch_select_indices"):
            cache.batch_select_indices(selected)
        else:
            cache = None  # the next span computes it again from all tokens


def _has_ended(row: _Row, decoding: Decoding) -> bool:
    answer = row.answer
    return len(answer) >= decoding.max_new_tokens or bool(answer and answer[-1] in decoding.stop_token_ids)


def _up_to_stop(ids: list[int], decoding: Decoding) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in decoding.stop_token_ids), len(ids) - 1)
    return ids[: end + 1]
