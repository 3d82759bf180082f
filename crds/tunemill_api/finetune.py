"""What users write: the spec of a FunctionCallFineTune. The CRD's schema, defaults and rules are made from it.

Its larger parts are in modules of their own: data, training, evaluation, publish and compute.
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
from tunemill_api.training import Adapter, Training

NAMESPACE_FOLDER: Final = "{namespace}"
"""Stands for the object's namespace in `spec.workspace.uri`."""


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

    id: BaseModelId
    """The base model's repository on the Hub, for example google/gemma-2-2b-it."""
    revision: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][-._/A-Za-z0-9]*$")] = "main"
    """Branch, tag or commit. Prepare resolves it to a commit, which every later stage uses."""
    token_secret_ref: SecretKeyRef | None = None
    """A read token, for gated and private models."""
    quantization: Quantization = Quantization.NONE
    """Train and judge on a base model with weights of 4 bits (NF4) or 8 (Int8), in about a third or a half of the
    memory. What is trained stays in FP32, and what is published fits the unquantised model, too."""


class Workspace(ApiModel):
    """Where the outputs of the stages are kept."""

    uri: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=rf"^(s3://[a-z0-9][-.a-z0-9]{{1,61}}[a-z0-9](/[^*?]*)?|{local_files.PATTERN})?$",
            json_schema_extra=rules(rule(local_files.RULE, local_files.RULE_MESSAGE)),
        ),
    ] = ""
    """An S3 prefix; empty means tunemill/ in the dataset's bucket, with the dataset's credentials and endpoint. Needed
    where dataset.uri is on the Hub. Outputs go to a folder of it with the name of the namespace, or to where a folder
    {namespace} stands, for example s3://acme/{namespace}/tunemill/. status.workspace has the whole."""
    credentials_secret_ref: SecretRef | None = None
    """Absent: the pod's own identity."""
    endpoint: Endpoint = ""
    """The S3 server's URL; empty means AWS."""
    region: Annotated[str, Field(max_length=64, pattern=r"^[-a-z0-9]*$")] = ""
    """The bucket's region; empty means what the environment says."""
    manifest_key_secret_ref: ManifestKeyRef | None = None
    """Signs the manifest of every output. Stages then use no output without a valid signature, and make it again.
    Absent: outputs are not signed, and whoever may write to the workspace can replace them."""
    keep_runs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Of how many runs of this object the outputs are kept; older ones are removed when a model has been published.
    What any run of another object refers to stays."""


class Queue(ApiModel):
    """A queue of Kueue."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    """A LocalQueue of the object's namespace."""
    priority_class: Annotated[str, Field(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")] = ""
    """A WorkloadPriorityClass, which says who goes first in the queue and who is preempted; empty: that of the pod's
    spec.podTemplates.train.priorityClassName, or 0."""


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
                "self.adapter.method != 'AdaLoRA' || !has(self.training.earlyStopping) || "
                "!has(self.training.earlyStopping.patience) || self.training.earlyStopping.patience == 0",
                "training.earlyStopping.patience must be 0 with adapter.method AdaLoRA: its ranks are settled at the "
                "end of the planned steps",
            ),
            rule(
                "self.adapter.method != 'IA3' || "
                "(self.tokenizer.mode != 'Extend' && "
                "(!has(self.tokenizer.addTokens) || size(self.tokenizer.addTokens) == 0))",
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
    """GPUs, trainer image and model cache."""
    pod_templates: PodTemplates = PodTemplates()
    """Settings of the pods, per stage: resources, placement, identity, environment and volumes."""
    queue: Queue | None = None
    """The queue in which the pod that trains and evaluates waits for its quota; prepare and publish, which need no GPU,
    do not wait. Absent: that of the object's labels kueue.x-k8s.io/queue-name and kueue.x-k8s.io/priority-class, or
    none."""
    retry: Retry = Retry()
    """What is tried again."""
    max_runtime: Duration = "8h"
    """Maximum running time of all stages of a run together, for example 8h, 1.5h or 1d. Time spent waiting, queued or
    suspended does not count."""
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
    place = {
        "uri": f"s3://{bucket}/tunemill/",
        "credentials_secret_ref": spec.dataset.credentials_secret_ref,
        "endpoint": spec.dataset.endpoint,
        "region": spec.dataset.region,
    }
    return spec.workspace.model_copy(update=place)


def workspace_of(spec: FineTuneSpec, namespace: str) -> Workspace:
    """Return where the outputs of an object of this namespace go: no two namespaces have the same place.

    The namespace takes the place of a folder `{namespace}`, else it is the last folder. A part of a folder's name is
    not replaced: `team-{namespace}` of the namespace b would be the folder of the namespace team-b.
    """
    place = effective_workspace(spec)
    folders = place.uri.rstrip("/").split("/")
    # Servers on a file system may take ".." for what it means there.
    if NAMESPACE_FOLDER not in folders or ".." in folders:
        folders.append(NAMESPACE_FOLDER)
    uri = "/".join(namespace if folder == NAMESPACE_FOLDER else folder for folder in folders)
    return place.model_copy(update={"uri": f"{uri}/"})
