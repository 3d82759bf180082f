"""Parts of the GPU check that need more than the trainer image: other trainers on the same rows, and publishing."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunemill_trainer.gpu_check import parts
from tunemill_trainer.gpu_check.parts import CheckFailedError, Figures, Settings

_TUTORIAL_BATCH = 4
_WARM = 2

Rows = list[dict[str, list[int]]]


def tutorial(settings: Settings) -> Figures:
    """Train like the agents course: one row per forward pass, eager attention, checkpointing, loss on every token."""
    import torch

    model, rows = _start(settings, "eager")
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4)
    times, done = [], []
    for number, row in enumerate(rows, start=1):
        ids = torch.tensor([row["input_ids"]], device=model.device)
        mixed = torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda")
        with mixed:
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
        (loss / _TUTORIAL_BATCH).backward()
        if number % _TUTORIAL_BATCH == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            float(loss)  # synchronizes with the device, like a loop that prints its loss
            times.append(time.monotonic())
            done.append(sum(len(each["input_ids"]) for each in rows[number - _TUTORIAL_BATCH : number]))
    return _figures(settings, sum(done[_WARM:]), times[-1] - times[_WARM - 1])


def trl_defaults(settings: Settings) -> Figures:
    """Train with TRL's defaults: batches of eight padded rows, checkpointing, loss on every token."""
    return _trl(settings, packing=False)


def trl_packing(settings: Settings) -> Figures:
    """Train with TRL's packing: rows packed into blocks as long as the longest row."""
    return _trl(settings, packing=True)


def publish(settings: Settings) -> Figures:
    """Train, evaluate and publish to a local Hub, and check the pushed files."""
    import huggingface_hub.constants
    from huggingface_hub import HfApi
    from tunemill_trainer.gpu_check.harness import BASE, Clock, a_spec, set_up
    from tunemill_trainer.stages import evaluate, publish, train

    from tunemill_dev.hub.accounts import Accounts
    from tunemill_dev.hub.local import local_hub

    huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    token, organization = "a-token-of-alice", BASE.split("/", maxsplit=1)[0]
    accounts = Accounts.model_validate(
        {
            "users": {"alice": {organization: "write"}},
            "tokens": [{"value": token, "user": "alice", "role": "write"}],
        }
    )
    folder = Path(settings["folder"])
    harness = set_up(
        folder,
        parts.shape_of(settings),
        name=f"publish-{os.getpid()}",
        rows=int(settings["steps"]) * int(settings["batch"]),
        cases=int(settings["cases"]),
        device=settings["device"],
    )
    for purpose in ("hub-read", "hub-write"):
        (harness.folder / "secrets" / purpose).mkdir(parents=True)
        (harness.folder / "secrets" / purpose / "token").write_text(token)
    with tempfile.TemporaryDirectory() as data, local_hub(accounts, data=Path(data)) as hub:
        api = HfApi(endpoint=hub.url, token=token)
        api.create_repo(BASE)
        commit = api.upload_folder(repo_id=BASE, folder_path=harness.base).oid
        harness = harness.on_hub(hub.url, commit)
        spec = a_spec({"gpus": 1 if settings["device"] == "cuda" else 0, **settings}, harness.endpoint)
        for stage in (train, evaluate):
            stage.run(harness.context(spec, Clock()))
        published, _ = publish.run(harness.context(spec, Clock()))
        files = api.list_repo_files(published.repository, revision=published.revision)
    if "adapter_model.safetensors" not in files:
        raise CheckFailedError(f"expected adapter_model.safetensors on the Hub, found {', '.join(files)}")
    return {"files": len(files), "proof": published.serving.proof if published.serving else ""}


PARTS: dict[str, Callable[[Settings], Figures]] = {
    "tutorial": tutorial,
    "TRL defaults": trl_defaults,
    "TRL packing": trl_packing,
    "publish": publish,
}
"""The function of each kind of part."""


def _trl(settings: Settings, *, packing: bool) -> Figures:
    import datasets
    import torch
    from transformers import PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model, rows = _start(settings, None)
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc] # transformers ships no types
        def on_step_end(self, *_: object, **__: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.monotonic())

    data = datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(dir=settings["folder"], prefix="trl-"),
        num_train_epochs=1,
        bf16=settings["device"] == "cuda",
        use_cpu=settings["device"] == "cpu",
        packing=packing,
        max_length=max(len(row["input_ids"]) for row in rows),
        per_device_train_batch_size=int(settings["batch"]),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=data, processing_class=_tokenizer(settings), callbacks=[Clock()]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if len(times) < 2:
        raise CheckFailedError(f"expected two steps at least, found {len(times)}")
    warm = min(_WARM, len(times) - 1)
    # All steps have about the same number of tokens.
    tokens = sum(len(row["input_ids"]) for row in rows) * (len(times) - warm) / len(times)
    return _figures(settings, tokens, times[-1] - times[warm - 1])


def _start(settings: Settings, attention: str | None) -> tuple[Any, Rows]:
    """Return the base model with Tunemill's adapter, and the rows in Tunemill's order."""
    import pyarrow.parquet as pq
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from tunemill_trainer.learn.order import row_order

    harness = parts.harness_of(settings, str(settings["kind"]).replace(" ", "-"))
    named = {"attn_implementation": attention} if attention else {}
    dtype = torch.bfloat16 if settings["device"] == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(harness.base, dtype=dtype, device_map=settings["device"], **named)
    config = LoraConfig(r=16, lora_alpha=64, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = pq.read_table(harness.folder / "prepared" / "train.parquet").to_pylist()
    return get_peft_model(model, config), [rows[at] for at in row_order(harness.lengths, 42, len(rows))]


def _tokenizer(settings: Settings) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(parts.harness_of(settings, "tokenizer").base)


def _figures(settings: Settings, tokens: float, seconds: float) -> Figures:
    figures: Figures = {"tokensPerSecond": round(tokens / seconds, 1)}
    return figures | (parts.peaks() if settings["device"] == "cuda" else {})


if __name__ == "__main__":
    parts.main(sys.argv[1], PARTS)
