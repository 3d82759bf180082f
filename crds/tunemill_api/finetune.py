"""What users write: the spec of a FunctionCallFineTune. The CRD's schema, defaults and rules are made from it."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.compute import Compute
from tunemill_api.scalars import (
    ConfigMapKeyRef,
    DataUri,
    Difference,
    Duration,
    Endpoint,
    Fraction,
    HubId,
    Number,
    OptionalDataUri,
    SecretKeyRef,
    SecretRef,
    rule,
    rules,
)


class Hub(ApiModel):
    """Which Hugging Face Hub to speak to."""

    endpoint: Endpoint = ""
    """The Hub's URL, for a mirror or a Hub of your own; empty means huggingface.co."""


class Quantization(StrEnum):
    """How the base model's linear layers are kept in memory while they are not trained."""

    NONE = "None"
    NF4 = "NF4"
    INT8 = "Int8"


class BaseModelRef(ApiModel):
    """The model to fine-tune."""

    id: HubId
    """The base model's repository on the Hub, for example google/gemma-2-2b-it."""
    revision: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][-._/A-Za-z0-9]*$")] = "main"
    """Branch, tag or commit. Prepare resolves it to a commit, which every later stage uses."""
    token_secret_ref: SecretKeyRef | None = None
    """A read token, for gated and private models."""
    quantization: Quantization = Quantization.NONE
    """Train and judge on a base model with weights of 4 bits (NF4) or 8 (Int8), in about a third or a half of the
    memory. What is trained stays in FP32, and what is published fits the unquantised model, too."""


class DatasetFormat(StrEnum):
    """How the rows say who said what, and which tools were called."""

    AUTO = "Auto"
    OPENAI = "OpenAI"
    HERMES = "Hermes"
    SHAREGPT = "ShareGPT"
    XLAM = "XLAM"
    TOOLACE = "ToolACE"
    GLAIVE = "Glaive"
    SIMPLE = "Simple"


class EvaluationSplit(ApiModel):
    """Which rows are held out from training and judged."""

    fraction: Annotated[
        Fraction,
        Field(
            json_schema_extra=rules(
                rule(
                    "double(self) > 0.0 && double(self) < 1.0",
                    'evaluation.fraction must lie between 0 and 1, for example "0.1"',
                )
            )
        ),
    ] = "0.1"
    """The share of the rows that is held out. Rows that ask the same always fall on the same side."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Chooses which rows are held out."""
    uri: OptionalDataUri = ""
    """Where the held-out rows are, instead of a share of the training rows; written as dataset.uri and read with the
    same credentials."""


class Dataset(ApiModel):
    """Where the rows are and what they look like."""

    uri: DataUri
    """An S3 object (.jsonl, .json or .parquet, also with .gz), a prefix that ends in / for all such objects below it,
    or a glob such as s3://bucket/calls/*.jsonl. Or a data set on the Hub: hf://owner/name, hf://owner/name@revision,
    hf://owner/name/data/*.parquet; it is read with the token of baseModel.tokenSecretRef."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Auto looks at the rows. OpenAI: messages, tools. Hermes: conversations with tags, as the Hermes and agents-course
    data have them. ShareGPT: conversations with from and value. XLAM: query, answers, tools. ToolACE: system,
    conversations. Glaive: system, chat. Simple: user_content, tool_name, tool_arguments."""
    credentials_secret_ref: SecretRef | None = None
    """Absent: the pod's own identity."""
    endpoint: Endpoint = ""
    """The S3 server's URL; empty means AWS."""
    region: Annotated[str, Field(max_length=64, pattern=r"^[-a-z0-9]*$")] = ""
    """The bucket's region; empty means what the environment says."""
    evaluation: EvaluationSplit = EvaluationSplit()
    """Which rows are held out from training and judged."""
    max_invalid_fraction: Fraction = "0"
    """The share of rows that may be wrong and is left out; above it prepare fails and names the rows."""
    max_rows: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """How many rows to use at most, from the start; 0 means all."""


class Tools(ApiModel):
    """Where the tools come from that are the same for all rows."""

    config_map_key_ref: ConfigMapKeyRef
    """A JSON list of tools, as OpenAI's API takes them."""


class Think(StrEnum):
    """What to do with what an assistant thinks before it speaks or calls."""

    KEEP = "Keep"
    DROP = "Drop"


class TokenizerMode(StrEnum):
    """What to do about the tags of the call format."""

    AUTO = "Auto"
    REUSE = "Reuse"
    TEXT = "Text"
    EXTEND = "Extend"


class ChatTemplateSource(ApiModel):
    """Where a chat template of your own comes from."""

    config_map_key_ref: ConfigMapKeyRef
    """A Jinja chat template. Everything that the loss is computed on stands between {% generation %} and {%
    endgeneration %}."""


