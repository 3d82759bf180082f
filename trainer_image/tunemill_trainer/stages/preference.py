"""The second phase of train, with spec.training.preference: the trained model learns from its own mistakes.

The model answers training prompts. Its wrong answers and the expected ones are pairs, on which DPO continues to train
the adapter. Of both adapters, the one that answers more validation rows exactly right is kept.

The adapter of the first phase and the pairs are uploaded as a checkpoint, one step after the last. An attempt that
resumes from it trains neither the first phase nor generates answers again. DPO itself starts from the beginning: it is
short, because there are at most `maxPrompts` pairs.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import datasets
import torch
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from tunemill_api.failures import Reason
from tunemill_api.finetune import Quantization
from tunemill_api.scalars import AUTO
from tunemill_api.status import PreferenceFacts, TrainedFacts
from tunemill_api.training import Preference
from typing_extensions import override

from tunemill_trainer.chat.tokenizer import load
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.comparison import sample
from tunemill_trainer.judge.metrics import score
from tunemill_trainer.judge.mistakes import Pair, mistakes, trained_turns
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.learn import checkpoints, devices, dpo, merging, models, sft
from tunemill_trainer.learn.adapter import adapter_config, save_trained
from tunemill_trainer.learn.answer_loss import summed_loss
from tunemill_trainer.learn.callbacks import ProgressReports
from tunemill_trainer.learn.checkpoints import Checkpoint
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.models import ModelLoader
from tunemill_trainer.learn.out_of_memory import release
from tunemill_trainer.learn.passes import answer_row
from tunemill_trainer.learn.plan import plan
from tunemill_trainer.prepared import Case, Prepared
from tunemill_trainer.process.stop import StopSignal
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.replies import ReplyProgress, as_replies, decoding_of, reply_ids
from tunemill_trainer.storage.base_files import ADAPTER_WEIGHTS

FEWEST_PAIRS = 8
"""With fewer pairs, there is too little to learn from."""
_VALIDATION_ROWS = 500
_STATE_FILE, _PAIRS_FILE, _OUTPUT = "preference.json", "pairs.jsonl", "output"
"""The files of the checkpoint, and its folder with the output of the first phase."""
_RECORD = "preference.jsonl"
"""The training log of DPO in the output of train."""
_AUTO_RATE = 0.1
"""The learning rate of Auto, as a fraction of the supervised training's. TRL recommends 1e-5 for DPO of a LoRA
adapter, and 1e-4 for its supervised training."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What both phases of train have in common.

    Attributes:
        context: of the stage.
        device: where it trains.
        dtype: the number format of the computation.
        prepared: the output of prepare.
        base_folder: the folder of the base model.
    """

    context: StageContext
    device: Device
    dtype: torch.dtype
    prepared: Prepared
    base_folder: Path

    def loader(self) -> ModelLoader:
        """Return a loader of models for inference."""
        quantization = self.context.spec.base_model.quantization
        return ModelLoader(self.base_folder, self.device, self.dtype, quantization)


@dataclass(frozen=True)
class Quality:
    """The quality of an adapter on the validation rows.

    Attributes:
        cases: the number of assistant turns.
        right: how many of the model's answers to them are exactly right.
        loss: the mean loss on the expected answers.
    """

    cases: int
    right: int
    loss: float

    def better_than(self, other: "Quality") -> bool:
        """Return whether more answers are exactly right."""
        return self.right > other.right

    @property
    def exact(self) -> str:
        """The fraction of the answers that are exactly right, with four decimals."""
        return f"{self.right / self.cases:.4f}"


@dataclass(frozen=True)
class Begun:
    """The state after the model has answered.

    Attributes:
        trained: the facts of the first phase.
        prompts: the number of training prompts that the model answered.
        before: the quality of its adapter.
        pairs: its mistakes.
    """

    trained: TrainedFacts
    prompts: int
    before: Quality
    pairs: list[Pair]

    def save(self, folder: Path) -> None:
        """Write the state into the folder of a checkpoint."""
        state = {
            "trained": self.trained.model_dump(mode="json"),
            "prompts": self.prompts,
            "before": asdict(self.before),
        }
        (folder / _STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
        lines = (json.dumps(pair.to_json()) + "\n" for pair in self.pairs)
        (folder / _PAIRS_FILE).write_text("".join(lines), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
        with (folder / _PAIRS_FILE).open(encoding="utf-8") as lines:
            pairs = [Pair.from_json(json.loads(line)) for line in lines]
        return cls(TrainedFacts.model_validate(state["trained"]), state["prompts"], Quality(**state["before"]), pairs)


def is_begun(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is that of this phase."""
    return (checkpoint.folder / _STATE_FILE).exists()


