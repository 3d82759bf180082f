"""What the operator answers: the status of a FunctionCallFineTune, and the facts that stages report into it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from tunemill_api.base import ApiModel
from tunemill_api.failures import Actor, Reason


class StatusModel(ApiModel):
    """A part of the status. Unknown fields are ignored: a status may have been written by a newer operator."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )


class Phase(StrEnum):
    """A summary for humans and the printer column. Code reads conditions."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    HELD = "Held"


class ConditionType(StrEnum):
    """The kstatus three (Ready, Reconciling, Stalled), and one per milestone."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    PREPARED = "Prepared"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    GATE_PASSED = "GatePassed"
    PUBLISHED = "Published"
    SUSPENDED = "Suspended"
    PROFILE_CURRENT = "ProfileCurrent"


class Condition(StatusModel):
    """A condition as Kubernetes has it."""

    type: str
    """What the condition is about."""
    status: str = Field(pattern="^(True|False|Unknown)$")
    """True, False or Unknown."""
    reason: str
    """One CamelCase word."""
    message: str = ""
    """A sentence that a person can act on."""
    last_transition_time: datetime
    """When the status last changed."""
    observed_generation: int = 0
    """The generation of the spec that this was concluded from."""


class DatasetFacts(StatusModel):
    """What prepare found in the data."""

    format: str
    """The format that the rows had."""
    rows: int
    """Rows that were read."""
    train_rows: int
    """Rows that are trained on."""
    evaluation_rows: int
    """Rows that are held out."""
    invalid_rows: int = 0
    """Rows that were left out because they are wrong."""
    overlong_rows: int = 0
    """Rows that were left out because they have more than maxLength tokens."""
    duplicate_rows: int = 0
    """Rows that occurred before and were left out."""
    leaked_rows: int = 0
    """Training rows that were left out because a row of dataset.evaluation.uri asks the same."""
    tools: int = 0
    """Different tools that the rows offer or call."""
    longest_row_tokens: int = 0
    """Tokens of the longest row that was kept."""
    supervised_token_percent: str = ""
    """The share of the training tokens that the loss is computed on, in percent."""


class GpuMemoryFacts(StatusModel):
    """The estimate of the GPU memory that train and evaluate need, in MiB. `tunemill-trainer plan` shows its parts."""

    least_mib: int
    """With every layer checkpointed and one row at a time; less does not fit."""
    full_speed_mib: int
    """Without gradient checkpointing."""


class PreparedFacts(StatusModel):
    """What prepare found and made. The later stages' keys follow from `key`."""

    key: str
    """The key of prepare's output in the workspace."""
    base_model_revision: str
    """The commit that spec.baseModel.revision stood for."""
    base_model_digest: str = ""
    """sha256 over the names and digests of the base model's files. Later stages load no files with other contents.
    Empty: prepared by a version that recorded none."""
    dataset_digest: str
    """sha256 of the data, in the order in which it was read."""
    tokenizer_mode: str
    """Reuse, Text or Extend: what was done."""
    added_tokens: int = 0
    """Tokens that were added to the vocabulary."""
    dataset: DatasetFacts
    """What was found in the data."""
    gpu_memory: GpuMemoryFacts | None = None
    """The estimate of the GPU memory that train and evaluate need; absent on a CPU and for models whose memory cannot
    be estimated. An edit of the spec after prepare is not in it."""


class TrainedFacts(StatusModel):
    """What train made."""

    steps: int
    """Optimizer steps."""
    loss: str
    """The mean training loss over the last tenth of the steps."""
    first_loss: str = ""
    """The training loss that was logged first."""
    held_out_loss: str = ""
    """The lowest loss on the held-out answers after an epoch. With early stopping it is that of what was trained."""
    best_step: int = 0
    """The step after which it was measured."""
    train_seconds: int
    """Time that all attempts spent training, as far as their checkpoints tell."""
    resumed_from_step: int = 0
    """The step of the checkpoint that the last attempt went on from; 0 when it started at the beginning."""
    device: str
    """Where it was trained, for example cpu or NVIDIA H200."""
    memory: str = ""
    """The most GPU memory that was in use, how much was computed at once, and what was saved by recomputation."""
    adapter: str
    """The URI in the workspace of what was trained: an adapter, or with the method Full a whole model."""