class Tokenizer(ApiModel):
    """The vocabulary and the chat template."""

    mode: TokenizerMode = TokenizerMode.AUTO
    """Reuse: every tag that the assistant writes must be one token already. Text: tags that the base lacks stay
    ordinary text of several tokens each; the vocabulary is the base's own, so that servers take the adapter alone.
    Extend: add the missing tags and train their rows. Auto: Reuse where possible, else Extend."""
    add_tokens: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64)]],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """More tokens to add, besides the tags of the call format that the base lacks."""
    chat_template: ChatTemplateSource | None = None
    """A template of your own; absent: the base model's where it carries tools, else ours."""
    think: Think = Think.KEEP
    """Keep: learn what the assistant thinks, as think → act → observe data have it. Drop: leave it out, for a model
    that answers at once."""


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

    method: AdapterMethod = AdapterMethod.LORA
    """LoRA, AdaLoRA and IA3 train a small adapter. Full trains the whole model, with 16 bytes of memory for each of its
    weights, and publishes a whole model."""
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
    """A checkpoint goes to the workspace after so many optimizer steps, and when the pod is asked to stop."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many checkpoints are kept in the workspace while training goes on."""


class EarlyStopping(ApiModel):
    """When training ends before its last epoch."""

    patience: Annotated[int, Field(ge=0, le=1000)] = 0
    """End after so many epochs without a lower loss on the held-out rows, and keep the best epoch; 0 never does."""


class Divergence(StrEnum):
    """What to do when the loss rises above that of guessing."""

    STOP = "Stop"
    IGNORE = "Ignore"


class Training(ApiModel):
    """The training run, with the names of Transformers and TRL."""

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
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Draws the adapter's first weights and the order of the rows."""
    precision: Precision = Precision.AUTO
    """Auto: BF16 where the GPU has it, else FP16; FP32 on a CPU."""
    checkpoint: Checkpoint = Checkpoint()
    """How often training can be taken up again."""
    early_stopping: EarlyStopping = EarlyStopping()
    """When training ends before its last epoch."""
    divergence: Divergence = Divergence.STOP
    """Stop: end the run when the model has become worse than guessing, and name a learning rate to try. Ignore: go on.
    A loss that is no number ends the run in any case."""


class Metric(StrEnum):
    """What gates can be set on.

    All are shares from 0 to 1, measured on the held-out rows; of those in LOWER_IS_BETTER less is better.
    """

    TOOL_NAME_ACCURACY = "tool_name_accuracy"
    EXACT_MATCH = "exact_match"
    AST_MATCH = "ast_match"
    VALID_CALL_RATE = "valid_call_rate"
    SCHEMA_VALID_RATE = "schema_valid_rate"
    PARALLEL_ACCURACY = "parallel_accuracy"
    ABSTENTION_ACCURACY = "abstention_accuracy"
    TOOL_F1 = "tool_f1"
    MISSED_CALL_RATE = "missed_call_rate"
    OVER_CALL_RATE = "over_call_rate"
    HALLUCINATED_TOOL_RATE = "hallucinated_tool_rate"


LOWER_IS_BETTER = frozenset({Metric.MISSED_CALL_RATE, Metric.OVER_CALL_RATE, Metric.HALLUCINATED_TOOL_RATE})
"""The metrics that count mistakes."""

_COUNTS_MISTAKES = f"self.metric in {sorted(metric.value for metric in LOWER_IS_BETTER)}"


class Gate(ApiModel):
    """A condition on one metric of the tuned model."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "has(self.min) || has(self.max) || has(self.minGainOverBase) || has(self.maxLossVsBase)",
                "a gate needs at least one of min, max, minGainOverBase and maxLossVsBase",
            ),
            rule(
                f"!has(self.min) || !({_COUNTS_MISTAKES})",
                "a gate on a metric that counts mistakes needs max in place of min: less is better",
            ),
            rule(
                f"!has(self.max) || {_COUNTS_MISTAKES}",
                "a gate can have max only on missed_call_rate, over_call_rate and hallucinated_tool_rate: of the "
                "other metrics more is better",
            ),
        )
    }

    metric: Metric
    """What is measured."""
    min: Fraction | None = None
    """The tuned model must reach this."""
    max: Fraction | None = None
    """The tuned model must not be above this; for missed_call_rate, over_call_rate and hallucinated_tool_rate."""
    min_gain_over_base: Difference | None = None
    """The tuned model must be better than the base model by this much."""
    max_loss_vs_base: Fraction | None = None
    """The tuned model may be worse than the base model by this much at most."""


class OnGateFailure(StrEnum):
    """What to do when a gate is not passed."""

    HOLD = "Hold"
    DRAFT = "Draft"
    FAIL = "Fail"


class Evaluation(ApiModel):
    """How base and tuned model are compared, and what the tuned one must reach to be published."""

    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """How many held-out rows are judged at most."""
    max_new_tokens: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Tokens that a reply may have; 0 means enough for the longest held-out answer."""
    gates: Annotated[list[Gate], Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"})] = [
        Gate(metric=Metric.EXACT_MATCH, min_gain_over_base="0")
    ]
    """All must be passed before anything is published. Default: not worse than the base model."""
    on_gate_failure: OnGateFailure = OnGateFailure.HOLD
    """Hold: keep the result and wait for a change of the gates. Draft: do so, and push it to the branch
    tunemill-draft-KEY of spec.publish.repository for people to look at, never to spec.publish.branch and without a tag;
    a repository that must be created for it is private. Fail: end the run as failed."""


