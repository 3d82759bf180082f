"""How it is learnt: the adapter and the training."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import Fraction, Number, rule, rules


class AdapterMethod(StrEnum):
    """How the model is changed."""

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
    """The settings of a LoRA adapter, with PEFT's names."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """The rank r of the update matrices."""
    alpha: Annotated[int, Field(ge=1, le=2048)] = 64
    """The update is scaled by alpha / rank, or alpha / sqrt(rank) with rsLora."""
    dropout: Annotated[
        Fraction, Field(json_schema_extra=rules(rule("double(self) < 1.0", "adapter.lora.dropout must be below 1")))
    ] = "0.05"
    """The share of the adapter's inputs that is dropped in training."""
    target_modules: TargetModules = ["all-linear"]
    """The modules that get an adapter; all-linear means every linear layer but the output head."""
    rs_lora: bool = False
    """Scale by alpha / sqrt(rank), which keeps high ranks stable."""


class AdaLora(ApiModel):
    """The settings of an AdaLoRA adapter: LoRA that takes ranks away where they help least."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                # The API server checks the default {} before it fills in the fields' own defaults.
                "!has(self.targetRank) || !has(self.initialRank) || self.targetRank < self.initialRank",
                "adapter.adalora.targetRank must be below initialRank, or no rank is taken away",
            )
        )
    }

    initial_rank: Annotated[int, Field(ge=2, le=512)] = 24
    """The rank of every module at first. The first tenth of the steps keeps it."""
    target_rank: Annotated[int, Field(ge=1, le=511)] = 16
    """The mean rank in the last 30 % of the steps."""
    alpha: Annotated[int, Field(ge=1, le=2048)] = 64
    """The update is scaled by alpha / initialRank."""
    dropout: Annotated[
        Fraction, Field(json_schema_extra=rules(rule("double(self) < 1.0", "adapter.adalora.dropout must be below 1")))
    ] = "0.05"
    """The share of the adapter's inputs that is dropped in training."""
    target_modules: TargetModules = ["all-linear"]
    """The modules that get an adapter; all-linear means every linear layer but the output head."""


class Ia3(ApiModel):
    """The settings of an IA3 adapter: one factor for each output, or input, of a module."""

    target_modules: TargetModules = ["k_proj", "v_proj", "down_proj"]
    """The modules that get factors; all-linear means every linear layer but the output head."""
    feedforward_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ["down_proj"]
    """Those of the modules whose inputs are scaled instead of their outputs."""


class Adapter(ApiModel):
    """What is trained on top of the base model."""

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
    """LoRA, AdaLoRA and IA3 train a small adapter. Full trains the whole model and publishes a whole model. It takes 18
    bytes of GPU memory for each weight, or 6 if only that fits."""
    lora: Lora = Lora()
    """The settings of a LoRA adapter."""
    adalora: AdaLora = AdaLora()
    """The settings of an AdaLoRA adapter."""
    ia3: Ia3 = Ia3()
    """The settings of an IA3 adapter."""


class Scheduler(StrEnum):
    """How the learning rate moves after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class LossOn(StrEnum):
    """Which tokens the loss is computed on."""

    ASSISTANT = "Assistant"
    ALL = "All"


class Precision(StrEnum):
    """The number format of the base model's weights and of the computation."""

    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class Checkpoint(ApiModel):
    """How often training can be taken up again."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Save a checkpoint to the workspace after this many optimizer steps. One is also saved when the pod is asked to
    stop."""
    every_minutes: Annotated[int, Field(ge=0, le=1440)] = 15
    """Save a checkpoint to the workspace at the latest this many minutes after the last one, at the end of the
    optimizer step. A node that disappears without notice then costs at most this much work. 0: on steps only."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many checkpoints are kept in the workspace while training goes on."""


class EarlyStopping(ApiModel):
    """When training ends before its last epoch."""

    patience: Annotated[int, Field(ge=0, le=1000)] = 0
    """End after so many epochs without a lower loss on the held-out rows, and keep the best epoch; 0 never does."""


class Turns(StrEnum):
    """Which assistant turns of a row are learnt."""

    ALL = "All"
    LAST = "Last"


class Divergence(StrEnum):
    """What to do when the loss rises above that of guessing."""

    STOP = "Stop"
    IGNORE = "Ignore"


class Training(ApiModel):
    """The training run, with the names of Transformers and TRL."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                # The API server checks the default {} before it fills in the fields' own defaults.
                "!has(self.turns) || !has(self.lossOn) || self.turns == 'All' || self.lossOn == 'Assistant'",
                "training.turns Last needs lossOn Assistant: All learns every token",
            )
        )
    }

    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often every training row is seen."""
    max_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Train for so many optimizer steps instead of epochs; 0 means epochs."""
    learning_rate: Annotated[
        Number,
        Field(
            json_schema_extra=rules(
                rule(
                    "double(self) > 0.0 && double(self) <= 1.0",
                    'training.learningRate must lie above 0 and be at most 1, for example "1e-4"',
                )
            )
        ),
    ] = "1e-4"
    """The highest learning rate, reached after the warm-up."""
    scheduler: Scheduler = Scheduler.COSINE
    """How the learning rate moves after the warm-up."""
    warmup_ratio: Annotated[
        Fraction, Field(json_schema_extra=rules(rule("double(self) < 1.0", "training.warmupRatio must be below 1")))
    ] = "0.1"
    """The share of the steps in which the learning rate rises from 0."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """Rows per optimizer step."""
    max_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Tokens. Longer rows are left out and counted, never cut through a call."""
    loss_on: LossOn = LossOn.ASSISTANT
    """Assistant: learn what the assistant says, the end of its turn included. All: learn every token."""
    turns: Turns = Turns.ALL
    """All: learn each assistant turn of a row. Last: learn only the last one; those before it are history. Turns that
    the data itself says not to learn are never learnt."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Draws the adapter's first weights and the order of the rows."""
    precision: Precision = Precision.AUTO
    """Auto: BF16 if the GPU supports it, else FP16; FP32 for model families that FP16 breaks (Gemma 2 and 3,
    FunctionGemma, GLM-4, PLaMo 2) and on a CPU."""
    checkpoint: Checkpoint = Checkpoint()
    """How often training can be taken up again."""
    early_stopping: EarlyStopping = EarlyStopping()
    """When training ends before its last epoch."""
    divergence: Divergence = Divergence.STOP
    """Stop: end the run when the model has become worse than guessing, and name a learning rate to try. Ignore: go on.
    A loss that is no number ends the run in any case."""
