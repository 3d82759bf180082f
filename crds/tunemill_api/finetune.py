"""The spec of a FunctionCallFineTune. The CRD's schema, defaults and CEL rules are generated from it.

Its larger parts have separate modules: data, training, evaluation, publish, compute and pod_template.
"""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from tunemill_api import local_files
from tunemill_api.base import ApiModel
from tunemill_api.compute import Compute
from tunemill_api.data import Dataset, Tokenizer, Tools
from tunemill_api.evaluation import Evaluation
from tunemill_api.pod_template import PodTemplates
from tunemill_api.publish import Publish
from tunemill_api.scalars import BaseModelId, Duration, Endpoint, ManifestKeyRef, SecretKeyRef, SecretRef, rule, rules
from tunemill_api.tracking import Tracking
from tunemill_api.training import Adapter, Training

NAMESPACE_FOLDER: Final = "{namespace}"
"""Placeholder in `spec.workspace.uri` that is replaced by the object's namespace."""


class Hub(ApiModel):
    """The Hugging Face Hub to use."""

    endpoint: Endpoint = ""
    """URL of the Hub, for a mirror or a private Hub. Empty: https://huggingface.co."""


class Quantization(StrEnum):
    """Number format of the base model's frozen linear layers in memory."""

    NONE = "None"
    NF4 = "NF4"
    INT8 = "Int8"


_Revision = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][-._/A-Za-z0-9]*$")]
"""A branch, tag or commit."""


class AdapterRef(ApiModel):
    """A published adapter of the base model."""

    id: BaseModelId
    """Repository of the adapter on the Hub, for example acme/support-tools, with adapter_config.json and
    adapter_model.safetensors, as PEFT and Tunemill write them. It is read with the token of
    baseModel.tokenSecretRef."""
    revision: _Revision = "main"
    """Branch, tag or commit. Prepare resolves it to a commit, which all later stages use."""


class BaseModelRef(ApiModel):
    """The model to fine-tune."""

    id: BaseModelId
    """Repository of the base model on the Hub, for example google/gemma-2-2b-it."""
    revision: _Revision = "main"
    """Branch, tag or commit. Prepare resolves it to a commit, which all later stages use."""
    adapter: AdapterRef | None = None
    """A LoRA or IA3 adapter of this base model. Training starts from its weights, with a new optimizer. Its method,
    rank, alpha, target modules, vocabulary and chat template are used; fields of spec.adapter and spec.tokenizer that
    differ from their defaults must agree with it. Absent: training starts from the base model."""
    token_secret_ref: SecretKeyRef | None = None
    """Secret with a read token, for gated and private models."""
    quantization: Quantization = Quantization.NONE
    """Quantization of the base model's weights in training and evaluation: NF4 (4 bits, about a third of the memory) or
    Int8 (8 bits, about half). The trained weights stay in FP32. The published adapter also works with the unquantized
    base model."""