def resume(checkpoint: Checkpoint, output: Path) -> Begun:
    """Restore the output of the first phase and the state from a checkpoint of this phase."""
    shutil.copytree(checkpoint.folder / _OUTPUT, output, dirs_exist_ok=True)
    begun = Begun.load(checkpoint.folder)
    trained = begun.trained.model_copy(update={"resumed_from_step": begun.trained.steps})
    return Begun(trained, begun.prompts, begun.before, begun.pairs)


def begin(setting: Setting, trained: TrainedFacts, rows: datasets.Dataset, output: Path) -> Begun:
    """Let the trained model answer training prompts and validation rows, and upload the result as a checkpoint.

    Args:
        setting: the device and the models.
        trained: the facts of the first phase.
        rows: the training rows.
        output: the output of the first phase.

    Raises:
        StageError: Interrupted, before the upload; CudaOutOfMemory.
    """
    context, preference = setting.context, setting.context.spec.training.preference
    assert preference is not None
    started = time.monotonic()
    tokens, tokenizer = setting.prepared.tokens(), load(setting.prepared.tokenizer_path)
    reply_format, cases = ReplyFormat(tokens.call_format), _validation_cases(setting.prepared)
    stops = decoding_of([1], tokens, 0)
    turns = trained_turns(
        rows,
        lambda ids: as_replies(tokenizer, [ids], stops)[0].text,
        reply_format,
        limit=preference.max_prompts,
        seed=context.spec.training.seed,
    )
    settings = decoding_of([len(turn.answer_ids) for turn in turns] or [1], tokens, context.run.memory_kills)
    progress = ReplyProgress(context, len(turns) + 2 * len(cases))
    with devices.device_errors(setting.device, "answering training prompts", devices.memory_remedy(context.spec)):
        model, loader = _for_decoding(setting, output / "adapter", cases)
        _log.info("the model answers %d training prompts", len(turns))
        answers = reply_ids(model, [turn.prompt_ids for turn in turns], settings, progress)
        before = _quality(setting, model, cases, progress)
        del model
        loader.release()
    replies = as_replies(tokenizer, answers, settings)
    pairs = mistakes(turns, answers, replies, reply_format, context.spec.training.max_length)
    seconds = trained.train_seconds + math.ceil(time.monotonic() - started)
    begun = Begun(trained.model_copy(update={"train_seconds": seconds}), len(turns), before, pairs)
    _log.info("%d of %d answers are pairs with the expected ones", len(pairs), len(turns))
    _upload(context, begun, output)
    return begun


def finish(setting: Setting, begun: Begun, output: Path) -> TrainedFacts:
    """Train on the pairs, and replace the adapter in `output` if the result is better.

    Raises:
        StageError: Interrupted.
    """
    trained, context = begun.trained, setting.context
    facts = PreferenceFacts(
        prompts=begun.prompts,
        pairs=len(begun.pairs),
        cases=begun.before.cases,
        exact_before=begun.before.exact,
        loss_before=f"{begun.before.loss:.4f}",
    )
    if len(begun.pairs) < FEWEST_PAIRS:
        note = f"not trained: fewer than {FEWEST_PAIRS} wrong answers"
        _log.info("preference training: %s", note)
        return trained.model_copy(update={"preference": facts.model_copy(update={"note": note})})
    started, folder = time.monotonic(), context.folder("preferred")
    try:
        result, rate = _train(setting, begun, output / "adapter", folder)
    except StageError as error:
        if error.reason not in {Reason.CUDA_OUT_OF_MEMORY, Reason.OUT_OF_MEMORY}:
            raise
        # The first phase may have taken hours, and its adapter is complete.
        _log.warning("preference training: %s", error)
        note = f"not trained: {error}"
        return trained.model_copy(update={"preference": facts.model_copy(update={"note": note})})
    lines = (json.dumps(entry) + "\n" for entry in result.history)
    (output / _RECORD).write_text("".join(lines), encoding="utf-8")
    steps = result.steps
    del result
    release()
    after = _measure(setting, folder)
    kept = after.better_than(begun.before)
    _log.info(
        "exactly right validation answers: %d of %d before preference training, %d after: the result is %s",
        *(begun.before.right, after.cases, after.right),
        "kept" if kept else "discarded",
    )
    if kept:
        shutil.rmtree(output / "adapter")
        shutil.copytree(folder, output / "adapter")
    facts = facts.model_copy(
        update={
            "steps": steps,
            "learning_rate": rate,
            "exact_after": after.exact,
            "loss_after": f"{after.loss:.4f}",
            "kept": kept,
        }
    )
    seconds = trained.train_seconds + math.ceil(time.monotonic() - started)
    return trained.model_copy(update={"preference": facts, "train_seconds": seconds})