class MetricFacts(StatusModel):
    """One metric of both models, as shares from 0 to 1 with four decimals. Absent when no row asks for it."""

    name: str
    """For example exact_match."""
    base: str = ""
    """Of the base model."""
    tuned: str = ""
    """Of the tuned model."""
    published: str = ""
    """Of the model that was published before, with spec.retrain.promote IfBetter."""
    cases: int = 0
    """The replies that the metric was computed from."""


class EvaluationFacts(StatusModel):
    """How base and tuned model did on the same held-out rows."""

    rows: int
    """Held-out rows that were judged."""
    metrics: list[MetricFacts] = Field(
        default=[], json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    )
    """The metrics."""
    report: str = ""
    """The URI of the full report in the workspace."""


class GateFacts(StatusModel):
    """How one gate was decided."""

    gate: str
    """The condition in words, for example exact_match >= 0.8."""
    passed: bool
    """Whether it was passed."""
    message: str = ""
    """The figures."""


class ServingFacts(StatusModel):
    """How the published model is served, proven by publish."""

    target: str
    """The server: vLLM or Transformers."""
    model: str = ""
    """What it loads, repository@commit; empty when nothing that was published can be served."""
    merged: bool
    """Whether that is the whole model; else the adapter on its base."""
    adapter_servable: bool
    """Whether the server takes the adapter as it is."""
    reason: str = ""
    """Why it does not."""
    tool_call_parser: str = ""
    """The name of the server's parser for tool calls; empty when it has none for this call format."""
    command: str = ""
    """Starts the server; ready to paste."""
    proof: str = ""
    """What was asked of the downloaded model, and how many replies the parser read as they were meant."""


class PublishedFacts(StatusModel):
    """Where the model lies."""

    repository: str
    """The repository on the Hub."""
    revision: str
    """The commit that was pushed."""
    branch: str = ""
    """The branch that was pushed to."""
    tag: str = ""
    """The tag of the commit."""
    url: str = ""
    """The page of the commit."""
    merged: str = ""
    """The whole model in its own repository beside the adapter, repository@commit; empty when there is none."""
    serving: ServingFacts | None = None
    """How the model is served; absent with spec.publish.serving None. That of status.published stands beside, in
    status.serving."""
    draft: bool = False
    """Whether it is a draft, as a gate is not passed."""


class StageState(StrEnum):
    """How far a stage is."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class CutShort(StrEnum):
    """Why a pod ended early. Each reason has a counter in the stage's status."""

    PREEMPTED = "Preempted"
    NO_PROGRESS = "NoProgress"
    OUT_OF_MEMORY = "OutOfMemory"
    EVICTED = "Evicted"
    BAD_NODE = "BadNode"
    FAILED = "Failed"


class SuspectNode(StatusModel):
    """A node on which a stage failed for a reason that points to the node: its GPU, its disk, its device plugin."""

    name: str
    """Name of the node."""
    reason: str
    """Reason of the newest failure on it, for example CudaUnavailable."""
    failures: Annotated[int, Field(ge=1)] = 1
    """Number of pods that failed on it."""
    pod: str = ""
    """Name of the newest pod that failed on it."""
    avoided: bool = True
    """Whether new pods of the stage avoid the node. It becomes false when no other node can take the pod."""


