"""Batched generation gives the same replies as single generation, but faster."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from learn.training import ALL_TAGS
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.base import STEPS
from tunemill_dev.tiny.cached import cached_base
from tunemill_dev.tiny.recipes import FUNCTION_GEMMA_TAGS
from tunemill_trainer.errors import Interrupted
from tunemill_trainer.judge.cache_size import cache_size
from tunemill_trainer.judge.generate import SPAN, Decoding, generate, usual_answer

END_OF_TURN = 4
TIE = 1e-3
"""Two logits that differ by less are a tie, which another order of the same additions decides otherwise."""


def loaded(folder: Path) -> tuple[Any, list[list[int]]]:
    """The model, and prompts of very different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = []
    for i, row in enumerate(rows(12, seed=5)):
        system, user, _ = row["messages"]
        turn = {"role": "user", "content": f"{system['content'] * (i % 4)}\n{user['content']}"}
        prompts.append(tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False))
    return AutoModelForCausalLM.from_pretrained(folder).eval(), prompts


def answer(
    model: Any, prompts: list[list[int]], tokens: int = 40, room: int = 1 << 30, usual: int = 0
) -> list[list[int]]:
    """Generate without stop request and progress, within this many bytes."""
    decoding = Decoding((1, END_OF_TURN), 0, tokens, usual)
    return generate(
        model, prompts, decoding, check_stop=lambda: None, on_progress=lambda _: None, free=lambda _device: room
    )


def room_for(model: Any, rows: int, prompts: list[list[int]], tokens: int = 40) -> int:
    """The bytes in which this many of the longest prompts can be generated together."""
    longest = max(map(len, prompts))
    return int(rows * cache_size(model).row(longest, longest + max(tokens, SPAN)) / 0.8) + 1


@contextmanager
def rows_of_passes(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Yield rows and tokens of every forward pass of the block."""
    passes: list[tuple[int, int]] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _m, given, _o: passes.append(tuple(given[0].shape))
    )
    yield passes
    hook.remove()


def skilled() -> Path:
    """A base model trained to answer and to end its turn."""
    return cached_base("qwen3", ALL_TAGS)


def raw() -> Path:
    """A base model with random weights."""
    return cached_base("qwen3", steps=0)


def same(model: Any, prompt: list[int], one: list[int], other: list[int]) -> bool:
    """Return whether two replies are equal, or first differ at a tie of the most likely tokens."""
    if one == other:
        return True
    at = next(at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + one[:at]])).logits[0, -1]
    return bool((logits.max() - logits[[one[at], other[at]]]).abs().max() < TIE)


@pytest.mark.parametrize(
    ("kind", "tags", "steps"),
    [("gemma2", (), STEPS), ("qwen3", ALL_TAGS, STEPS), ("gemma3", FUNCTION_GEMMA_TAGS, STEPS), ("llama", (), 60)],
)
def test_batched_replies_equal_single_replies(kind: str, tags: tuple[str, ...], steps: int):
    """Neither padding, nor the company in a batch, nor the order changes a token, in a model that has learnt.

    Only a tie between two tokens may end otherwise, since a batch adds up in another order.
    """
    model, prompts = loaded(cached_base(kind, tags, steps=steps))
    # In no room at all each prompt is answered alone.
    with rows_of_passes(model) as passes:
        alone = answer(model, prompts, room=1)
    assert max(count for count, _ in passes) == 1
    assert len({len(reply) for reply in alone}) > 1
    draw = random.Random(kind)
    for room in (room_for(model, 3, prompts), room_for(model, 7, prompts), 1 << 30):
        order = draw.sample(range(len(prompts)), len(prompts))
        with rows_of_passes(model) as passes:
            answers = answer(model, [prompts[i] for i in order], room=room, usual=5)
        assert max(count for count, _ in passes) > 1
        for i, reply in zip(order, answers, strict=True):
            assert same(model, prompts[i], alone[i], reply)


def test_a_reply_ends_with_its_stop_token():
    """Later tokens of the batch, including padding, are not part of the reply."""
    model, prompts = loaded(skilled())
    replies = answer(model, prompts, tokens=60)
    finished = [reply for reply in replies if reply[-1] in (1, END_OF_TURN)]
    assert finished
    assert all(token not in (0, 1, END_OF_TURN) for reply in finished for token in reply[:-1])


def test_the_models_generation_config_is_ignored():
    """Decoding is greedy, also for models with sampling and a repetition penalty, such as Qwen's."""
    model, prompts = loaded(skilled())
    greedy = answer(model, prompts)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=0, repetition_penalty=3.0, max_length=3, min_length=50
    )
    assert answer(model, prompts) == greedy


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")]
)
def test_after_an_oom_the_remaining_rows_get_smaller_batches(monkeypatch: pytest.MonkeyPatch, error: RuntimeError):
    """A GPU with less memory than estimated fails once or twice, not once per batch."""
    model, prompts = loaded(raw())
    whole = answer(model, prompts, tokens=4)
    real, most, failed = model.generate, 3, 0

    def small_gpu(**inputs: Any) -> Any:
        nonlocal failed
        if len(inputs["input_ids"]) > most:
            failed += 1
            raise error
        return real(**inputs)

    monkeypatch.setattr(model, "generate", small_gpu)
    cut = answer(model, prompts, tokens=4, room=room_for(model, 8, prompts, 4))
    assert all(same(model, *replies) for replies in zip(prompts, whole, cut, strict=True))
    assert 1 <= failed <= 4
    most = 0
    with pytest.raises(type(error), match=str(error)):
        answer(model, prompts, tokens=4)


