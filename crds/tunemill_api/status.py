"""The status of a FunctionCallFineTune, and the results that stages report into it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from tunemill_api.base import ApiModel
from tunemill_api.evaluation import Judge
from tunemill_api.failures import Actor, Reason


class StatusModel(ApiModel):
    """Base class of the status models. Unknown fields are ignored: a newer operator may have written them."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )


class Phase(StrEnum):
    """A summary for people and the printer column. Programs should read the conditions."""

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
    """Condition types: Ready, Reconciling and Stalled as defined by kstatus, and one per milestone."""

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
    """A Kubernetes condition."""

    type: str
    """Type of the condition."""
    status: str = Field(pattern="^(True|False|Unknown)$")
    """True, False or Unknown."""
    reason: str
    """Reason for the status, one CamelCase word."""
    message: str = ""
    """Details for people."""
    last_transition_time: datetime
    """When the status last changed."""
    observed_generation: int = 0
    """Generation of the spec that the condition is based on."""


class DatasetFacts(StatusModel):
    """What prepare found in the data set."""

    format: str
    """Format of the rows."""
    rows: int
    """Number of rows that were read."""
    train_rows: int
    """Number of training rows, without those that augmentation adds."""
    added_rows: int = 0
    """Number of training rows that augmentation adds."""
    replay_rows: int = 0
    """Number of rows of dataset.replay that are trained on in addition."""
    validation_rows: int = 0
    """Number of validation rows."""
    evaluation_rows: int
    """Number of held-out rows."""
    invalid_rows: int = 0
    """Number of rows that were left out because they are invalid."""
    overlong_rows: int = 0
    """Number of rows that were left out because they have more than training.maxLength tokens."""
    duplicate_rows: int = 0
    """Number of rows that were left out because they are duplicates."""
    leaked_rows: int = 0
    """Number of rows that were left out because a row of dataset.evaluation.uri or dataset.validation.uri has the same
    prompt."""
    tools: int = 0
    """Number of distinct tools that the rows offer or call."""
    longest_row_tokens: int = 0
    """Number of tokens in the longest row."""
    supervised_token_percent: str = ""
    """Percentage of the training tokens on which the loss is computed."""


class SuiteDataFacts(StatusModel):
    """What prepare found in the rows of a suite."""

    name: str
    """Name of the suite."""
    key: str
    """Key of its rows in the workspace."""
    rows: int
    """Number of rows that can be judged."""
    trained_rows: int = 0
    """Number of rows that were left out because a training or validation row has the same prompt."""
    invalid_rows: int = 0
    """Number of rows that were left out because they are invalid."""
    overlong_rows: int = 0
    """Number of rows that were left out because they have more than training.maxLength tokens."""


class GpuMemoryFacts(StatusModel):
    """Estimated GPU memory for train and evaluate, in MiB. `tunemill plan` shows the details."""

    least_mib: int
    """Minimum, with gradient checkpointing in every layer and one row at a time."""
    full_speed_mib: int
    """Without gradient checkpointing."""


class StartAdapterFacts(StatusModel):
    """The adapter of spec.baseModel.adapter and its settings, which are used instead of those of spec.adapter."""

    revision: str
    """Commit to which spec.baseModel.adapter.revision was resolved."""
    digest: str
    """sha256 of the names and digests of the adapter's files. Later stages refuse files with other contents."""
    method: str
    """Fine-tuning method: LoRA or IA3."""
    rank: int = 0
    """Rank of a LoRA adapter."""
    alpha: int = 0
    """Scaling factor of a LoRA adapter."""
    rs_lora: bool = False
    """Whether it is a rank-stabilized LoRA adapter."""
    target_modules: Annotated[list[str], Field(max_length=64)] = []
    """Modules that have an adapter."""
    feedforward_modules: Annotated[list[str], Field(max_length=64)] = []
    """Target modules of an IA3 adapter whose inputs are scaled."""


class PreparedFacts(StatusModel):
    """Results of prepare. The keys of the later stages are computed from `key`."""

    key: str
    """Key of prepare's output in the workspace."""
    base_model_revision: str
    """Commit to which spec.baseModel.revision was resolved."""
    base_model_digest: str = ""
    """sha256 of the names and digests of the base model's files. Later stages refuse files with other contents. Empty
    if prepare was run by a version that did not record it."""
    adapter: StartAdapterFacts | None = None
    """The adapter from which training starts. Absent without spec.baseModel.adapter."""
    dataset_digest: str
    """sha256 of the data, in the order in which it was read."""
    tokenizer_mode: str
    """The tokenizer mode that was used: Reuse, Text or Extend."""
    added_tokens: int = 0
    """Number of tokens that were added to the vocabulary."""
    base_model_family: str = ""
    """Family of the base model in the catalogue, for example Qwen3. Empty if it is not in the catalogue."""
    base_model_assumptions: list[str] = Field(default_factory=list)
    """What was assumed about a base model that is not in the catalogue."""
    dataset: DatasetFacts
    """What prepare found in the data set."""
    suites: list[SuiteDataFacts] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """What prepare found in the data of evaluation.suites."""
    gpu_memory: GpuMemoryFacts | None = None
    """Estimated GPU memory for train and evaluate. Absent on a CPU and for models whose memory cannot be estimated.
    Edits of the spec after prepare are not included."""


