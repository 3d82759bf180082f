"""Fine-tuning method and training hyperparameters."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, JsonValue

from tunemill_api.base import ApiModel
from tunemill_api.scalars import AUTO, Fraction, NumberOrAuto, rule, rules


class AdapterMethod(StrEnum):
    """Fine-tuning method."""

    LORA = "LoRA"
    IA3 = "IA3"
    ADALORA = "AdaLoRA"
    FULL = "Full"


TargetModules = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=128)]],
    Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
]
"""Names of modules, or [all-linear]."""


class Lora(ApiModel):
    """Settings of a LoRA adapter, with the names that PEFT uses."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank r of the update matrices."""
    alpha: Annotated[int, Field(ge=1, le=2048)] = 64
    """Scaling factor. The update is scaled by alpha / rank, or by alpha / sqrt(rank) with rsLora."""
    dropout: Annotated[
        Fraction, Field(json_schema_extra=rules(rule("double(self) < 1.0", "adapter.lora.dropout must be below 1")))
    ] = "0.05"
    """Dropout probability of the adapter's inputs in training."""
    target_modules: TargetModules = ["all-linear"]
    """Modules that get an adapter. all-linear: every linear layer except the output head."""
    rs_lora: bool = False
    """Use rank-stabilized LoRA: scale by alpha / sqrt(rank), which keeps high ranks stable."""


class AdaLora(ApiModel):
    """Settings of an AdaLoRA adapter, which reduces the rank of the modules that contribute least."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                # The API server checks the default {} before it fills in the fields' own defaults.
                "!has(self.targetRank) || !has(self.initialRank) || self.targetRank < self.initialRank",
                "adapter.adalora.targetRank must be below adapter.adalora.initialRank",
            )
        )
    }

    initial_rank: Annotated[int, Field(ge=2, le=512)] = 24
    """Initial rank of every module. It is kept for the first tenth of the steps."""
    target_rank: Annotated[int, Field(ge=1, le=511)] = 16
    """Mean rank in the last 30 % of the steps."""
    alpha: Annotated[int, Field(ge=1, le=2048)] = 64
    """Scaling factor. The update is scaled by alpha / initialRank."""
    dropout: Annotated[
        Fraction, Field(json_schema_extra=rules(rule("double(self) < 1.0", "adapter.adalora.dropout must be below 1")))
    ] = "0.05"
    """Dropout probability of the adapter's inputs in training."""
    target_modules: TargetModules = ["all-linear"]
    """Modules that get an adapter. all-linear: every linear layer except the output head."""


class Ia3(ApiModel):
    """Settings of an IA3 adapter, which scales the outputs, or the inputs, of modules."""

    target_modules: TargetModules = ["k_proj", "v_proj", "down_proj"]
    """Modules that are scaled. all-linear: every linear layer except the output head."""
    feedforward_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ["down_proj"]
    """Target modules whose inputs are scaled instead of their outputs."""


class Adapter(ApiModel):
    """Fine-tuning method and its settings."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                # The API server checks the default {} before it fills in the fields' own defaults.
                "!has(self.lora) || !has(self.method) || self.method == 'LoRA'",
                "adapter.lora may only be set with adapter.method LoRA: remove it, or choose LoRA",
            ),
            rule(
                "!has(self.adalora) || (has(self.method) && self.method == 'AdaLoRA')",
                "adapter.adalora may only be set with adapter.method AdaLoRA: remove it, or choose AdaLoRA",
            ),
            rule(
                "!has(self.ia3) || (has(self.method) && self.method == 'IA3')",
                "adapter.ia3 may only be set with adapter.method IA3: remove it, or choose IA3",
            ),
        )
    }

    method: AdapterMethod = AdapterMethod.LORA
    """Fine-tuning method. LoRA, AdaLoRA and IA3 train a small adapter. Full trains and publishes the whole model; it
    needs 18 bytes of GPU memory per weight, or 6 if only that fits."""
    lora: Lora = Lora()
    """Settings of a LoRA adapter. Only with method LoRA."""
    adalora: AdaLora = AdaLora()
    """Settings of an AdaLoRA adapter. Only with method AdaLoRA."""
    ia3: Ia3 = Ia3()
    """Settings of an IA3 adapter. Only with method IA3."""


def _rate_rule(field: str, example: str) -> dict[str, JsonValue]:
    return rules(
        rule(
            f"self == '{AUTO}' || (double(self) > 0.0 && double(self) <= 1.0)",
            f'{field} must lie above 0 and be at most 1, for example "{example}", or be Auto',
        )
    )


class Scheduler(StrEnum):
    """Learning rate schedule after the warmup."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class LossOn(StrEnum):
    """Tokens on which the loss is computed."""

    ASSISTANT = "Assistant"
    ALL = "All"


