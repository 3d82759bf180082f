"""Compares the speed of train with the tutorial's loop and TRL's defaults: `python -m tunemill_dev.bench.train`.

All three train the same adapter on the same rows with the same number of rows per optimizer step, in one process and in
turns, so that other load on the machine affects all of them. The tokens of a row count once, without padding.

- The tutorial (agents course): one row per forward pass, four passes per step, eager attention, gradient checkpointing,
  loss on every token.
- TRL's defaults: batches of eight rows in random order, gradient checkpointing, loss on every token. Two defaults are
  changed to make them comparable: bfloat16, which CPUs emulate, and truncation at 1,024 tokens.

The model has a head as large as its body, which lies between Gemma 2 2B (0.3) and FunctionGemma (1.7).
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback
    from tunemill_trainer.process.ranks import Ranks

ROWS = 32
ROUNDS = 3
MEDIAN, SPREAD, LONGEST = 700, 0.6, 2048
"""The lengths of the agents-course rows: lognormal, in tokens."""
SUPERVISED = 0.25
"""The share of assistant tokens, at the end of each row."""
TUTORIAL_BATCH, TRL_BATCH = 4, 8
"""Rows per optimizer step."""
_WIDTH, _LAYERS, _HEADS, _VOCABULARY = 256, 4, 4, 16_384
ADDED = 8
"""The number of added tokens whose rows are trained, like the tags of the tutorial."""

Rows = list[dict[str, list[int]]]


def measure(rows: int = ROWS, rounds: int = ROUNDS) -> dict[str, float]:
    """Return how many times longer the other two take, as medians over rounds."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    data = agents_course_rows(rows)

    def seconds(loop: Callable[..., None], attention: str, *arguments: object) -> float:
        watch = step_clock()
        loop(base_model(attention), *arguments, watch, added=ADDED)
        return float(watch.seconds)

    tutorial_ratios, trl_ratios = [], []
    seconds(ours, "sdpa", data[:TRL_BATCH], TRL_BATCH)  # the first run includes loading modules
    for _ in range(rounds):
        tutorial_ratios.append(seconds(tutorial, "eager", data) / seconds(ours, "sdpa", data, TUTORIAL_BATCH))
        trl_ratios.append(seconds(trl_defaults, "sdpa", data) / seconds(ours, "sdpa", data, TRL_BATCH))
    return {
        "train_vs_tutorial": round(statistics.median(tutorial_ratios), 2),
        "train_vs_trl_defaults": round(statistics.median(trl_ratios), 2),
    }


def agents_course_rows(count: int, median: int = MEDIAN, vocabulary: int = _VOCABULARY) -> Rows:
    """Return rows of random tokens with the lengths of the agents-course rows, optionally scaled down."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        length = int(draw.lognormvariate(0, SPREAD) * median)
        length = min(LONGEST * median // MEDIAN, max(32 * median // MEDIAN, length))
        ids = [draw.randrange(16, vocabulary) for _ in range(length)]
        silent = int((1 - SUPERVISED) * length)
        rows.append({"input_ids": ids, "labels": [-100] * silent + ids[silent:]})
    return rows


def base_model(attention: str) -> Any:  # noqa: ANN401 - transformers ships no types
    """Return the base model with random weights, the same in each process."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=_VOCABULARY,
        hidden_size=_WIDTH,
        intermediate_size=4 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        head_dim=_WIDTH // _HEADS,
        query_pre_attn_scalar=_WIDTH // _HEADS,
        sliding_window=1024,
        pad_token_id=0,
        attn_implementation=attention,
    )
    return Gemma3ForCausalLM(config).to("cuda" if torch.cuda.is_available() else "cpu")


def adapter_for(model: Any, added: int) -> Any:  # noqa: ANN401
    """Return PEFT's configuration of the default adapter, with trainable rows for the added tokens."""
    from tunemill_api.training import Adapter
    from tunemill_trainer.learn.adapter import adapter_config
    from tunemill_trainer.prepared import NewToken, Tokens

    vocabulary = model.config.vocab_size
    tokens = tuple(NewToken(vocabulary - 1 - at, f"<{at}>") for at in range(added))
    return adapter_config(Adapter(), model, Tokens("Extend" if added else "Reuse", tokens, (1,), 0, vocabulary), 1)


def _tokenizer() -> Any:  # noqa: ANN401
    """Return a tokenizer. Only its padding token is used."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def ours(
    model: Any,  # noqa: ANN401
    rows: Rows,
    batch: int,
    watch: TrainerCallback,
    *,
    added: int = 0,
    ranks: Ranks | None = None,
    folder: Path | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train an epoch with Tunemill.

    Args:
        model: the base model.
        rows: the rows.
        batch: rows per step.
        watch: a callback of the trainer.
        added: number of tokens whose embedding rows are trained.
        ranks: the processes that train together; None for this one alone.
        folder: where to save a checkpoint after every step; None for no checkpoints.
        checkpoint: a checkpoint to resume from.
    """
    import datasets
    import torch
    from tunemill_api.training import Checkpoint, Training
    from tunemill_trainer.learn import sft
    from tunemill_trainer.learn.devices import Device
    from tunemill_trainer.learn.plan import plan
    from tunemill_trainer.process.ranks import Ranks

    saving = Checkpoint(every_steps=1) if folder else Checkpoint()
    training = Training(batch_size=batch, learning_rate="1e-4", warmup_ratio="0", checkpoint=saving)
    device = Device("cuda", "GPU") if torch.cuda.is_available() else Device("cpu", "cpu")
    data = datasets.Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows])
    with tempfile.TemporaryDirectory() as unused:
        made, place = plan(training, len(rows)), folder or Path(unused)
        run = sft.Run(training, made, device, torch.float32, place, kept_on_disk=2, ranks=ranks or Ranks())
        sft.train(run, model, adapter_for(model, added), _tokenizer(), data, [watch], checkpoint)


def tutorial(model: Any, rows: Rows, watch: Any, *, added: int = 0) -> None:  # noqa: ANN401
    """Train an epoch like the agents-course notebook. The model uses eager attention."""
    import torch
    from peft import get_peft_model

    model = get_peft_model(model, adapter_for(model, added))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    watch.on_train_begin(None, None, None)
    for at in range(0, len(rows), TUTORIAL_BATCH):
        watch.on_step_begin(None, None, None)
        for row in rows[at : at + TUTORIAL_BATCH]:
            ids = torch.tensor([row["input_ids"]], device=model.device)
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
            (loss / TUTORIAL_BATCH).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.on_step_end(None, None, None)
    watch.on_train_end(None, None, None)


def trl_defaults(model: Any, rows: Rows, watch: TrainerCallback, *, added: int = 0, batch: int = TRL_BATCH) -> None:  # noqa: ANN401
    """Train an epoch with TRL's defaults; `batch` rows per step, of each process."""
    import datasets
    import torch
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    data = datasets.Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            bf16=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=_tokenizer(),
            peft_config=adapter_for(model, added),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        # TRL 1.16 with PEFT 0.21 does not train token rows without it (peft#3649).
        head = trainer.model.get_output_embeddings()
        if not hasattr(head, "bias"):
            head.register_parameter("bias", None)
        trainer.train()


def step_clock() -> Any:  # noqa: ANN401
    """Return a callback that measures the time from the begin of the first step to the end of the last one."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        seconds = 0.0

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.seconds = -time.perf_counter()

        def on_train_end(self, *_: object, **__: object) -> None:
            self.seconds += time.perf_counter()

    return Clock()


if __name__ == "__main__":
    print(json.dumps(measure()))