class PreferenceFacts(StatusModel):
    """Results of training.preference."""

    prompts: int
    """Number of training prompts that the model answered after the supervised training."""
    pairs: int
    """Number of wrong answers, each of which is a pair with the expected answer."""
    steps: int = 0
    """Number of optimizer steps. 0 if it was not trained: see note."""
    learning_rate: str = ""
    """Peak learning rate. Empty without steps."""
    cases: int
    """Number of assistant turns of the validation rows that both models answered."""
    exact_before: str
    """Fraction of these answers that are exactly right, before preference training: the expected calls with equal
    arguments, or no call where none is expected."""
    exact_after: str = ""
    """The same after it. Empty without steps."""
    loss_before: str
    """Mean loss on the expected answers to these turns, before preference training."""
    loss_after: str = ""
    """The same after it. Empty without steps."""
    kept: bool = False
    """Whether the result is kept, because more answers are exactly right. Otherwise the adapter is that of the
    supervised training."""
    note: str = ""
    """Why there are no steps."""


class TrainedFacts(StatusModel):
    """Results of train."""

    steps: int
    """Number of optimizer steps."""
    learning_rate: str = ""
    """Peak learning rate. With spec.training.learningRate Auto, the rate that was chosen. Empty if train was run by a
    version that did not record it."""
    loss: str
    """Mean training loss over the last tenth of the steps."""
    first_loss: str = ""
    """First logged training loss."""
    held_out_loss: str = ""
    """Lowest loss after an epoch on the answers of the validation rows, or of the held-out rows without
    dataset.validation. With early stopping, the loss of the model that was kept."""
    best_step: int = 0
    """Step at which the held-out loss was lowest."""
    train_seconds: int
    """Training time of all attempts in seconds, as recorded in their checkpoints."""
    resumed_from_step: int = 0
    """Step of the checkpoint from which the last attempt resumed. 0 if it started from the beginning."""
    device: str
    """Device, for example cpu or NVIDIA H200."""
    memory: str = ""
    """Peak GPU memory, micro-batch size, and how much gradient checkpointing was used."""
    adapter: str
    """URI of the trained adapter in the workspace, or of the whole model with the method Full."""
    preference: PreferenceFacts | None = None
    """Results of training.preference. Absent without it."""


class MetricFacts(StatusModel):
    """One metric of the compared models, as fractions from 0 to 1 with four decimals. Absent if no row measures it."""

    name: str
    """Name of the metric, for example exact_match."""
    base: str = ""
    """Value for the base model."""
    tuned: str = ""
    """Value for the tuned model."""
    published: str = ""
    """Value for the previously published model, with spec.retrain.promote IfBetter."""
    adapter: str = ""
    """Value for the adapter of spec.baseModel.adapter."""
    cases: int = 0
    """Number of replies that the metric was computed from."""


class SuiteFacts(StatusModel):
    """Results of base model and tuned model on a suite, with four decimals."""

    name: str
    """Name of the suite."""
    judge: Judge
    """Judge of the suite. With Calls and Pattern, the results are fractions of the replies; with Likelihood, losses in
    nats per token, where lower is better."""
    base: str
    """Result of the base model."""
    tuned: str
    """Result of the tuned model."""
    difference: str
    """Result of the tuned model minus that of the base model, with its sign."""
    rows: int
    """Number of rows that were evaluated."""
    cases: int
    """Number of assistant turns in them."""


