"""The environment in which the GPU check runs stages without a network: base model, prepared rows and workspace.

The stages run unmodified. The workspace is a local folder, and the base model is in the cache of huggingface_hub, with
HF_HUB_OFFLINE set.
"""

import hashlib
import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import DatasetFacts, PreparedFacts
from typing_extensions import override

from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Tool
from tunemill_trainer.gpu_check.shapes import LONGEST, MEDIAN, SHORTEST, SPREAD, SUPERVISED, Shape
from tunemill_trainer.prepared import IGNORED, BaseModel, Case, Prepared, PreparedWriter, Tokens
from tunemill_trainer.process.progress import Progress
from tunemill_trainer.process.ranks import Ranks
from tunemill_trainer.process.stop import StopSignal
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.storage.credentials import Credentials
from tunemill_trainer.storage.folder import Folder
from tunemill_trainer.storage.workspace import Workspace

BASE = "gpu-check/base"
PREPARED_KEY = "0123456789abcdef"
_COMMIT = hashlib.sha1(b"gpu-check", usedforsecurity=False).hexdigest()
_DIGEST = "0" * 64
_WORDS = 512
"""Size of the tokenizer's vocabulary. Rows contain higher token ids, too."""
_END = 1


class Clock(Progress):
    """Records progress reports with their time.

    Args:
        at_step: functions to call after a number of reports, for actions in the middle of a run.
    """

    def __init__(self, at_step: Mapping[int, Any] | None = None) -> None:
        super().__init__("gpu-check")
        self._at_step = at_step or {}
        self.reports: list[tuple[float, Mapping[str, object]]] = []

    @override
    def report(
        self, percent: float, eta_seconds: float | None = None, metrics: Mapping[str, object] | None = None
    ) -> None:
        """Record the time and the metrics of a report that has metrics."""
        if metrics:
            import torch

            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # wait until the GPU has finished the step
            self.reports.append((time.monotonic(), metrics))
            if (action := self._at_step.get(len(self.reports))) is not None:
                action()


@dataclass(frozen=True)
class Harness:
    """The environment of a run.

    Attributes:
        folder: the folder of this run.
        base: the folder of the base model.
        lengths: lengths of the training rows in tokens.
        prepared: the facts of prepare.
        endpoint: the Hub with the base model; empty if the model is in the cache.
        attempts: the stages that have run.
    """

    folder: Path
    base: Path
    lengths: tuple[int, ...]
    prepared: PreparedFacts
    endpoint: str = ""
    attempts: list[int] = field(default_factory=list)

    def context(self, spec: FineTuneSpec, clock: Clock, stop: StopSignal | None = None) -> StageContext:
        """Return the context of a stage, with a new work folder as in a new pod."""
        self.attempts.append(len(self.attempts))
        run = RunSpec(namespace="gpu-check", name="gpu-check", run_id="gpu-check", spec=spec, prepared=self.prepared)
        return StageContext(
            run=run,
            workspace=self.workspace(),
            work=self.folder / f"work-{len(self.attempts)}",
            credentials=Credentials(self.folder / "secrets"),
            progress=clock,
            ranks=Ranks(signal=stop),
        )

    def on_hub(self, endpoint: str, commit: str) -> "Harness":
        """Return the environment for a base model on a Hub at a commit."""
        facts = self.prepared.model_copy(update={"base_model_revision": commit})
        Prepared(self.folder / "prepared").base_model_path.write_text(json.dumps({"id": BASE, "revision": commit}))
        harness = replace(self, prepared=facts, endpoint=endpoint)
        harness.workspace().remove_manifest(Stage.PREPARE, PREPARED_KEY)
        harness.workspace().commit(Stage.PREPARE, PREPARED_KEY, self.folder / "prepared", facts)
        return harness

    def workspace(self) -> Workspace:
        """Return the workspace."""
        return Workspace(Folder(self.folder / "objects", "spec.workspace"))


def a_spec(settings: Mapping[str, Any], endpoint: str = "") -> FineTuneSpec:
    """Return a spec with the settings of a part: method, quantization, precision, batch, steps, gpus and more.

    Args:
        settings: the settings of the part.
        endpoint: the Hub; empty if the base model is in the cache.
    """
    lora = {"lora": {"dropout": str(settings.get("dropout", "0.05"))}} if settings["method"] == "LoRA" else {}
    return FineTuneSpec.model_validate(
        {
            "hub": {"endpoint": endpoint},
            "baseModel": {"id": BASE, "quantization": settings.get("quantization", "None")},
            "dataset": {"uri": "s3://gpu-check/rows.jsonl"},
            "publish": {"repository": "gpu-check/tuned"},
            "adapter": {"method": settings["method"], **lora},
            "training": {
                "batchSize": settings.get("batch", 8),
                "maxSteps": settings["steps"],
                "maxLength": LONGEST,
                "precision": settings.get("precision", "Auto"),
                "learningRate": "1e-4" if settings["method"] != "Full" else "1e-5",
                "divergence": "Ignore",
                "checkpoint": {"everySteps": 100_000, "everyMinutes": 0},
            },
            "compute": {"gpus": settings["gpus"]},
            "evaluation": {"maxNewTokens": settings.get("newTokens", 0), "gates": []},
        }
    )