class Artifact(StrEnum):
    """What is pushed to the Hub."""

    AUTO = "Auto"
    ADAPTER = "Adapter"
    MERGED = "Merged"
    REPORT = "Report"


class ServingTarget(StrEnum):
    """The server that will run the model."""

    VLLM = "vLLM"
    TRANSFORMERS = "Transformers"
    NONE = "None"


class Publish(ApiModel):
    """Where the result goes."""

    repository: Annotated[
        str, Field(max_length=96, pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]{0,88}$")
    ]
    """The repository on the Hub, owner/name. It is created when it does not exist."""
    private: bool = True
    """Whether a repository that is created is private."""
    branch: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][-._/A-Za-z0-9]*$")] = "main"
    """The branch that is pushed to. It is created when it does not exist."""
    tag: Annotated[str, Field(max_length=100, pattern=r"^([A-Za-z0-9][-._A-Za-z0-9]*)?$")] = ""
    """A tag for the pushed commit, for example v1; empty means none."""
    artifacts: Annotated[
        list[Artifact],
        Field(
            min_length=1,
            max_length=4,
            json_schema_extra={
                "x-kubernetes-list-type": "set",
                **rules(
                    rule(
                        "self.exists(a, a != 'Report')",
                        "publish.artifacts needs Auto, Adapter or Merged: a report alone is no model",
                    )
                ),
            },
        ),
    ] = [Artifact.AUTO]
    """Adapter: the adapter. Merged: the whole model, base and adapter in one; beside an adapter it has a repository of
    its own, named after the other with -merged at its end. Report: report.html with held-out rows in it, for the eyes
    of all who can read the repository. Auto: the adapter, and the merged model where spec.publish.serving needs it.
    With spec.adapter.method Full there is only the whole model, whichever is asked for."""
    serving: ServingTarget = ServingTarget.VLLM
    """What the serving contract is for: vLLM, Transformers' own `transformers serve`, or None."""
    token_secret_ref: SecretKeyRef = SecretKeyRef(name="hf-write")
    """A token that may write to the repository's namespace. The GPU pod never sees it."""