class EvaluationFacts(StatusModel):
    """Results of base model and tuned model on the same held-out rows."""

    rows: int
    """Number of held-out rows that were evaluated."""
    metrics: list[MetricFacts] = Field(
        default=[], json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    )
    """The metrics."""
    suites: list[SuiteFacts] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Results on evaluation.suites."""
    report: str = ""
    """URI of the full report in the workspace."""


class GateFacts(StatusModel):
    """Result of one gate."""

    gate: str
    """The condition, for example exact_match >= 0.8."""
    passed: bool
    """Whether the gate was passed."""
    message: str = ""
    """The measured values."""


class ServingFacts(StatusModel):
    """How to serve the published model, as tested by publish."""

    target: str
    """The server: vLLM or Transformers."""
    model: str = ""
    """Model that the server loads, repository@commit. Empty if no published artifact can be served."""
    merged: bool
    """Whether the server loads the merged model. If false, it loads the adapter and its base model."""
    adapter_servable: bool
    """Whether the server can load the adapter unchanged."""
    reason: str = ""
    """Why the server cannot load the adapter."""
    tool_call_parser: str = ""
    """Name of the server's parser for tool calls. Empty if the server has none for this call format."""
    reasoning_parser: str = ""
    """Name of the server's parser for reasoning. Empty if the model does not reason or the server needs none."""
    command: str = ""
    """Command that starts the server."""
    proof: str = ""
    """Result of the test of the downloaded model: the prompts, the number of replies that the parser read correctly,
    and the number of replies for which the server returned the calls that evaluate judged, or why it was not
    started."""


class PublishedFacts(StatusModel):
    """Where the model is published."""

    repository: str
    """Repository on the Hub."""
    revision: str
    """Commit that was pushed."""
    branch: str = ""
    """Branch that was pushed to."""
    tag: str = ""
    """Tag of the commit."""
    url: str = ""
    """URL of the commit."""
    merged: str = ""
    """The merged model in a separate repository, repository@commit. Empty if there is none."""
    gguf: str = ""
    """The GGUF file, repository@commit. Empty if there is none."""
    oci: str = ""
    """The container image by digest, registry/repository@sha256:…. Empty if there is none."""
    serving: ServingFacts | None = None
    """How to serve the model. Absent with spec.publish.serving None. For status.published it is in status.serving."""
    draft: bool = False
    """Whether it is a draft, because a gate was not passed."""


class StageState(StrEnum):
    """State of a stage."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class CutShort(StrEnum):
    """Why a pod, or all pods of a run on several nodes, ended early.

    Each reason has a counter in the status of the stage. PodFailed, which only runs on several nodes have, is counted
    in `restarts` under the reason of the failure.
    """

    PREEMPTED = "Preempted"
    NO_PROGRESS = "NoProgress"
    OUT_OF_MEMORY = "OutOfMemory"
    EVICTED = "Evicted"
    BAD_NODE = "BadNode"
    PEER_LOST = "PeerLost"
    POD_FAILED = "PodFailed"
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
    """One stage of the current run."""

    name: str
    """Name of the stage: prepare, train, evaluate or publish."""
    state: StageState
    """State of the stage."""
    inputs: str = ""
    """Hash of the fields of the spec on which this stage and the stages before it depend. While it does not change, the
    recorded key stays valid, also after an upgrade."""
    key: str = ""
    """Name of the stage's output in the workspace. For prepare, whose output is named by prepared.key, the hash of its
    inputs. An output with the same key is not computed again."""
    executed: bool | None = None
    """False if the output was already in the workspace. Absent until the stage has succeeded."""
    attempts: int = 0
    """Number of pods that started this stage. With compute.nodes above 1, number of starts of all pods together."""
    started_at: datetime | None = None
    """When the container of the stage started."""
    finished_at: datetime | None = None
    """When the stage ended."""
    earlier_seconds: Annotated[int, Field(ge=0)] = 0
    """Running time in seconds of earlier pods of the stage. It counts against spec.maxRuntime."""
    nodes: Annotated[int, Field(ge=0)] = 0
    """Number of pods that run the stage together, or ran it last. Absent with one pod."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """Number of GPUs of the current pod, or of the last one; with compute.nodes above 1, of all its pods."""
    earlier_gpu_seconds: Annotated[int, Field(ge=0)] = 0
    """GPU time in seconds of earlier pods of the stage. It counts against spec.maxGpuHours."""
    preemptions: Annotated[int, Field(ge=0)] = 0
    """Number of pods that were preempted, drained or lost with their node. They do not count as retries."""
    stalls: Annotated[int, Field(ge=0)] = 0
    """Number of pods that were stopped because they made no progress for spec.stallTimeout. They count against
    spec.retry.limit."""
    memory_kills: Annotated[int, Field(ge=0)] = 0
    """Number of train pods that exceeded their memory limit. They count against spec.retry.limit. After each, the next
    pod computes half as much at once."""
    evictions: Annotated[int, Field(ge=0)] = 0
    """Number of pods that the kubelet evicted because their node ran out of memory or disk. They count against
    spec.retry.limit."""
    recreations: Annotated[int, Field(ge=0)] = 0
    """Number of Jobs that were created again because the previous one was deleted by somebody else or its report cannot
    be read. They count against spec.retry.limit."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Number of failed pods for which the operator replaced the Job, to avoid a suspect node, because a sidecar kept
    the failed pod running, or because other pods of the run had ended. They count against spec.retry.limit."""
    peer_losses: Annotated[int, Field(ge=0)] = 0
    """Number of times that the pods of a run on several nodes lost the connection to each other although none of them
    failed. They count against spec.retry.limit."""
    restarts: dict[str, Annotated[int, Field(ge=0)]] = {}
    """With compute.nodes above 1: number of times that all pods of the stage were started again together, by cause: the
    reason of a failure, or Preempted, Evicted, NoProgress, OutOfMemory, BadNode or PeerLost."""
    start_timeouts: Annotated[int, Field(ge=0)] = 0
    """Number of times in a row that the pods were removed because they could not all start within
    spec.compute.startTimeout."""
    next_start: datetime | None = None
    """When the pods are created again after they could not all start. Absent if they may be created at once."""
    suspect_nodes: list[SuspectNode] = Field(
        default=[],
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Nodes on which the stage failed for a reason that points to the node."""
    cut_short: CutShort | None = None
    """Why the last pod ended early. Absent if it did not, or if the reason has no counter."""
    job: str = ""
    """Name of the current Job of the stage. Empty if there is none."""