class Precision(StrEnum):
    """Number format of the base model's weights and of the computation."""

    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class Checkpoint(ApiModel):
    """How often checkpoints are saved, and how many are kept."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Save a checkpoint to the workspace after this many optimizer steps. A checkpoint is also saved when the pod
    receives SIGTERM."""
    every_minutes: Annotated[int, Field(ge=0, le=1440)] = 15
    """Save a checkpoint to the workspace when this many minutes have passed since the last one, at the end of the
    optimizer step. It limits the work that is lost when a node disappears without notice. 0: only after everySteps."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """Number of checkpoints that are kept in the workspace during training."""


class EarlyStopping(ApiModel):
    """When training stops before its last epoch."""

    patience: Annotated[int, Field(ge=0, le=1000)] = 0
    """Stop after this many epochs without a lower loss on the rows of dataset.validation, or on the held-out rows if it
    is absent, and keep the best epoch. 0: no early stopping."""


class Turns(StrEnum):
    """Assistant turns on which the loss is computed."""

    ALL = "All"
    LAST = "Last"


class Divergence(StrEnum):
    """What to do if the loss rises above that of random guessing."""

    STOP = "Stop"
    IGNORE = "Ignore"


class PreferenceMethod(StrEnum):
    """Method of preference training."""

    DPO = "DPO"


class Preference(ApiModel):
    """Preference training on the model's own mistakes, after the supervised training."""

    method: PreferenceMethod = PreferenceMethod.DPO
    """Method. DPO: direct preference optimization, with the adapter of the supervised training as the reference."""
    max_prompts: Annotated[int, Field(ge=16, le=100_000)] = 1000
    """Maximum number of training prompts that the model answers, a random sample. Every wrong answer becomes a pair in
    which the expected answer is preferred to it."""
    beta: Annotated[
        Fraction,
        Field(json_schema_extra=rules(rule("double(self) > 0.0", "training.preference.beta must be above 0"))),
    ] = "0.1"
    """Strength with which the model is kept close to the reference, above 0 and at most 1. Lower values change it
    more."""
    learning_rate: Annotated[
        NumberOrAuto, Field(json_schema_extra=_rate_rule("training.preference.learningRate", "1e-5"))
    ] = AUTO
    """Peak learning rate. Auto: a tenth of the rate of the supervised training."""
    epochs: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of passes over the pairs."""


class Training(ApiModel):
    """Training hyperparameters, with the names that Transformers and TRL use."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "!has(self.preference) || !has(self.lossOn) || self.lossOn == 'Assistant'",
                "training.preference requires training.lossOn Assistant: other tokens are no expected answers",
            ),
            rule(
                # The API server checks the default {} before it fills in the fields' own defaults.
                "!has(self.turns) || !has(self.lossOn) || self.turns == 'All' || self.lossOn == 'Assistant'",
                "training.turns Last requires training.lossOn Assistant: with All the loss is computed on all tokens",
            ),
        )
    }

    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of passes over the training rows."""
    max_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Number of optimizer steps, used instead of epochs. 0: use epochs."""
    learning_rate: Annotated[NumberOrAuto, Field(json_schema_extra=_rate_rule("training.learningRate", "1e-4"))] = AUTO
    """Peak learning rate, reached after the warmup. Auto: a rate for the method and for the base model's number of
    weights, for example 1e-4 for LoRA and 1e-5 for Full on 8 billion weights. The field `trained` of train's entry in
    status.stages has the rate that was used."""
    scheduler: Scheduler = Scheduler.COSINE
    """Learning rate schedule after the warmup."""
    warmup_ratio: Annotated[
        Fraction, Field(json_schema_extra=rules(rule("double(self) < 1.0", "training.warmupRatio must be below 1")))
    ] = "0.1"
    """Fraction of the steps in which the learning rate rises from 0."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """Number of rows per optimizer step."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Maximum number of tokens in a row. Longer rows are left out and counted; rows are never truncated."""
    loss_on: LossOn = LossOn.ASSISTANT
    """Tokens on which the loss is computed. Assistant: the assistant messages, including the end-of-turn token. All:
    all tokens."""
    turns: Turns = Turns.ALL
    """Assistant turns of a row on which the loss is computed. All: every turn. Last: only the last turn; earlier turns
    are context. Turns that the data marks as not to be trained on are always excluded."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Random seed of the adapter's initial weights and of the order of the rows."""
    precision: Precision = Precision.AUTO
    """Number format of the base model's weights and of the computation. Auto: BF16 if the GPU supports it, else FP16;
    FP32 on a CPU and for model families that do not work in FP16 (Gemma 2 and 3, FunctionGemma, GLM-4, PLaMo 2)."""
    checkpoint: Checkpoint = Checkpoint()
    """How often checkpoints are saved, and how many are kept."""
    early_stopping: EarlyStopping = EarlyStopping()
    """When training stops before its last epoch."""
    divergence: Divergence = Divergence.STOP
    """What to do if the loss rises above that of random guessing. Stop: fail the run and suggest a learning rate.
    Ignore: continue. A loss that is NaN or infinite fails the run in every case."""
    preference: Preference | None = None
    """Preference training on the model's own mistakes, after the supervised training. The result is kept only if it
    answers more rows of dataset.validation exactly right. With adapter.method LoRA or IA3, on one GPU or the CPU of one
    pod. Absent: supervised training only."""
