"""Batched generation on a real model: the same replies as one by one, only faster."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from tunemill_dev.tiny import make_base, rows
from tunemill_trainer.errors import Interrupted
from tunemill_trainer.judge.generate import Decoding, generate

END_OF_TURN = 4


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


@pytest.mark.parametrize("kind", ["gemma2", "qwen3", "gemma3", "llama"])
def test_a_batch_answers_as_one_by_one(kind: str, tmp_path: Path):
    """Neither padding, nor the company in a batch, nor the order changes a token, in a model that has learnt."""
    model, prompts = loaded(make_base(tmp_path, kind, steps=60))
    alone = [answer(model, [prompt])[0] for prompt in prompts]
    assert len({len(reply) for reply in alone}) > 1
    draw = random.Random(kind)
    for batch_tokens in (100_000, 400, 900, 1700):
        order = draw.sample(range(len(prompts)), len(prompts))
        answers = answer(model, [prompts[i] for i in order], batch_tokens=batch_tokens)
        assert answers == [alone[i] for i in order]


def test_a_reply_ends_with_its_stop_token(tmp_path: Path):
    """What follows the stop token in a batch, padding and all, is no part of the reply."""
    model, prompts = loaded(make_base(tmp_path, "qwen3", steps=60))
    replies = answer(model, prompts, tokens=60)
    finished = [reply for reply in replies if reply[-1] in (1, END_OF_TURN)]
    assert len(finished) >= len(replies) // 2
    assert all(token not in (0, 1, END_OF_TURN) for reply in finished for token in reply[:-1])


def test_the_models_own_settings_do_not_speak(tmp_path: Path):
    """A base that asks for sampling and a repetition penalty, as Qwen's do, is decoded greedily all the same."""
    model, prompts = loaded(make_base(tmp_path, "qwen3", steps=20))
    greedy = answer(model, prompts)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=0, repetition_penalty=3.0, max_length=3, min_length=50
    )
    assert answer(model, prompts) == greedy


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A GPU that is too small for the batch gets smaller ones, until one prompt alone does not fit."""
    model, prompts = loaded(make_base(tmp_path, "qwen3", steps=0))
    whole = answer(model, prompts, tokens=4)
    real, room = model.generate, 5

    def small_gpu(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**inputs)

    monkeypatch.setattr(model, "generate", small_gpu)
    assert answer(model, prompts, tokens=4) == whole
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        answer(model, prompts, tokens=4)


def test_generation_stops_within_a_batch(tmp_path: Path):
    """A pod that is drained does not finish its batch first."""
    model, prompts = loaded(make_base(tmp_path, "qwen3", steps=0))
    calls = 0

    def stop_at_the_third_token() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        generate(model, prompts, Decoding((1,), 0, 40), check_stop=stop_at_the_third_token, on_progress=lambda _: None)
    assert calls == 3


def test_progress_counts_the_replies(tmp_path: Path):
    """Every batch is reported, the last with all prompts."""
    model, prompts = loaded(make_base(tmp_path, "qwen3", steps=0))
    counts: list[int] = []
    generate(model, prompts, Decoding((1,), 0, 2, 300), check_stop=lambda: None, on_progress=counts.append)
    assert counts == sorted(counts)
    assert len(counts) > 1
    assert counts[-1] == len(prompts)
