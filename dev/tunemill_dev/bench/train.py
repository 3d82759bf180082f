"""How much faster train is than the tutorial's loop and TRL's defaults: `python -m tunemill_dev.bench.train`.

All three train the same adapter on the same rows with the same number of rows per optimizer step, in one process and in
turns, so that what else the machine does hits all alike. A row's tokens count once, however they are padded.

- The tutorial (agents-course): one row per forward pass, four passes a step, eager attention, gradient checkpointing,
  the loss on every token.
- TRL's defaults: batches of eight rows in random order, gradient checkpointing, the loss on every token. Two of them
  would not compare: bfloat16, which CPUs emulate, and the cut at 1,024 tokens.

The model has a head as large as its body, which lies between Gemma 2 2B (0.3) and FunctionGemma (1.7).
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = 32
ROUNDS = 3
MEDIAN, SPREAD, LONGEST = 700, 0.6, 2048
"""The lengths of the agents-course rows: lognormal, in tokens."""
SUPERVISED = 0.25
"""The share of the tokens that the assistant says, at the end of each row."""
_TUTORIAL_BATCH, _TRL_BATCH = 4, 8
_WIDTH, _LAYERS, _HEADS, _VOCABULARY = 256, 4, 4, 16_384
_ADDED = 8
"""Tokens with rows of their own, as the tags of the tutorial."""

Rows = list[dict[str, list[int]]]


def measure(rows: int = ROWS, rounds: int = ROUNDS) -> dict[str, float]:
    """Return how many times longer the others take, as medians over rounds."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    data = _rows(rows)
    tutorial, trl = [], []
    _ours(data[:_TRL_BATCH], _TRL_BATCH)  # the first run of a process pays for what is loaded on the way
    for _ in range(rounds):
        tutorial.append(_tutorial(data) / _ours(data, _TUTORIAL_BATCH))
        trl.append(_trl_defaults(data) / _ours(data, _TRL_BATCH))
    return {
        "train_vs_tutorial": round(statistics.median(tutorial), 2),
        "train_vs_trl_defaults": round(statistics.median(trl), 2),
    }


def _rows(count: int) -> Rows:
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        length = min(LONGEST, max(32, int(draw.lognormvariate(0, SPREAD) * MEDIAN)))
        ids = [draw.randrange(16, _VOCABULARY) for _ in range(length)]
        silent = int((1 - SUPERVISED) * length)
        rows.append({"input_ids": ids, "labels": [-100] * silent + ids[silent:]})
    return rows


def _model(attention: str) -> Any:  # noqa: ANN401 - transformers ships no types
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


def _adapter(model: Any) -> Any:  # noqa: ANN401
    from tunemill_api.training import Adapter
    from tunemill_trainer.learn.adapter import adapter_config
    from tunemill_trainer.prepared import NewToken, Tokens

    added = tuple(NewToken(_VOCABULARY - 1 - at, f"<{at}>") for at in range(_ADDED))
    return adapter_config(Adapter(), model, Tokens("Extend", added, (1,), 0, _VOCABULARY), 1)


def _tokenizer(folder: Path) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    from tunemill_dev.tiny import make_base

    # Its padding token is all that is asked of it.
    return AutoTokenizer.from_pretrained(make_base(folder, "qwen3", steps=0))


def _ours(rows: Rows, batch: int) -> float:
    import datasets
    import torch
    from tunemill_api.training import Training
    from tunemill_trainer.learn import sft
    from tunemill_trainer.learn.devices import Device
    from tunemill_trainer.learn.plan import plan

    training = Training(batch_size=batch, warmup_ratio="0")
    device = Device("cuda", "GPU") if torch.cuda.is_available() else Device("cpu", "cpu")
    data = datasets.Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows])
    model = _model("sdpa")
    with tempfile.TemporaryDirectory() as folder:
        run = sft.Run(training, plan(training, len(rows)), device, torch.float32, Path(folder))
        clock = _clock()
        sft.train(run, model, _adapter(model), _tokenizer(Path(folder) / "base"), data, [clock], None)
    return float(clock.seconds)


def _tutorial(rows: Rows) -> float:
    import torch
    from peft import get_peft_model

    model = _model("eager")
    model = get_peft_model(model, _adapter(model))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def epoch() -> None:
        for number, row in enumerate(rows, start=1):
            ids = torch.tensor([row["input_ids"]], device=model.device)
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
            (loss / _TUTORIAL_BATCH).backward()
            if number % _TUTORIAL_BATCH == 0 or number == len(rows):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    return _timed(epoch)


def _trl_defaults(rows: Rows) -> float:
    import datasets
    import torch
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    model = _model("sdpa")
    data = datasets.Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            bf16=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            disable_tqdm=True,
        )
        clock = _clock()
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=_tokenizer(Path(folder) / "base"),
            peft_config=_adapter(model),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        # TRL 1.16 with PEFT 0.21 does not train token rows without it (peft#3649).
        trainer.model.get_output_embeddings().register_parameter("bias", None)
        trainer.train()
    return float(clock.seconds)


def _clock() -> Any:  # noqa: ANN401
    """Return a callback that takes the time between the first step's begin and the last one's end."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        seconds = 0.0

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.seconds = -time.perf_counter()

        def on_train_end(self, *_: object, **__: object) -> None:
            self.seconds += time.perf_counter()

    return Clock()


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(measure()))
