"""Batched generation on a real model: the same replies as one by one, only faster."""

import random
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
from tunemill_trainer.judge.generate import Decoding, generate

END_OF_TURN = 4
TIE = 1e-3
"""Two logits that differ by less are a tie, which another order of the same additions decides otherwise."""


def loaded(folder: Path) -> tuple[Any, list[list[int]]]:
    """The model, and prompts of very different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = []
    for i, row in enumerate(rows(24, seed=5)):
        system, user, _ = row["messages"]
        turn = {"role": "user", "content": f"{system['content'] * (i % 4)}\n{user['content']}"}
        prompts.append(tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False))
    return AutoModelForCausalLM.from_pretrained(folder).eval(), prompts


def answer(model: Any, prompts: list[list[int]], tokens: int = 40, batch_tokens: int = 100_000) -> list[list[int]]:
    """Generate with nothing that stops or counts."""
    decoding = Decoding((1, END_OF_TURN), 0, tokens, batch_tokens)
    return generate(model, prompts, decoding, check_stop=lambda: None, on_progress=lambda _: None)


def skilled() -> Path:
    """A base that has learnt to answer and to end its turn."""
    return cached_base("qwen3", ALL_TAGS)


def raw() -> Path:
    """A base with random weights, for what every model does."""
    return cached_base("qwen3", steps=0)


def same(model: Any, prompt: list[int], one: list[int], other: list[int]) -> bool:
    """Return whether two replies are equal, or first differ where both tokens are the most likely ones."""
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
def test_a_batch_answers_as_one_by_one(kind: str, tags: tuple[str, ...], steps: int):
    """Neither padding, nor the company in a batch, nor the order changes a token, in a model that has learnt.

    Only a tie between two tokens may end otherwise, since a batch adds up in another order.
    """
    model, prompts = loaded(cached_base(kind, tags, steps=steps))
    alone = [answer(model, [prompt])[0] for prompt in prompts]
    assert len({len(reply) for reply in alone}) > 1
    draw = random.Random(kind)
    for batch_tokens in (100_000, 400, 900, 1700):
        order = draw.sample(range(len(prompts)), len(prompts))
        answers = answer(model, [prompts[i] for i in order], batch_tokens=batch_tokens)
        for i, reply in zip(order, answers, strict=True):
            assert same(model, prompts[i], alone[i], reply)


def test_a_reply_ends_with_its_stop_token():
    """What follows the stop token in a batch, padding and all, is no part of the reply."""
    model, prompts = loaded(skilled())
    replies = answer(model, prompts, tokens=60)
    finished = [reply for reply in replies if reply[-1] in (1, END_OF_TURN)]
    assert len(finished) >= len(replies) // 2
    assert all(token not in (0, 1, END_OF_TURN) for reply in finished for token in reply[:-1])


def test_the_models_own_settings_do_not_speak():
    """A base that asks for sampling and a repetition penalty, as Qwen's do, is decoded greedily all the same."""
    model, prompts = loaded(skilled())
    greedy = answer(model, prompts)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=0, repetition_penalty=3.0, max_length=3, min_length=50
    )
    assert answer(model, prompts) == greedy


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Triton Error [CUDA]: out of memory")]
)
def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch, error: RuntimeError):
    """A GPU that is too small for the batch gets smaller ones, until one prompt alone does not fit."""
    model, prompts = loaded(raw())
    whole = answer(model, prompts, tokens=4)
    real, room = model.generate, 5

    def small_gpu(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > room:
            raise error
        return real(**inputs)

    monkeypatch.setattr(model, "generate", small_gpu)
    halved = answer(model, prompts, tokens=4)
    assert all(same(model, *replies) for replies in zip(prompts, whole, halved, strict=True))
    room = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        answer(model, prompts, tokens=4)


def test_generation_stops_within_a_batch():
    """A pod that is drained does not finish its batch first."""
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
    generate(model, prompts, Decoding((1,), 0, 2, 300), check_stop=lambda: None, on_progress=counts.append)
    assert counts == sorted(counts)
    assert len(counts) > 1
    assert counts[-1] == len(prompts)