class Workspace(ApiModel):
    """Where the outputs of the stages are kept."""

    uri: Annotated[str, Field(max_length=1024, pattern=r"^(s3://[a-z0-9][-.a-z0-9]{1,61}[a-z0-9](/[^*?]*)?)?$")] = ""
    """An S3 prefix; empty means tunemill/ in the dataset's bucket, with the dataset's credentials and endpoint. Needed
    where dataset.uri is on the Hub."""
    credentials_secret_ref: SecretRef | None = None
    """Absent: the pod's own identity."""
    endpoint: Endpoint = ""
    """The S3 server's URL; empty means AWS."""
    region: Annotated[str, Field(max_length=64, pattern=r"^[-a-z0-9]*$")] = ""
    """The bucket's region; empty means what the environment says."""
    keep_runs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Of how many runs of this object the outputs are kept; older ones are removed when a model has been published.
    What any run of another object refers to stays."""


class Queue(ApiModel):
    """A queue of Kueue."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """A LocalQueue of the object's namespace."""
    priority_class: Annotated[str, Field(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")] = ""
    """A WorkloadPriorityClass, which says who goes first in the queue and who is preempted; empty: that of the pod's
    spec.compute.priorityClassName, or 0."""


class Retry(ApiModel):
    """What is tried again."""

    limit: Annotated[int, Field(ge=0, le=20)] = 3
    """How often a stage is tried again after a failure that trying again can heal. A pod that is preempted or drained
    does not count."""


GpuHours = Annotated[
    str,
    Field(
        pattern=r"^([0-9]+(\.[0-9]{1,4})?)?$",
        max_length=12,
        json_schema_extra=rules(
            rule("self == '' || double(self) > 0.0", 'maxGpuHours must be above 0, for example "24"; "" sets no limit')
        ),
    ),
]
"""Hours as a string; empty means no limit."""


ProfileName = Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]
"""The name of a FineTuneProfile; empty means the default one."""


class Promote(StrEnum):
    """When a new model takes the place of the published one."""

    IF_BETTER = "IfBetter"
    ALWAYS = "Always"


_CRON_FIELD = r"[-*,/#0-9A-Za-z]+"


class Retrain(ApiModel):
    """When to look at the data again without being asked."""

    schedule: Annotated[str, Field(min_length=9, max_length=100, pattern=rf"^{_CRON_FIELD}( {_CRON_FIELD}){{4}}$")]
    """As cron has it: minute, hour, day of the month, month, day of the week; for example 0 2 * * 0, Sundays at two.
    Prepare then looks at the data and the base model. Only what has changed leads on to training, and only once no run
    is under way."""
    time_zone: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")] = "Etc/UTC"
    """The zone of the schedule, as the IANA names it, for example Europe/Berlin."""
    promote: Promote = Promote.IF_BETTER
    """IfBetter: also ask the published model for the same held-out rows, and publish only what has more exact matches.
    Always: publish whatever passes the gates."""


class FineTuneSpec(ApiModel):
    """The wish: which model learns what, how well it must do, and where it goes. An edit means: make it so."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "self.adapter.method != 'Full' || self.baseModel.quantization == 'None'",
                "baseModel.quantization must be None with adapter.method Full: quantised weights cannot be trained",
            ),
            rule(
                "self.adapter.method != 'AdaLoRA' || self.training.earlyStopping.patience == 0",
                "training.earlyStopping.patience must be 0 with adapter.method AdaLoRA: its ranks are settled at the "
                "end of the planned steps",
            ),
            rule(
                "self.adapter.method != 'IA3' || "
                "(self.tokenizer.mode != 'Extend' && size(self.tokenizer.addTokens) == 0)",
                "adapter.method IA3 cannot train the rows of added tokens: take another method, or set tokenizer.mode "
                "to Reuse or Text and leave tokenizer.addTokens empty",
            ),
        )
    }

    suspend: bool = False
    """Stop what runs, keep its checkpoint, and start nothing; false goes on."""
    profile: ProfileName = ""
    """The FineTuneProfile of the platform team that gives what is not set here and says what is allowed; empty means
    the default profile, if there is one for this namespace."""
    hub: Hub = Hub()
    """Which Hugging Face Hub to speak to."""
    base_model: BaseModelRef
    """The model to fine-tune."""
    dataset: Dataset
    """Where the rows are and what they look like."""
    tools: Tools | None = None
    """The tools of rows that carry none; rows that do carry tools must agree with them."""
    tokenizer: Tokenizer = Tokenizer()
    """The vocabulary and the chat template."""
    adapter: Adapter = Adapter()
    """What is trained on top of the base model."""
    training: Training = Training()
    """The training run."""
    evaluation: Evaluation = Evaluation()
    """How base and tuned model are compared, and what the tuned one must reach to be published."""
    publish: Publish
    """Where the result goes."""
    workspace: Workspace = Workspace()
    """Where the outputs of the stages are kept: nothing that lies there is ever computed again."""
    compute: Compute = Compute()
    """Where the pods run and what they get."""
    queue: Queue | None = None
    """The queue in which the pod that trains and evaluates waits for its quota; prepare and publish, which need no GPU,
    do not wait. Absent: that of the object's labels kueue.x-k8s.io/queue-name and kueue.x-k8s.io/priority-class, or
    none."""
    retry: Retry = Retry()
    """What is tried again."""
    deadline: Duration = "8h"
    """How long the stages of a run may take together; waiting and suspended time does not count."""
    stall_timeout: Duration = "30m"
    """How long a stage that has reported progress may then be silent. Its pod is stopped, with a checkpoint, and tried
    again, which counts against retry.limit. Longer than loading the base model or pushing takes; 0s never stops one."""
    max_gpu_hours: GpuHours = ""
    """GPU hours that train and evaluate of a run may use together, over all their pods; a pod of 2 GPUs uses 2 an hour.
    Empty sets no limit."""
    history_limit: Annotated[int, Field(ge=0, le=50)] = 5
    """How many ended runs status.history keeps."""
    retrain: Retrain | None = None
    """When to look at the data again; absent: when asked by an edit or by the annotation tunemill.dev/requested-at."""


def effective_workspace(spec: FineTuneSpec) -> Workspace:
    """Return where the outputs go: what the spec says, else `tunemill/` in the dataset's bucket."""
    if spec.workspace.uri:
        return spec.workspace
    bucket = spec.dataset.uri.removeprefix("s3://").split("/", 1)[0]
    return Workspace(
        uri=f"s3://{bucket}/tunemill/",
        credentials_secret_ref=spec.dataset.credentials_secret_ref,
        endpoint=spec.dataset.endpoint,
        region=spec.dataset.region,
    )