class Workspace(ApiModel):
    """Object storage for the outputs of the stages."""

    uri: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=rf"^(s3://[a-z0-9][-.a-z0-9]{{1,61}}[a-z0-9](/[^*?]*)?|{local_files.PATTERN})?$",
            json_schema_extra=rules(rule(local_files.RULE, local_files.RULE_MESSAGE)),
        ),
    ] = ""
    """S3 prefix. Empty: tunemill/ in the bucket of the data set, with the data set's credentials and endpoint. Required
    if dataset.uri is on the Hub. Outputs are stored in a folder with the name of the namespace: the last folder, or the
    position of {namespace}, for example s3://acme/{namespace}/tunemill/. status.workspace shows the full prefix."""
    credentials_secret_ref: SecretRef | None = None
    """Secret with the S3 credentials. Absent: the identity of the pod."""
    endpoint: Endpoint = ""
    """URL of the S3 server. Empty: AWS."""
    region: Annotated[str, Field(max_length=64, pattern=r"^[-a-z0-9]*$")] = ""
    """Region of the bucket. Empty: the default of the pod's environment."""
    manifest_key_secret_ref: ManifestKeyRef | None = None
    """Secret with the key that signs the manifest of every output. Stages do not use outputs without a valid signature
    and compute them again. Absent: outputs are not signed, and anyone with write access to the workspace can replace
    them."""
    keep_runs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Number of runs of this object whose outputs are kept. Older outputs are deleted after a model has been published.
    Outputs that a run of another object refers to are kept."""


class Queue(ApiModel):
    """A Kueue queue."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """LocalQueue in the object's namespace."""
    priority_class: Annotated[str, Field(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")] = ""
    """WorkloadPriorityClass, which decides the order in the queue and preemption. Empty: the priority of
    spec.podTemplates.train.priorityClassName, or 0."""


class Retry(ApiModel):
    """Retries of failed stages."""

    limit: Annotated[int, Field(ge=0, le=20)] = 3
    """Maximum number of retries of a stage after failures that a retry can fix. Preempted and drained pods do not
    count."""


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
"""Hours as a string. Empty: no limit."""


ProfileName = Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]
"""Name of a FineTuneProfile. Empty: the default profile."""


class Promote(StrEnum):
    """When a new model replaces the published one."""

    IF_BETTER = "IfBetter"
    ALWAYS = "Always"


_CRON_FIELD = r"[-*,/#0-9A-Za-z]+"


class Retrain(ApiModel):
    """When to check the data for changes on a schedule."""

    schedule: Annotated[str, Field(min_length=9, max_length=100, pattern=rf"^{_CRON_FIELD}( {_CRON_FIELD}){{4}}$")]
    """Cron expression: minute, hour, day of the month, month, day of the week; for example 0 2 * * 0 for Sundays at
    02:00. At each time, prepare checks the data and the base model. The model is trained again only if one of them has
    changed, and only after the current run has ended."""
    time_zone: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")] = "Etc/UTC"
    """IANA time zone of the schedule, for example Europe/Berlin."""
    promote: Promote = Promote.IF_BETTER
    """When a new model is published. IfBetter: evaluate the published model on the same held-out rows, and publish the
    new one only if it has more exact matches. Always: publish every model that passes the gates."""


class FineTuneSpec(ApiModel):
    """The desired model: its base model, training data, required quality and where it is published."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "self.adapter.method != 'Full' || self.baseModel.quantization == 'None'",
                "baseModel.quantization must be None with adapter.method Full: quantized weights cannot be trained",
            ),
            rule(
                "self.adapter.method != 'AdaLoRA' || !has(self.training.earlyStopping) || "
                "!has(self.training.earlyStopping.patience) || self.training.earlyStopping.patience == 0",
                "training.earlyStopping.patience must be 0 with adapter.method AdaLoRA: its ranks are final only "
                "at the end of the planned steps",
            ),
            rule(
                "self.adapter.method != 'IA3' || "
                "(self.tokenizer.mode != 'Extend' && "
                "(!has(self.tokenizer.addTokens) || size(self.tokenizer.addTokens) == 0))",
                "adapter.method IA3 cannot train embeddings of added tokens: choose another method, or set "
                "tokenizer.mode to Reuse or Text and leave tokenizer.addTokens empty",
            ),
            rule(
                "!has(self.baseModel.adapter) || self.adapter.method in ['LoRA', 'IA3']",
                "baseModel.adapter can be continued with adapter.method LoRA and IA3 only: Full trains all weights, "
                "and the ranks of an AdaLoRA adapter are final",
            ),
            rule(
                "!has(self.training.preference) || has(self.dataset.validation)",
                "training.preference needs dataset.validation: its rows decide whether the result is kept",
            ),
            rule(
                "!has(self.training.preference) || self.adapter.method in ['LoRA', 'IA3']",
                "training.preference works with adapter.method LoRA and IA3 only: it continues to train an adapter, "
                "and the ranks of an AdaLoRA adapter are final",
            ),
            rule(
                "!has(self.training.preference) || ((!has(self.compute.gpus) || self.compute.gpus <= 1) && "
                "(!has(self.compute.nodes) || self.compute.nodes == 1))",
                "training.preference works on one GPU or on the CPU of one pod only: set compute.gpus to 0 or 1 and "
                "compute.nodes to 1",
            ),
            rule(
                "has(self.baseModel.adapter) || !has(self.evaluation.gates) || "
                "!self.evaluation.gates.exists(gate, has(gate.minGainOverAdapter) || has(gate.maxLossVsAdapter))",
                "minGainOverAdapter and maxLossVsAdapter in evaluation.gates need baseModel.adapter",
            ),
        )
    }

    suspend: bool = False
    """Stop the running stage, keep its checkpoint, and start nothing. Set to false to continue."""
    profile: ProfileName = ""
    """FineTuneProfile of the platform team, which presets fields that are not set here and limits others. Empty: the
    default profile for this namespace, if there is one."""
    hub: Hub = Hub()
    """The Hugging Face Hub to use."""
    base_model: BaseModelRef
    """The model to fine-tune."""
    dataset: Dataset
    """Location and format of the training rows."""
    tools: Tools | None = None
    """Tools for rows that have none. The tools of rows that have some must agree with them."""
    tokenizer: Tokenizer = Tokenizer()
    """Vocabulary and chat template."""
    adapter: Adapter = Adapter()
    """Fine-tuning method and its settings."""
    training: Training = Training()
    """Training hyperparameters."""
    evaluation: Evaluation = Evaluation()
    """How the base model and the tuned model are compared, and which gates the tuned model must pass to be
    published."""
    publish: Publish
    """Where and how the model is published."""
    tracking: Tracking | None = None
    """Experiment trackers to log to. Absent: none; the losses and metrics are in the status, the report and the
    workspace in any case."""
    workspace: Workspace = Workspace()
    """Object storage for the outputs of the stages. An output that is there is not computed again."""
    compute: Compute = Compute()
    """GPUs, nodes, trainer image and model cache."""
    pod_templates: PodTemplates = PodTemplates()
    """Settings of the pods, per stage: resources, placement, identity, environment and volumes."""
    queue: Queue | None = None
    """Kueue queue of the train pods, which also evaluate. prepare and publish need no GPU and are not queued. Absent:
    the object's labels kueue.x-k8s.io/queue-name and kueue.x-k8s.io/priority-class, if set."""
    retry: Retry = Retry()
    """Retries of failed stages."""
    max_runtime: Duration = "8h"
    """Maximum running time of all stages of a run together, for example 8h, 1.5h or 1d. Time spent waiting, queued or
    suspended does not count."""
    stall_timeout: Duration = "30m"
    """Maximum time without progress for a stage that has reported progress. After it, the pod saves a checkpoint, is
    stopped and is retried, which counts against retry.limit. Set it longer than loading the base model or pushing
    takes. 0s: never."""
    max_gpu_hours: GpuHours = ""
    """Maximum GPU hours of train and evaluate of a run together, over all their pods. A run with compute.nodes 2 and
    compute.gpus 8 uses 16 GPU hours per hour. Empty: no limit."""
    history_limit: Annotated[int, Field(ge=0, le=50)] = 5
    """Maximum number of finished runs in status.history."""
    retrain: Retrain | None = None
    """When to check the data for changes on a schedule. Absent: only after an edit or a new value of the annotation
    tunemill.dev/requested-at."""


def effective_workspace(spec: FineTuneSpec) -> Workspace:
    """Return the workspace of the spec, or by default `tunemill/` in the data set's bucket."""
    if spec.workspace.uri:
        return spec.workspace
    bucket = spec.dataset.uri.removeprefix("s3://").split("/", 1)[0]
    place = {
        "uri": f"s3://{bucket}/tunemill/",
        "credentials_secret_ref": spec.dataset.credentials_secret_ref,
        "endpoint": spec.dataset.endpoint,
        "region": spec.dataset.region,
    }
    return spec.workspace.model_copy(update=place)


def workspace_of(spec: FineTuneSpec, namespace: str) -> Workspace:
    """Return the workspace of an object of this namespace. It is a different prefix for each namespace.

    The namespace replaces a folder `{namespace}`, or is appended as the last folder. Only whole folder names are
    replaced: `team-{namespace}` for the namespace b would be the folder of the namespace team-b.
    """
    place = effective_workspace(spec)
    folders = place.uri.rstrip("/").split("/")
    # Servers on a file system may take ".." for what it means there.
    if NAMESPACE_FOLDER not in folders or ".." in folders:
        folders.append(NAMESPACE_FOLDER)
    uri = "/".join(namespace if folder == NAMESPACE_FOLDER else folder for folder in folders)
    return place.model_copy(update={"uri": f"{uri}/"})