def set_up(folder: Path, shape: Shape, *, name: str, rows: int, cases: int, device: str) -> Harness:
    """Create base model, prepared rows and workspace.

    Args:
        folder: where to create them. An existing base model in it, and HF_HOME, are reused.
        shape: the shape of the base model.
        name: name of the folder for everything else.
        rows: number of training rows.
        cases: number of held-out cases.
        device: where to create the weights.
    """
    base = folder / "hub" / "hub" / "models--gpu-check--base" / "snapshots" / _COMMIT
    if not (base / "config.json").exists():
        _make_base(base, shape, device)
    vocabulary = int(shape.config["vocab_size"])
    own = folder / name
    shutil.rmtree(own, ignore_errors=True)
    lengths, facts = _prepare(own, base, vocabulary, rows, cases)
    harness = Harness(own, base, lengths, facts)
    harness.workspace().commit(Stage.PREPARE, PREPARED_KEY, own / "prepared", facts)
    return harness


def _make_base(folder: Path, shape: Shape, device: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {name: value for name, value in shape.config.items() if name != "model_type"}
    special = {"pad_token_id": 0, "eos_token_id": _END, "bos_token_id": 2}
    config = AutoConfig.for_model(shape.config["model_type"], **settings, **special)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> Any:  # noqa: ANN401 - transformers ships no types
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    words = [*special.values(), *(f"w{at}" for at in range(len(special), _WORDS))]
    model = models.WordLevel({word: at for at, word in enumerate(words)}, words[0])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def _prepare(folder: Path, base: Path, vocabulary: int, rows: int, cases: int) -> tuple[tuple[int, ...], PreparedFacts]:
    draw = random.Random(0)  # noqa: S311 - no secret
    longest = min(LONGEST, vocabulary)  # rows of small shapes are shorter

    def row(highest: int) -> tuple[list[int], int]:
        scale = longest / LONGEST
        length = min(longest, max(SHORTEST, int(draw.lognormvariate(0, SPREAD) * MEDIAN * scale)))
        return [draw.randrange(16, highest) for _ in range(length - 1)] + [_END], int((1 - SUPERVISED) * length)

    output = folder / "prepared"
    lengths: list[int] = []
    tool = Tool("search", "Search.", {"type": "object", "properties": {"query": {"type": "string"}}})
    gold = Message(Role.ASSISTANT, "", calls=(Call("search", {"query": "x"}),))
    with PreparedWriter(output) as writer:
        for _ in range(rows):
            ids, prompt = row(vocabulary)
            writer.add_example(ids, [IGNORED] * prompt + ids[prompt:])
            lengths.append(len(ids))
        for at in range(cases):
            ids, prompt = row(_WORDS)
            # Rendered by the template, this message gives exactly these tokens, which publish verifies.
            messages = (Message(Role.USER, " ".join(f"w{at}" for at in ids[:prompt])),)
            writer.add_case(
                Case(f"rows.jsonl:{at + 1}#1", at, messages, (tool,), tuple(ids[:prompt]), gold, tuple(ids[prompt:]))
            )
        report: JsonObject = {
            "train": {"callsByTool": {"search": rows}, "rows": rows},
            "evaluation": {"callsByTool": {"search": cases}, "rows": cases},
            "findings": [],
        }
        writer.describe(Tokens("Reuse", (), (_END,), 0, vocabulary), BaseModel(BASE, _COMMIT), report)
    (output / "tokenizer").mkdir()
    for file in [*base.glob("*token*"), base / "chat_template.jinja"]:
        shutil.copy(file, output / "tokenizer" / file.name)
    facts = PreparedFacts(
        key=PREPARED_KEY,
        base_model_revision=_COMMIT,
        dataset_digest=_DIGEST,
        tokenizer_mode="Reuse",
        dataset=DatasetFacts(
            format="OpenAI",
            rows=rows + cases,
            train_rows=rows,
            evaluation_rows=cases,
            longest_row_tokens=max(lengths),
            supervised_token_percent=f"{100 * SUPERVISED:.1f}",
        ),
    )
    return tuple(lengths), facts
