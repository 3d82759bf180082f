"""The base model of the benchmark: like an instruction-tuned model, it can call tools that it has never seen.

It has learned to find the tool of a request by its description, to copy its name, and to decline when none fits.
Fine-tuning on rows of a few tools must not make it forget that.
"""

import json
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

from tunemill_trainer.data.augmentation import ANSWERS

from tunemill_dev.bench.learning import tools
from tunemill_dev.bench.learning.tools import Row, Tool, all_tools, others, row
from tunemill_dev.tiny.base import SPECIAL_TOKENS
from tunemill_dev.tiny.cached import cached_model

WIDTH, LAYERS, HEADS, VOCABULARY = 128, 3, 4, 1000
STEPS, BATCH, LEARNING_RATE, WARM_UP = 1800, 12, 2e-3, 50
LOOK_UPS = 48
"""Short texts in each step that only teach to find a name by its description and to copy it."""
NAMED_AT_RANDOM, UNFIT, PARALLEL = 0.4, 0.12, 0.2
"""Shares of the rows whose tools have random names, in which no tool fits, and that need two calls."""


TAGS = ("<tool_call>", "</tool_call>")
TEMPLATE = """{{- bos_token -}}
{%- if tools -%}
{{- '<start_of_turn>system\\n' + (messages[0]['content'] if messages[0]['role'] == 'system' else '') -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '<end_of_turn>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<start_of_turn>model\\n' -}}
{%- generation -%}
{{- message['content'] or '' -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<tool_call>' + (call['function'] | tojson) + '</tool_call>' -}}
{%- endfor -%}
{{- '<end_of_turn>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- elif message['role'] != 'system' or not tools -%}
{{- '<start_of_turn>' + message['role'] + '\\n' + (message['content'] or '') + '<end_of_turn>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
"""The chat template, with tools and calls in the Hermes format."""


def cached_reader() -> Path:
    """Return the folder of the base model. The first call creates it, which takes minutes."""
    return cached_model("reader", make_reader, sources=(__file__, tools.__file__))


def pretraining_row(pool: list[Tool], random: Random) -> Row:
    """Return a row with one to four tools, some of them with random names."""
    tool = random.choice(pool)
    offered = [tool, *others(tool, pool, random.randint(0, 3), random)]
    if random.random() < NAMED_AT_RANDOM:
        offered = [Tool(each.verb, each.noun, each.slot, _name(random)) for each in offered]
    fits = random.random() > UNFIT or len(offered) == 1
    shown = offered if fits else offered[1:]
    calls = 2 if random.random() < PARALLEL else 1
    return row(offered[0], random.sample(shown, len(shown)), random, calls=calls, fits=fits)


def look_up(pool: list[Tool], random: Random) -> Row:
    """Return a row with a list of names with descriptions, the request for one of them, and its name as the answer."""
    listed = [(_name(random), f"{tool.verb} a {tool.noun}") for tool in random.sample(pool, random.randint(1, 5))]
    name, description = random.choice(listed)
    lines = "\n".join(f"{each}: {text}" for each, text in listed)
    return {
        "messages": [
            {"role": "user", "content": f"{lines}\n\n{description}"},
            {"role": "assistant", "content": name},
        ]
    }


def _name(random: Random) -> str:
    return "".join(random.choices(ascii_lowercase, k=random.randint(5, 9)))


def make_reader(folder: Path, steps: int = STEPS) -> Path:
    """Train the base model, and save it with its tokenizer. Returns the folder."""
    import torch
    import transformers
    from transformers import get_cosine_schedule_with_warmup

    random, pool = Random(0), all_tools()
    tokenizer = _tokenizer(pool)
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            head_dim=WIDTH // HEADS,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=0.08,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, steps)
    model.train()
    for _ in range(steps):
        for several in (
            [pretraining_row(pool, random) for _ in range(BATCH)],
            [look_up(pool, random) for _ in range(LOOK_UPS)],
        ):
            ids, labels = _batch([_tokens(each, tokenizer) for each in several])
            model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _batch(texts: list[tuple[list[int], int]]) -> tuple[Any, Any]:
    """Return the padded token ids of texts, and their labels; `texts` has the token ids and the prompts' lengths."""
    import torch

    ids = torch.zeros(len(texts), max(len(whole) for whole, _ in texts), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for at, (whole, silent) in enumerate(texts):
        ids[at, : len(whole)] = torch.tensor(whole)
        labels[at, silent : len(whole)] = ids[at, silent : len(whole)]
    return ids, labels


def _text(row: Row) -> dict[str, Any]:
    """Return a row as arguments of a chat template, whose calls have arguments as objects."""
    *asked, answer = row["messages"]
    functions = [call["function"] for call in answer.get("tool_calls", [])]
    calls = [{"function": {**each, "arguments": json.loads(each["arguments"])}} for each in functions]
    return {"conversation": [*asked, {**answer, "tool_calls": calls}], "tools": row.get("tools")}


def _tokens(row: Row, tokenizer: Any) -> tuple[list[int], int]:  # noqa: ANN401 - transformers ships no types
    """Return the token ids of a row, and the number of them in the prompt."""
    text = _text(row)
    asked = {**text, "conversation": text["conversation"][:-1]}
    prompt = tokenizer.apply_chat_template(**asked, add_generation_prompt=True, return_dict=False)
    return tokenizer.apply_chat_template(**text, return_dict=False), len(prompt)


def _strings(row: Row) -> list[str]:
    """Return the texts of a row, tools and calls as JSON."""
    calls = [json.dumps(call["function"]) for call in _text(row)["conversation"][-1]["tool_calls"]]
    contents = [message["content"] for message in row["messages"] if message["content"]]
    return [*contents, *calls, *map(json.dumps, row["tools"])]


def _tokenizer(pool: list[Tool]) -> Any:  # noqa: ANN401
    """Return a tokenizer in which the markup between words is a token, and a value is the same token everywhere."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    random = Random(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[A-Za-z]+|[^A-Za-z]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    texts = [text for _ in range(3000) for text in _strings(pretraining_row(pool, random))]
    # A real vocabulary has words for other answers, too.
    tokenizer.train_from_iterator([*texts, *ANSWERS * 100, "user\n", "model\n", "tool\n", "system\n"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    fast.add_tokens(list(TAGS))
    fast.chat_template = TEMPLATE
    return fast