class StageStatus(StatusModel):
    """One stage of the present run."""

    name: str
    """prepare, train, evaluate or publish."""
    state: StageState
    """How far it is."""
    inputs: str = ""
    """Hash of what the spec asks of this stage and of the stages before it. While it is the same, the recorded key
    stays valid, also after an upgrade."""
    key: str = ""
    """Name of the stage's output in the workspace; of prepare, whose output is named by prepared.key, the hash of what
    it is asked for. What has the same key is never computed again."""
    executed: bool | None = None
    """False when the output was already in the workspace; absent before the stage has succeeded."""
    attempts: int = 0
    """Pods that worked on it."""
    started_at: datetime | None = None
    """When its container began to work."""
    finished_at: datetime | None = None
    """When it ended."""
    earlier_seconds: Annotated[int, Field(ge=0)] = 0
    """Running time of the pods that worked on it before the present one; counts against spec.maxRuntime."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of the present pod, or of the last one."""
    earlier_gpu_seconds: Annotated[int, Field(ge=0)] = 0
    """GPU time of the pods before it; counts against spec.maxGpuHours."""
    preemptions: Annotated[int, Field(ge=0)] = 0
    """Pods that were stopped from outside: preempted, drained, lost with their node. They cost no retry."""
    stalls: Annotated[int, Field(ge=0)] = 0
    """Pods that were stopped because they made no progress for spec.stallTimeout. They count against
    spec.retry.limit."""
    memory_kills: Annotated[int, Field(ge=0)] = 0
    """Pods of train that needed more memory than their limit. They count against spec.retry.limit, and each halves what
    the next one computes at once."""
    evictions: Annotated[int, Field(ge=0)] = 0
    """Pods that the kubelet evicted because their node ran out of memory or disk. They count against
    spec.retry.limit."""
    recreations: Annotated[int, Field(ge=0)] = 0
    """Jobs that were created again because the Job before was deleted from outside, or because its report cannot be
    read. They count against spec.retry.limit."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Failed pods for which the operator replaced the Job: to avoid a suspect node, or because a sidecar kept the
    failed pod running. They count against spec.retry.limit."""
    suspect_nodes: list[SuspectNode] = Field(
        default=[],
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Nodes on which the stage failed for a reason that points to the node."""
    cut_short: CutShort | None = None
    """Why the last pod ended early; absent when it did not, or when the reason is counted nowhere."""
    job: str = ""
    """The Job that works on it; empty while there is none."""


class RunStatus(StatusModel):
    """The present run."""

    id: str
    """Changes when anything that a stage depends on changes. An upgrade does not change it."""
    inputs: str = ""
    """Hash of what the spec asks of all stages. While it is the same, so is the id."""
    request_token: str = ""
    """Changes with an edit of the spec, with the annotation tunemill.dev/requested-at and with a time of the schedule.
    While it is the same, a change of the FineTuneProfile does not reach the run."""
    started_at: datetime
    """When the operator first saw what is asked for."""
    base_model_revision: str = ""
    """The commit of the base model."""
    dataset_digest: str = ""
    """sha256 of the data."""
    image: str = ""
    """The trainer image."""
    preemptions: Annotated[int, Field(ge=0)] = 0
    """Pods of all stages that were stopped from outside: preempted, drained, lost with their node."""
    gpu_seconds: Annotated[int, Field(ge=0)] = 0
    """GPU time of train and evaluate until now, over all their pods; in whole minutes while one runs."""


class QueueStatus(StatusModel):
    """How the Job that is due stands with Kueue."""

    name: str
    """The LocalQueue."""
    workload: str
    """The Workload in which Kueue keeps the books of the Job: `kubectl describe workload` tells everything."""
    cluster_queue: str = ""
    """The ClusterQueue whose quota it has; empty while it waits for some."""
    flavors: dict[str, str] = {}
    """The ResourceFlavor that each resource is taken from, by the resource's name."""
    since: datetime
    """Since when it waits, or has its quota."""


class ProfileStatus(StatusModel):
    """The FineTuneProfile that the run began with."""

    name: str
    """Its name."""
    fields: Annotated[
        dict[str, Any],
        Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-map-type": "atomic"}),
    ] = {}
    """What the run has from it: fields that spec does not set, such as compute.gpus, with their values."""


class TrainerMetric(StatusModel):
    """One figure of the running stage, as Kubeflow's status protocol has it."""

    name: str = Field(max_length=64)
    """For example loss."""
    value: str = Field(max_length=64)
    """The figure."""


class TrainerStatus(StatusModel):
    """Progress of the running stage, with the names of Kubeflow's TrainJob (KEP-2779)."""

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    """Of the stage."""
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    """Until the stage ends."""
    metrics: list[TrainerMetric] = Field(default=[], max_length=32)
    """Such as loss and learning_rate."""
    last_updated_time: datetime | None = None
    """When the stage said so."""


class FailureStatus(StatusModel):
    """Why the run failed or cannot go on, and what to do about it."""

    stage: str
    """The stage that failed."""
    reason: Reason | str
    """One CamelCase word of the failures page."""
    message: str
    """What was expected, what was found and where."""
    remedy: str
    """What to change."""
    exit_code: int | None = None
    """Of the stage's container."""
    actor: Actor | str
    """Who has to act: User, Platform or Nobody."""
    retryable: bool
    """Whether it can go away by itself."""
    observed_generation: int = 0
    """The generation of the spec that failed; an edit tries again."""
    final: bool | None = None
    """Whether the run has ended with this failure: only an edit of the spec or a new value of the annotation
    tunemill.dev/requested-at starts it again. False when the run continues by itself once the cause is gone."""


class RunResult(StrEnum):
    """How a run ended."""

    SUCCEEDED = "Succeeded"
    HELD = "Held"
    FAILED = "Failed"
    NOT_BETTER = "NotBetter"
    REPLACED = "Replaced"


class PastRun(StatusModel):
    """A run that has ended."""

    id: str
    """As in status.run."""
    result: RunResult
    """Succeeded: published. Held: a gate was not passed. Failed: see the reason. NotBetter: the model that was
    published before stays. Replaced: an edit made another run of it before its end."""
    reason: str = ""
    """Why it was held or failed."""
    finished: datetime
    """When it ended."""
    metrics: dict[str, str] = {}
    """Of the tuned model, as shares from 0 to 1, by name."""
    revision: str = ""
    """The commit on the Hub; of a run that was held that of its draft."""


class ModelKeys(StatusModel):
    """The published model in the workspace."""

    prepare: str
    """The key of what it was trained on."""
    train: str
    """Its own key."""


class Rival(StatusModel):
    """The model that a new one is compared with. It stays the same while the new one is judged and published."""

    of: str
    """The key of the new model."""
    prepare: str = ""
    """The key of what the rival was trained on; empty when there is none."""
    train: str = ""
    """The rival's key; empty when there is none."""


class RetrainStatus(StatusModel):
    """When the data is looked at."""

    schedule: str = ""
    """The schedule and the time zone that nextTime follows from."""
    next_time: datetime | None = None
    """When the data is looked at next, or as soon as the present run has ended."""
    last_time: datetime | None = None
    """The time in the schedule for which it was looked at last."""


class FineTuneStatus(StatusModel):
    """What the operator knows about the object."""

    observed_generation: int = 0
    """The generation of the spec that this status is about."""
    phase: Phase | None = None
    """A summary for humans."""
    conditions: list[Condition] = Field(
        default=[],
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Ready, Reconciling and Stalled as kstatus wants them, and one per milestone."""
    run: RunStatus | None = None
    """The present run."""
    profile: ProfileStatus | None = None
    """The FineTuneProfile that the run began with; absent when there is none."""
    workspace: str = ""
    """Where the outputs of the object's runs are: the S3 prefix of spec.workspace, with the folder of the namespace."""
    stages: list[StageStatus] = Field(
        default=[],
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """The stages of the present run."""
    queue: QueueStatus | None = None
    """How the Job that is due stands with Kueue; absent when it is in no queue."""
    trainer_status: TrainerStatus | None = None
    """Progress of the running stage."""
    progress: str = ""
    """The running stage's percentage for the printer column."""
    eta: str = ""
    """The running stage's remaining time for the printer column."""
    prepared: PreparedFacts | None = None
    """What prepare found and made."""
    trained: TrainedFacts | None = None
    """What train made."""
    evaluation: EvaluationFacts | None = None
    """How base and tuned model did."""
    gates: list[GateFacts] = Field(default=[], max_length=48, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    """How the gates were decided."""
    score: str = ""
    """Exact match of the tuned model, for the printer column."""
    gain: str = ""
    """Its difference to the base model, for the printer column."""
    published: PublishedFacts | None = None
    """Where the model lies; while another one is made, or where it is not published, the one before."""
    serving: ServingFacts | None = None
    """How the published model is served."""
    draft: PublishedFacts | None = None
    """Where the draft lies that was pushed in place of a publication, with spec.evaluation.onGateFailure Draft."""
    failure: FailureStatus | None = None
    """Why the run failed or cannot go on."""
    trouble_since: datetime | None = None
    """Since when something that may pass by itself, such as a failed image pull, keeps the run from continuing. The run
    is Reconciling at first and becomes Stalled after two minutes."""
    history: list[PastRun] = Field(
        default=[],
        max_length=50,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]},
    )
    """The runs that have ended, the newest first; at most spec.historyLimit of them."""
    incumbent: ModelKeys | None = None
    """The published model, for comparison."""
    rival: Rival | None = None
    """What the newest model is compared with."""
    retrain: RetrainStatus | None = None
    """When the data is looked at, with spec.retrain."""