def test_tokens_before_an_oom_are_kept(monkeypatch: pytest.MonkeyPatch):
    """Rows continue: no reply starts again, and none exceeds its maximum length."""
    model, prompts = loaded(raw())
    limit = SPAN + 8
    whole = answer(model, prompts, tokens=limit)
    real, spans = model.generate, []

    def full_in_the_second_span(**inputs: Any) -> Any:
        spans.append((inputs["input_ids"].shape[1], inputs["past_key_values"] is None))
        if len(spans) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**inputs)

    monkeypatch.setattr(model, "generate", full_in_the_second_span)
    again = answer(model, prompts, tokens=limit)
    assert all(same(model, *replies) for replies in zip(prompts, whole, again, strict=True))
    longest = max(map(len, prompts))
    # Random weights can end any answer, and its row leaves the batch.
    remaining = max(len(prompt) for prompt, reply in zip(prompts, whole, strict=True) if len(reply) > SPAN)
    assert spans[:3] == [(longest, True), (longest + SPAN, False), (remaining + SPAN, True)]


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch):
    """Passes become smaller, and replies do not change."""
    model, prompts = loaded(skilled())
    prompts = prompts[:8]
    whole = answer(model, prompts)
    lengths = sorted(map(len, whole))
    span = lengths[0]
    assert span < lengths[-1], "all end at once"
    monkeypatch.setattr("tunemill_trainer.judge.generate.SPAN", span)
    with rows_of_passes(model) as passes:
        again = answer(model, prompts)
    assert all(same(model, *replies) for replies in zip(prompts, whole, again, strict=True))
    # The pass over the prompts gives the first token; every other token has a pass of its own.
    decoded = [rows for rows, tokens in passes if tokens == 1]
    assert decoded[: span - 1] == [len(prompts)] * (span - 1)
    assert decoded[span - 1] < len(prompts)
    assert decoded == sorted(decoded, reverse=True)


def test_one_long_reply_does_not_reduce_the_batch_size():
    """Batches are sized for usual replies; a row without memory later waits, and loses nothing."""
    assert usual_answer([10] * 18 + [900, 1000]) == 42
    model, prompts = loaded(raw())
    prompts = sorted(prompts, key=len)[:8]
    limit, size, longest = 6 * SPAN, cache_size(model), max(map(len, prompts))
    room = room_for(model, 6, prompts, SPAN)
    assert int(0.8 * room) // size.row(longest, longest + limit) < 6
    whole = answer(model, prompts, tokens=limit)
    with rows_of_passes(model) as passes:
        tight = answer(model, prompts, tokens=limit, room=room, usual=SPAN)
    assert all(same(model, *replies) for replies in zip(prompts, whole, tight, strict=True))
    assert passes[0][0] >= 6
    assert min(rows for rows, _ in passes) < 6


def test_a_request_to_stop_ends_generation_within_a_batch():
    """A drained pod does not finish its batch first."""
    model, prompts = loaded(raw())
    calls = 0

    def stop_at_the_third_token() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        generate(model, prompts, Decoding((1,), 0, 40), check_stop=stop_at_the_third_token, on_progress=lambda _: None)
    assert calls == 3


def test_progress_counts_the_replies():
    """Every batch is reported, the last with all prompts."""
    model, prompts = loaded(raw())
    counts: list[int] = []
    generate(
        model,
        prompts,
        Decoding((1,), 0, 2),
        check_stop=lambda: None,
        on_progress=counts.append,
        free=lambda _device: room_for(model, 5, prompts, 2),
    )
    assert counts == sorted(counts)
    assert len(counts) > 1
    assert counts[-1] == len(prompts)