class RunStatus(StatusModel):
    """The current run."""

    id: str
    """ID of the run. It changes with every change of the spec that affects a stage. An upgrade does not change it."""
    inputs: str = ""
    """Hash of the fields of the spec on which the stages depend. While it does not change, the id does not change."""
    request_token: str = ""
    """Changes with an edit of the spec, with the annotation tunemill.dev/requested-at and with every scheduled time.
    While it does not change, edits of the FineTuneProfile do not affect the run."""
    started_at: datetime
    """When the operator started the run."""
    base_model_revision: str = ""
    """Commit of the base model."""
    dataset_digest: str = ""
    """sha256 of the data."""
    image: str = ""
    """Trainer image."""
    preemptions: Annotated[int, Field(ge=0)] = 0
    """Number of pods of all stages that were preempted, drained or lost with their node. Pods that train together count
    as one."""
    gpu_seconds: Annotated[int, Field(ge=0)] = 0
    """GPU time of train and evaluate in seconds, over all their pods. It is updated every full minute while one
    runs."""


class QueueStatus(StatusModel):
    """Kueue's state of the current Job."""

    name: str
    """LocalQueue of the Job."""
    workload: str
    """Kueue's Workload for the Job. `kubectl describe workload` shows the details."""
    cluster_queue: str = ""
    """ClusterQueue that reserved quota for the Job. Empty while the Job waits for quota."""
    flavors: dict[str, str] = {}
    """ResourceFlavor assigned to each resource, by the name of the resource."""
    quota: dict[str, str] = {}
    """Reserved quota of all pods together, by the name of the resource."""
    since: datetime
    """When the Job was queued, or when its quota was reserved."""


class ProfileStatus(StatusModel):
    """The FineTuneProfile of the current run, as it was when the run started."""

    name: str
    """Name of the profile."""
    fields: Annotated[
        dict[str, Any],
        Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-map-type": "atomic"}),
    ] = {}
    """Values that the run has from the profile: fields that the spec does not set, such as compute.gpus."""


class TrainerMetric(StatusModel):
    """One metric of the running stage, in the form of Kubeflow's status protocol."""

    name: str = Field(max_length=64)
    """Name of the metric, for example loss."""
    value: str = Field(max_length=64)
    """Value of the metric."""


class TrainerStatus(StatusModel):
    """Progress of the running stage, with the field names of Kubeflow's TrainJob (KEP-2779)."""

    progress_percentage: int | None = Field(default=None, ge=0, le=100)
    """Progress of the stage in percent."""
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    """Estimated time until the stage ends, in seconds."""
    metrics: list[TrainerMetric] = Field(default=[], max_length=32)
    """Metrics such as loss and learning_rate."""
    last_updated_time: datetime | None = None
    """When the stage reported its progress."""


class FailureStatus(StatusModel):
    """Why the run failed or cannot continue, and what to do about it."""

    stage: str
    """The stage that failed."""
    reason: Reason | str
    """The reason, one CamelCase word. All reasons are listed in docs/reference/failures.md."""
    message: str
    """What was expected, what was found and where."""
    remedy: str
    """What to change."""
    exit_code: int | None = None
    """Exit code of the stage's container."""
    actor: Actor | str
    """Who has to act: User, Platform or Nobody."""
    retryable: bool
    """Whether a retry without changes can succeed."""
    observed_generation: int = 0
    """Generation of the spec that failed. An edit starts a new attempt."""
    final: bool | None = None
    """Whether the run has ended with this failure. If true, only an edit of the spec or a new value of the annotation
    tunemill.dev/requested-at starts it again. If false, the run continues when the cause is gone."""


