"""A small task for tests that train in their own process: requests and calls without the schemas of tools."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from learn.training import TAGS, example
from tokenizers import AddedToken
from transformers import AutoTokenizer, TrainerCallback
from tunemill_api.finetune import Quantization
from tunemill_api.training import Adapter, Training
from tunemill_dev.tiny import rows
from tunemill_trainer.judge.generate import Decoding, generate
from tunemill_trainer.learn import models, sft
from tunemill_trainer.learn.adapter import adapter_config
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.full import WIDE, WeightFormat
from tunemill_trainer.learn.plan import Plan, plan
from tunemill_trainer.prepared import NewToken, Tokens
from tunemill_trainer.process.ranks import Ranks

CPU = Device("cpu", "cpu")
TRAIN_ROWS, HELD_OUT_ROWS = 320, 80
MEASURED_ROWS = 40
"""Of the held-out rows, those whose loss is measured after each epoch."""


@dataclass(frozen=True)
class Task:
    """Requests and the calls that answer them, in the tokens of a base model.

    Attributes:
        base: the model's folder.
        tokenizer: the folder of the prepared tokenizer.
        tokens: what was added.
        pairs: prompt and answer, the held-out ones last.
    """

    base: Path
    tokenizer: Path
    tokens: Tokens
    pairs: list[tuple[list[int], list[int]]]

    def model(self, quantization: Quantization = Quantization.NONE) -> Any:
        """The base model with rows for added tokens."""
        model = models.load_base(self.base, CPU, torch.float32, quantization)
        models.extend_vocabulary(model, self.tokens)
        return model

    def rows(self, count: int = TRAIN_ROWS) -> datasets.Dataset:
        """The training rows."""
        return datasets.Dataset.from_list(
            [
                {"input_ids": ask + say, "labels": [-100] * len(ask) + say, "length": len(ask + say)}
                for ask, say in self.pairs[:count]
            ]
        )

    def held_out(self) -> list[dict[str, list[int]]]:
        """The rows whose loss is measured."""
        return [{"input_ids": ask + say, "labels": [-100] * len(ask) + say} for ask, say in self.pairs[-MEASURED_ROWS:]]

    def train(
        self,
        folder: Path,
        adapter: Adapter,
        model: Any,
        *,
        count: int = TRAIN_ROWS,
        made: Plan | None = None,
        held_out: bool = False,
        resume_from: Path | None = None,
        callbacks: tuple[TrainerCallback, ...] = (),
        dtype: torch.dtype = torch.float32,
        weights: WeightFormat = WIDE,
        ranks: Ranks | None = None,
        **training: object,
    ) -> sft.Result:
        """Train; keywords are fields of spec.training."""
        usual = {"batchSize": 16, "learningRate": "1e-4", "checkpoint": {"everySteps": 1000}}
        settings = Training.model_validate(usual | training)
        made = made or plan(settings, count)
        kept = settings.checkpoint.keep + 1
        run = sft.Run(settings, made, CPU, dtype, folder, weights, kept_on_disk=kept, ranks=ranks or Ranks())
        config = adapter_config(adapter, model, self.tokens, made.steps)
        speaker = AutoTokenizer.from_pretrained(self.tokenizer)
        measured = self.held_out() if held_out else []
        return sft.train(run, model, config, speaker, self.rows(count), list(callbacks), resume_from, measured)

    def without_tags(self) -> "Task":
        """The same requests, with the same calls as plain JSON."""
        speaker = AutoTokenizer.from_pretrained(self.tokenizer)
        tags = speaker.convert_tokens_to_ids(list(TAGS))
        return replace(self, pairs=[(ask, [token for token in say if token not in tags]) for ask, say in self.pairs])

    def exact(self, model: Any, rows: int = HELD_OUT_ROWS) -> float:
        """The share of this many held-out requests with an exact answer."""
        asked = self.pairs[-rows:]
        decoding = Decoding(self.tokens.stop_token_ids, self.tokens.pad_token_id, 40)
        prompts = [ask for ask, _ in asked]
        replies = generate(model.eval(), prompts, decoding, check_stop=lambda: None, on_progress=lambda _: None)
        return sum(reply == say for reply, (_, say) in zip(replies, asked, strict=True)) / len(asked)


def a_task(base: Path, folder: Path, *, as_text: bool = False) -> Task:
    """Create a task for a base model; missing tags become new tokens, or stay ordinary text."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    before = len(tokenizer)
    new = [] if as_text else [tag for tag in TAGS if tag not in tokenizer.get_vocab()]
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in new])
    tokenizer.save_pretrained(folder / "tokenizer")
    added = tuple(NewToken(before + at, tag) for at, tag in enumerate(new))
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    pairs = [(ids(ask), ids(say)) for ask, say in map(example, rows(TRAIN_ROWS + HELD_OUT_ROWS, seed=3, talk=0))]
    mode = "Text" if as_text else "Extend" if new else "Reuse"
    tokens = Tokens(mode, added, (stop, 1), 0, len(tokenizer))
    return Task(base, folder / "tokenizer", tokens, pairs)


def adapter(method: str, **settings: object) -> Adapter:
    """Return the spec of a method."""
    return Adapter.model_validate({"method": method, **settings})
