"""Lets a model answer many prompts: greedily, in batches, and with the same answers as one by one.

Batches are padded on the left, so that all prompts end, and all answers begin, at the same place. In 32-bit floats the
answers are those of single prompts (a test holds that); in 16 bits the rounding of a batch may decide between two words
that are equally good.

A batch is as large as memory allows for prompts with usual answers. It is answered in spans of a few tokens. After
each, rows that have ended leave it, and rows for which memory is no longer enough wait for another batch, with what
they have said so far. So neither one long answer nor the limit of all answers makes every batch small.
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
"""Tokens that are generated between two looks at who has ended. A row that ended waits for half as many, and what
Transformers does before the first token of a span takes a few milliseconds."""
_SHARE = 0.8
"""Of the free memory, what a batch may take; the rest is for what is not counted, and for the gaps between tensors."""
_FEW = 8
"""Rows that a batch may have whatever their lengths."""
_CPU_BYTES = 1 << 30
"""What a batch may take on a CPU, which gains nothing from larger batches."""


@dataclass(frozen=True)
class Decoding:
    """How replies are made; the same for every model that is compared.

    Attributes:
        stop_token_ids: a reply ends with any of these.
        pad_token_id: fills a batch.
        max_new_tokens: that a reply may have.
        usual_new_tokens: for how many tokens of a reply a batch has room from the start; 0 for as many as it may have.
        share: of the memory that may be used otherwise.
    """

    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int
    usual_new_tokens: int = 0
    share: float = 1.0


def answer_limit(answer_tokens: Sequence[int]) -> int:
    """Return how many tokens a reply may have: half more than the longest answer of the data, and 32 more at least.

    The room is also for a base model that has no token of its own for a tag and spells it in five.
    """
    longest = max(answer_tokens)
    return longest + max(32, longest // 2)


def usual_answer(answer_tokens: Sequence[int]) -> int:
    """Return the limit that nine of ten answers of the data would ask for; what is longer than that is rare."""
    at = -(-9 * len(answer_tokens) // 10) - 1
    return answer_limit([sorted(answer_tokens)[at]])


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can be allocated on a device; on a CPU, which the pod shares, a fixed number."""
    import torch

    if device.type != "cuda":
        return _CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch holds without using it is free, too.
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


@dataclass
class _Row:
    """A prompt, and what has been said to it.

    Attributes:
        index: among all prompts.
        prompt: token ids.
        answer: token ids.
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
    """Return the token ids of one reply a prompt, with the stop token where there was one.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids, at least one each.
        decoding: how replies are made.
        check_stop: called after every token; what it raises ends the generation.
        on_progress: called with the number of prompts that are answered, when it has grown.
        free: returns the bytes that can be allocated on a device.

    Raises:
        RuntimeError: what PyTorch and its libraries raise when one prompt alone does not fit.
    """
    from transformers import GenerationConfig

    from tunemill_trainer.learn.out_of_memory import Shortage, attempt

    # The model's own generation_config.json must not speak here: Qwen's asks for sampling and a repetition penalty.
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
            _log.info("%d prompts did not fit into memory at once: all that are left are cut anew", len(batch))
        waiting += [row for row in batch if not _has_ended(row, decoding)]
    return [row.answer for row in rows]


def _next_batch(waiting: list[_Row], room: int, size: CacheSize, decoding: Decoding) -> tuple[list[_Row], list[_Row]]:
    """Return the rows that are answered next, the longest first, which shows at once what does not fit; and the others.

    Args:
        waiting: rows that have not ended, at least one.
        room: bytes that the batch may take.
        size: what a row needs.
        decoding: how replies are made.
    """
    ordered = sorted(waiting, key=lambda row: (-row.length, row.index))
    longest, usual = ordered[0].length, decoding.usual_new_tokens or decoding.max_new_tokens
    to_come, count = 0, 0
    for row in ordered:
        to_come = max(to_come, SPAN, usual - len(row.answer))
        fits = (count + 1) * size.row(longest, longest + to_come) <= room
        # Reading padding costs as much as reading a prompt.
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
    """Go on with the answers of all rows of a batch, until each has ended or left for lack of room."""
    import torch

    def watch(input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
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
                stopping_criteria=[watch],
            )
        new = output.sequences[:, ids.shape[1] :]
        for row, said in zip(rows, new.tolist(), strict=True):
            row.answer += _up_to_stop(said, decoding)[: decoding.max_new_tokens - len(row.answer)]
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
            cache = None  # what was said is read again


def _has_ended(row: _Row, decoding: Decoding) -> bool:
    said = row.answer
    return len(said) >= decoding.max_new_tokens or bool(said and said[-1] in decoding.stop_token_ids)


def _up_to_stop(ids: list[int], decoding: Decoding) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in decoding.stop_token_ids), len(ids) - 1)
    return ids[: end + 1]
