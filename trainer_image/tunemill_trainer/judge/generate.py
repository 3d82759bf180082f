"""Lets a model answer many prompts: greedily, in batches, and with the same answers as one by one.

Batches are padded on the left, so that all prompts end, and all answers begin, at the same place. In 32-bit floats the
answers are those of single prompts (a test holds that); in 16 bits the rounding of a batch may decide between two words
that are equally good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

BATCH_TOKENS = 32_768
"""Prompt and answer tokens of a batch, padding included: 3.3 GiB of key-value cache for Gemma-2-2B in 16 bits (104 KiB
a token). A batch that does not fit all the same is halved."""


@dataclass(frozen=True)
class Decoding:
    """How replies are made; the same for every model that is compared."""

    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int
    batch_tokens: int = BATCH_TOKENS


def answer_limit(answer_tokens: Sequence[int]) -> int:
    """Return how many tokens a reply may have: half more than the longest answer of the data, and 32 more at least.

    The room is also for a base model that has no token of its own for a tag and spells it in five.
    """
    longest = max(answer_tokens)
    return longest + max(32, longest // 2)


def generate(
    model: Any,  # noqa: ANN401 - transformers ships no types
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    check_stop: Callable[[], None],
    on_progress: Callable[[int], None],
) -> list[list[int]]:
    """Return the token ids of one reply a prompt, with the stop token where there was one.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids, at least one each.
        decoding: how replies are made.
        check_stop: called after every token; what it raises ends the generation.
        on_progress: called with the number of prompts that are answered, after every batch.

    Raises:
        RuntimeError: one prompt alone does not fit; `out_of_memory.is_out_of_memory` tells.
    """
    from transformers import GenerationConfig

    # The model's own generation_config.json must not speak here: Qwen's asks for sampling and a repetition penalty.
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=list(decoding.stop_token_ids),
        pad_token_id=decoding.pad_token_id,
    )
    replies: list[list[int]] = [[] for _ in prompts]
    done = 0
    waiting = _batches([len(prompt) for prompt in prompts], decoding)
    while waiting:
        batch = waiting.pop()
        answers = _try(model, [prompts[i] for i in batch], decoding, check_stop)
        if answers is None:
            half = len(batch) // 2
            _log.info("a batch of %d prompts did not fit into the GPU's memory: halved", len(batch))
            waiting += [batch[half:], batch[:half]]
            continue
        for i, answer in zip(batch, answers, strict=True):
            replies[i] = answer
        done += len(batch)
        on_progress(done)
    return replies


def _batches(lengths: Sequence[int], decoding: Decoding) -> list[list[int]]:
    """Return the prompts' indices in batches of similar length, the longest last, which is the first to be taken."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        tokens = (len(batches[-1]) + 1) * (lengths[i] + decoding.max_new_tokens)
        if batches[-1] and tokens > decoding.batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return [batch for batch in batches if batch]


def _try(
    model: Any,  # noqa: ANN401
    prompts: list[Sequence[int]],
    decoding: Decoding,
    check_stop: Callable[[], None],
) -> list[list[int]] | None:
    """Return the replies to one batch; None when it did not fit into the GPU's memory and can be halved."""
    from tunemill_trainer.learn.out_of_memory import Shortage, attempt

    if len(prompts) == 1:
        return _answer(model, prompts, decoding, check_stop)
    answers = attempt(partial(_answer, model, prompts, decoding, check_stop))
    return None if isinstance(answers, Shortage) else answers


def _answer(
    model: Any,  # noqa: ANN401
    prompts: list[Sequence[int]],
    decoding: Decoding,
    check_stop: Callable[[], None],
) -> list[list[int]]:
    import torch

    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    ids = [[decoding.pad_token_id] * gap + list(prompt) for gap, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in padding]

    def never_stop(input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        check_stop()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    with torch.inference_mode():
        sequences = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            stopping_criteria=[never_stop],
        )
    stops = set(decoding.stop_token_ids)
    return [_up_to_stop(sequence[longest:].tolist(), stops) for sequence in sequences]


def _up_to_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]
