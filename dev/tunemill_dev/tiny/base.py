"""Makes a small base model: a real architecture of a million parameters that speaks, but has never seen a tool call.

It is pre-trained to answer a request with the requested values as plain JSON. So it can read and copy, as a real base
model can, and what is left for the fine-tune is what Tunemill is about: choosing the tool and writing the call.

Two things decide whether so small a model learns (measured, see the trainer page): `initializer_range` 0.08 instead
of 0.02, and a tokenizer in which a value is the same token in prose and in JSON.
"""

import json
import random
from pathlib import Path
from typing import Any

from tunemill_dev.tiny.data import SYSTEM, TASKS, TOOLS, rows

TURN_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<start_of_turn>' + role + '\\n' + (message['content'] or '') | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
"""Gemma's turns, without any notion of tools, as google/gemma-2-2b-it has it."""

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
WIDTH, LAYERS, HEADS, VOCABULARY = 128, 2, 4, 1400
STEPS, BATCH, LEARNING_RATE, WARM_UP = 220, 24, 3e-3, 20


def make_base(
    folder: Path, kind: str = "gemma2", *, tied: bool = True, tags: tuple[str, ...] = (), steps: int = STEPS
) -> Path:
    """Train a base model and save it with its tokenizer, as a repository on the Hub has them.

    Args:
        folder: where the files go; made when it does not exist.
        kind: the architecture: gemma2, gemma3, qwen3 or llama.
        tied: whether the output head shares the embeddings.
        tags: tokens that the vocabulary has from the start, for a base whose tags can be reused.
        steps: of pre-training; 0 leaves the weights random, which is enough for tests that do not learn.

    Returns:
        The folder.
    """
    import torch

    tokenizer = _tokenizer(tags)
    torch.manual_seed(0)
    model = _model(kind, len(tokenizer), tied=tied)
    if steps:
        _pretrain(model, tokenizer, steps)
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _corpus() -> list[str]:
    """Return prose and JSON, so that a value is one token in both."""
    texts = [SYSTEM, "user\n", "model\n", "tool\n", "system\n"]
    texts += [json.dumps(tool) for tool in TOOLS.values()] * 4
    for row in rows(1500, seed=1):
        texts.append(row["messages"][1]["content"])
        answer = row["messages"][2]
        texts.append(answer["content"] or answer["tool_calls"][0]["function"]["arguments"])
    for task in TASKS:
        for name, values in task.arguments.items():
            texts += [json.dumps({"name": task.name, "arguments": {name: value}}) for value in values]
    return texts


def _tokenizer(tags: tuple[str, ...]) -> Any:  # noqa: ANN401 - transformers ships no types
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    fast.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    fast.chat_template = TURN_TEMPLATE
    return fast


def _model(kind: str, vocabulary: int, *, tied: bool) -> Any:  # noqa: ANN401
    import transformers

    head = WIDTH // HEADS
    common = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
        "initializer_range": 0.08,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    gemma = {"head_dim": head, "query_pre_attn_scalar": head, "sliding_window": 1024}
    if kind == "gemma2":  # its attention scores are soft-capped, which sdpa cannot do
        config = transformers.Gemma2Config(**common, **gemma)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if kind == "gemma3":
        return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**common, **gemma))
    if kind == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common, head_dim=head))
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    raise ValueError(f"kind must be gemma2, gemma3, qwen3 or llama, not {kind!r}")


def _without_calls(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return the row's turns with the requested values as plain JSON instead of a call, the tools as prose."""
    system, user, answer = row["messages"]
    calls = answer.get("tool_calls")
    tools = "\n".join(json.dumps(tool["function"]) for tool in row["tools"])
    return [
        {"role": "user", "content": f"{system['content']}\n{tools}\n\n{user['content']}"},
        {"role": "assistant", "content": calls[0]["function"]["arguments"] if calls else answer["content"]},
    ]


def _pretrain(model: Any, tokenizer: Any, steps: int) -> None:  # noqa: ANN401
    import torch
    from transformers import get_cosine_schedule_with_warmup

    rng = random.Random(0)
    turns = [_without_calls(row) for row in rows(3000, seed=2, offered=2)]
    prompts = [tokenizer.apply_chat_template(t[:1], add_generation_prompt=True, return_dict=False) for t in turns]
    wholes = [tokenizer.apply_chat_template(t, return_dict=False) for t in turns]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, steps)
    model.train()
    for _ in range(steps):
        batch = rng.sample(range(len(turns)), BATCH)
        length = max(len(wholes[i]) for i in batch)
        ids = torch.zeros(BATCH, length, dtype=torch.long)
        labels = torch.full((BATCH, length), -100)
        mask = torch.zeros(BATCH, length, dtype=torch.long)
        for at, i in enumerate(batch):
            whole = torch.tensor(wholes[i])
            ids[at, : len(whole)] = whole
            mask[at, : len(whole)] = 1
            labels[at, len(prompts[i]) : len(whole)] = whole[len(prompts[i]) :]
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    print(f"base model: {steps} steps, loss {loss.item():.3f}", flush=True)
