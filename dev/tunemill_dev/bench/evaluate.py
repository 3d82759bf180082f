"""Compares the speed of evaluate with the loop of the tutorials: `python -m tunemill_dev.bench.evaluate`.

The tutorials answer one prompt at a time, with a fixed number of new tokens and no stop token. Both run in one process,
on the same model and prompts, in turns, so that other load on the machine affects both. Their replies must match: up to
its stop token, every reply of evaluate is the beginning of the tutorials' reply.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunemill_trainer.judge.generate import Decoding, answer_limit, generate

from tunemill_dev.tiny import make_base, rows

PROMPTS = 96
NEW_TOKENS = 128
"""The number of tokens that the FunctionGemma guide generates for every prompt."""
ROUNDS = 3
_KIND = "qwen3"

Replies = list[list[int]]


def measure(prompts: int = PROMPTS, rounds: int = ROUNDS) -> dict[str, float]:
    """Return how many times longer the tutorials' loop takes, as the median over rounds.

    Raises:
        RuntimeError: the replies of both differ.
    """
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = _model(make_base(Path(folder), _KIND))
    questions, answers = _questions(tokenizer, prompts)
    stops = (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    decoding = Decoding(stops, tokenizer.pad_token_id, answer_limit(answers))
    ratios = []
    for _ in range(rounds):
        ours, fast = _timed(lambda: _ours(model, questions, decoding))
        theirs, slow = _timed(lambda: _one_by_one(model, questions, tokenizer.pad_token_id))
        _compare(ours, theirs)
        ratios.append(slow / fast)
    return {"evaluation_vs_one_by_one": round(statistics.median(ratios), 1)}


def _model(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    return model, AutoTokenizer.from_pretrained(folder)


def _questions(tokenizer: Any, count: int) -> tuple[Replies, list[int]]:  # noqa: ANN401 - transformers ships no types
    """Return prompts, and the lengths of the answers in the data, in tokens."""
    prompts, answers = [], []
    for row in rows(count, seed=3, talk=0.0):
        system, user, answer = row["messages"]
        turn = {"role": "user", "content": f"{system['content']}\n{user['content']}"}
        prompts.append(tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False))
        answers.append(len(tokenizer(answer["tool_calls"][0]["function"]["arguments"])["input_ids"]))
    return prompts, answers


def _ours(model: Any, prompts: Replies, decoding: Decoding) -> Replies:  # noqa: ANN401
    return generate(model, prompts, decoding, check_stop=lambda: None, on_progress=lambda _: None)


def _one_by_one(model: Any, prompts: Replies, pad_token_id: int) -> Replies:  # noqa: ANN401
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=pad_token_id)
    replies = []
    for prompt in prompts:
        inputs = torch.tensor([prompt], device=model.device)
        with torch.inference_mode():
            output = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs))
        replies.append(output[0, len(prompt) :].tolist())
    return replies


def _timed(work: Callable[[], Replies]) -> tuple[Replies, float]:
    started = time.perf_counter()
    done = work()
    return done, time.perf_counter() - started


def _compare(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> None:
    different = sum(long[: len(short)] != short for short, long in zip(ours, theirs, strict=True))
    if different:
        raise RuntimeError(f"{different} of {len(ours)} replies differ between evaluate and the tutorials' loop")


if __name__ == "__main__":
    print(json.dumps(measure()))