class RunResult(StrEnum):
    """Result of a run."""

    SUCCEEDED = "Succeeded"
    HELD = "Held"
    FAILED = "Failed"
    NOT_BETTER = "NotBetter"
    REPLACED = "Replaced"


class PastRun(StatusModel):
    """A finished run."""

    id: str
    """ID of the run, as in status.run."""
    result: RunResult
    """Result of the run. Succeeded: published. Held: a gate was not passed. Failed: see the reason. NotBetter: the
    previously published model stays. Replaced: an edit replaced the run before it finished."""
    reason: str = ""
    """Why the run was held or failed."""
    finished: datetime
    """When the run ended."""
    metrics: dict[str, str] = {}
    """Metrics of the tuned model by name, as fractions from 0 to 1."""
    revision: str = ""
    """Commit on the Hub; for a held run, the commit of its draft."""


class ModelKeys(StatusModel):
    """Keys of the published model in the workspace."""

    prepare: str
    """Key of the prepared data that the model was trained on."""
    train: str
    """Key of the model."""


class Rival(StatusModel):
    """The model that the new model is compared with. It stays the same until the new model is published."""

    of: str
    """Key of the new model."""
    prepare: str = ""
    """Key of the prepared data that the rival was trained on. Empty if there is no rival."""
    train: str = ""
    """Key of the rival. Empty if there is no rival."""


class RetrainStatus(StatusModel):
    """Times of scheduled retraining."""

    schedule: str = ""
    """Schedule and time zone from which nextTime was computed."""
    next_time: datetime | None = None
    """When the data is checked next. If a run is active at that time, it is checked when the run has ended."""
    last_time: datetime | None = None
    """Scheduled time of the last check."""


class FineTuneStatus(StatusModel):
    """Observed state of the FunctionCallFineTune."""

    observed_generation: int = 0
    """Generation of the spec that this status is about."""
    phase: Phase | None = None
    """A summary for people. Programs should read the conditions."""
    conditions: list[Condition] = Field(
        default=[],
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Ready, Reconciling and Stalled as defined by kstatus, and one condition per milestone."""
    run: RunStatus | None = None
    """The current run."""
    profile: ProfileStatus | None = None
    """The FineTuneProfile of the current run, as it was when the run started. Absent if there is none."""
    workspace: str = ""
    """S3 prefix of the outputs of all runs of the object: spec.workspace with the folder of the namespace."""
    stages: list[StageStatus] = Field(
        default=[],
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Stages of the current run."""
    queue: QueueStatus | None = None
    """Kueue's state of the current Job. Absent if the Job is not queued."""
    trainer_status: TrainerStatus | None = None
    """Progress of the running stage."""
    progress: str = ""
    """Progress of the running stage in percent, for the printer column."""
    eta: str = ""
    """Remaining time of the running stage, for the printer column."""
    prepared: PreparedFacts | None = None
    """Results of prepare."""
    trained: TrainedFacts | None = None
    """Results of train."""
    evaluation: EvaluationFacts | None = None
    """Results of evaluate."""
    gates: list[GateFacts] = Field(default=[], max_length=48, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    """Results of the gates."""
    score: str = ""
    """Exact match of the tuned model, for the printer column."""
    gain: str = ""
    """Difference of score to the base model, for the printer column."""
    published: PublishedFacts | None = None
    """The published model. It stays the previous model until a new one has been published."""
    serving: ServingFacts | None = None
    """How to serve the published model."""
    draft: PublishedFacts | None = None
    """The draft that was pushed because a gate was not passed, with spec.evaluation.onGateFailure Draft."""
    failure: FailureStatus | None = None
    """Why the run failed or cannot continue."""
    trouble_since: datetime | None = None
    """Start of a problem that may resolve itself, such as a failed image pull. The object is Reconciling at first and
    becomes Stalled after two minutes."""
    history: list[PastRun] = Field(
        default=[],
        max_length=50,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]},
    )
    """Finished runs, newest first, at most spec.historyLimit."""
    incumbent: ModelKeys | None = None
    """Keys of the published model, for comparison."""
    rival: Rival | None = None
    """The model that the new model is compared with."""
    retrain: RetrainStatus | None = None
    """Times of scheduled retraining, with spec.retrain."""