def _train(setting: Setting, begun: Begun, adapter: Path, folder: Path) -> tuple[dpo.Result, str]:
    """Train on the pairs and save the adapter into `folder`; return the result and the peak learning rate."""
    context, spec = setting.context, setting.context.spec
    preference = spec.training.preference
    assert preference is not None
    rate = _learning_rate(preference, begun.trained.learning_rate)
    training = spec.training.model_copy(update={"learning_rate": rate, "epochs": preference.epochs, "max_steps": 0})
    schedule, tokens = plan(training, len(begun.pairs), context.run.memory_kills), setting.prepared.tokens()
    with devices.device_errors(setting.device, "preference training", devices.memory_remedy(spec)):
        model = models.load_base(setting.base_folder, setting.device, setting.dtype, spec.base_model.quantization)
        models.extend_vocabulary(model, tokens)
        config = adapter_config(spec.adapter, model, tokens, schedule.steps)
        assert config is not None
        result = dpo.train(
            sft.Run(
                training=training,
                plan=schedule,
                device=setting.device,
                dtype=setting.dtype,
                folder=context.folder("preference-steps"),
                advice=partial(devices.memory_remedy, spec),
                start=adapter / ADAPTER_WEIGHTS,
            ),
            model,
            adapter=config,
            tokenizer=AutoTokenizer.from_pretrained(setting.prepared.tokenizer_path),
            pairs=begun.pairs,
            beta=float(preference.beta),
            callbacks=[
                ProgressReports(context.progress, len(begun.pairs) / training.batch_size),
                _CheckStop(context.stop),
            ],
        )
    dtype = models.stored_dtype(setting.base_folder)
    save_trained(result.model, setting.prepared.base_model(), setting.prepared.tokenizer_path, folder, dtype)
    return result, rate


def _learning_rate(preference: Preference, supervised: str) -> str:
    """Return the peak learning rate; `supervised` is that of the first phase."""
    return preference.learning_rate if preference.learning_rate != AUTO else f"{_AUTO_RATE * float(supervised):.3g}"


def _validation_cases(prepared: Prepared) -> list[Case]:
    return sample(prepared.validation_cases(), _VALIDATION_ROWS)


def _for_decoding(setting: Setting, adapter: Path, cases: Sequence[Case]) -> tuple[Any, ModelLoader]:
    """Return the base model with an adapter, merged if that is accurate enough, and the loader that holds it."""
    loader = setting.loader()
    samples = [(*case.prompt_ids, *case.answer_ids) for case in cases]
    quantised = setting.context.spec.base_model.quantization is not Quantization.NONE
    load_tuned = partial(loader.tuned, adapter, setting.prepared.tokens())
    model, _ = merging.for_decoding(load_tuned, samples, quantised=quantised)
    return model, loader


def _measure(setting: Setting, adapter: Path) -> Quality:
    cases = _validation_cases(setting.prepared)
    remedy = devices.memory_remedy(setting.context.spec)
    with devices.device_errors(setting.device, "answering validation rows", remedy):
        model, _ = _for_decoding(setting, adapter, cases)
        return _quality(setting, model, cases, ReplyProgress(setting.context, 2 * len(cases)))


def _quality(setting: Setting, model: Any, cases: Sequence[Case], progress: ReplyProgress) -> Quality:  # noqa: ANN401
    """Measure the quality of a model on the validation rows."""
    tokens, tokenizer = setting.prepared.tokens(), load(setting.prepared.tokenizer_path)
    settings = decoding_of([case.answer_tokens for case in cases], tokens, progress.memory_kills)
    ids = reply_ids(model, [case.prompt_ids for case in cases], settings, progress)
    verdicts = score(cases, as_replies(tokenizer, ids, settings), ReplyFormat(tokens.call_format)).verdicts
    loss = summed_loss(
        model,
        [answer_row(case.prompt_ids, case.answer_ids) for case in cases],
        progress.ranks,
        memory_kills=progress.memory_kills,
        check_stop=progress.check_stop,
        on_progress=progress.of_rank(len(cases)),
    )
    return Quality(
        len(cases), sum(verdict.right for verdict in verdicts), loss / sum(case.answer_tokens for case in cases)
    )


def _upload(context: StageContext, begun: Begun, output: Path) -> None:
    folder, step = context.folder("preference-checkpoint"), begun.trained.steps + 1
    shutil.copytree(output, folder / _OUTPUT, copy_function=os.link)
    begun.save(folder)
    checkpoints.write_clock(folder, begun.trained.train_seconds)
    with checkpoints.Uploads(context.workspace, context.train_key, context.spec.training.checkpoint.keep) as uploads:
        uploads.put(folder, step)


class _CheckStop(TrainerCallback):  # type: ignore[misc] # transformers ships no types
    """Ends the attempt after the current step, once there is a request to stop."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raise Interrupted if there was a request to stop."""
        self._stop.check()
