"""The one taxonomy of failures, used by the stages, the operator, the metrics, the docs and the tests.

A reason says what is wrong, who must act, whether trying again can help, and what to change. A stage that fails exits
with its reason's exit code and writes a StageReport; what a pod cannot say itself (an image that cannot be pulled, a
missing Secret, a node that went away) the operator reads off the objects and maps to the same reasons.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """The contract between a stage container and the Job's podFailurePolicy; the numbers are those of sysexits.h."""

    DONE = 0
    SPEC_WRONG = 64
    DATA_WRONG = 65
    INPUT_MISSING = 66
    SERVICE_UNAVAILABLE = 69
    INTERNAL_ERROR = 70
    NODE_BROKEN = 71
    INTERRUPTED = 75
    PERMISSION_DENIED = 77
    CONFIGURATION = 78


FINAL_EXIT_CODES = (
    ExitCode.SPEC_WRONG,
    ExitCode.DATA_WRONG,
    ExitCode.INPUT_MISSING,
    ExitCode.PERMISSION_DENIED,
    ExitCode.CONFIGURATION,
)
"""Exit codes that no retry can heal: the Job fails at once."""


class Actor(StrEnum):
    """Who has to act for the failure to go away."""

    USER = "User"
    PLATFORM = "Platform"
    NOBODY = "Nobody"


class Reason(StrEnum):
    """Every reason for which a run fails or waits. The names are part of the API: alerts and scripts match them."""

    # What the user wrote
    INVALID_SPEC = "InvalidSpec"
    INVALID_CHAT_TEMPLATE = "InvalidChatTemplate"
    TOKENIZER_LACKS_TAGS = "TokenizerLacksTags"
    TRAINING_DIVERGED = "TrainingDiverged"
    # What the platform team wrote
    PROFILE_NOT_FOUND = "ProfileNotFound"
    PROFILE_NOT_ALLOWED = "ProfileNotAllowed"
    PROFILE_AMBIGUOUS = "ProfileAmbiguous"
    PROFILE_INVALID = "ProfileInvalid"
    LIMIT_EXCEEDED = "LimitExceeded"
    # The data
    DATASET_EMPTY = "DatasetEmpty"
    DATASET_MALFORMED = "DatasetMalformed"
    DATASET_FORMAT_UNKNOWN = "DatasetFormatUnknown"
    DATASET_INVALID_ROWS = "DatasetInvalidRows"
    DATASET_TOO_SMALL = "DatasetTooSmall"
    ALL_ROWS_TOO_LONG = "AllRowsTooLong"
    NOTHING_TO_LEARN = "NothingToLearn"
    # Inputs that are not there
    BUCKET_NOT_FOUND = "BucketNotFound"
    OBJECT_NOT_FOUND = "ObjectNotFound"
    DATASET_NOT_FOUND = "DatasetNotFound"
    BASE_MODEL_NOT_FOUND = "BaseModelNotFound"
    BASE_MODEL_UNSUPPORTED = "BaseModelUnsupported"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    CREDENTIALS_MISSING = "CredentialsMissing"
    # Permissions
    S3_ACCESS_DENIED = "S3AccessDenied"
    HUB_TOKEN_INVALID = "HubTokenInvalid"  # noqa: S105 - a reason
    HUB_WRITE_DENIED = "HubWriteDenied"
    BASE_MODEL_GATED = "BaseModelGated"
    DATASET_GATED = "DatasetGated"
    HUB_QUOTA_EXCEEDED = "HubQuotaExceeded"
    # Services
    S3_UNREACHABLE = "S3Unreachable"
    S3_STORAGE_FULL = "S3StorageFull"
    HUB_UNREACHABLE = "HubUnreachable"
    # The machine below
    CUDA_UNAVAILABLE = "CudaUnavailable"
    CUDA_OUT_OF_MEMORY = "CudaOutOfMemory"
    DISK_FULL = "DiskFull"
    OUT_OF_MEMORY = "OutOfMemory"
    EVICTED = "Evicted"
    POD_LOST = "PodLost"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_REJECTED = "PodRejected"
    QUOTA_EXCEEDED = "QuotaExceeded"
    QUEUE_NOT_FOUND = "QueueNotFound"
    QUEUE_UNAVAILABLE = "QueueUnavailable"
    UNSCHEDULABLE = "Unschedulable"
    SERVICE_ACCOUNT_NOT_FOUND = "ServiceAccountNotFound"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    VOLUME_UNAVAILABLE = "VolumeUnavailable"
    SANDBOX_FAILED = "SandboxFailed"
    NODE_REJECTED_POD = "NodeRejectedPod"
    NODE_LOST = "NodeLost"
    SIDECAR_FAILED = "SidecarFailed"
    JOB_DELETED = "JobDeleted"
    REPORT_LOST = "ReportLost"
    WEBHOOK_UNAVAILABLE = "WebhookUnavailable"
    NAME_CONFLICT = "NameConflict"
    # The run
    INTERRUPTED = "Interrupted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NO_PROGRESS = "NoProgress"
    GPU_HOURS_SPENT = "GpuHoursSpent"
    STAGE_OUTPUT_MISSING = "StageOutputMissing"
    GATE_NOT_PASSED = "GateNotPassed"
    PROOF_FAILED = "ProofFailed"
    INTERNAL_ERROR = "InternalError"


@dataclass(frozen=True)
class Failure:
    """What is known about a reason before it happens.

    Attributes:
        exit_code: with which a stage ends; reasons that only the operator sees have one too, for the metrics.
        actor: who must act.
        remedy: one sentence that names the field, or the thing outside the object, to change.
    """

    exit_code: ExitCode
    actor: Actor
    remedy: str

    @property
    def retryable(self) -> bool:
        """Whether the same work may succeed when it is tried again with nothing changed."""
        return self.exit_code not in FINAL_EXIT_CODES


_SPEC, _DATA, _MISSING = ExitCode.SPEC_WRONG, ExitCode.DATA_WRONG, ExitCode.INPUT_MISSING
_DENIED, _CONFIG, _RETRY = ExitCode.PERMISSION_DENIED, ExitCode.CONFIGURATION, ExitCode.SERVICE_UNAVAILABLE
_NODE = ExitCode.NODE_BROKEN
_USER, _PLATFORM, _NOBODY = Actor.USER, Actor.PLATFORM, Actor.NOBODY

FAILURES: dict[Reason, Failure] = {
    Reason.INVALID_SPEC: Failure(_SPEC, _USER, "Change the field that the message names."),
    Reason.INVALID_CHAT_TEMPLATE: Failure(
        _SPEC,
        _USER,
        "Mend the template in spec.tokenizer.chatTemplate, or remove the field to use the base model's or ours.",
    ),
    Reason.TOKENIZER_LACKS_TAGS: Failure(
        _SPEC, _USER, "Set spec.tokenizer.mode to Extend or Auto, or choose a base model whose vocabulary has the tags."
    ),
    Reason.TRAINING_DIVERGED: Failure(
        _SPEC, _USER, "Lower spec.training.learningRate to about a third, or raise warmupRatio."
    ),
    Reason.PROFILE_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Correct spec.profile, or empty it for the default profile; the run goes on by itself once the profile exists.",
    ),
    Reason.PROFILE_NOT_ALLOWED: Failure(
        _DENIED,
        _USER,
        "Name a profile that this namespace may use in spec.profile, or ask the platform team to add the namespace to "
        "the profile's spec.namespaces.",
    ),
    Reason.PROFILE_AMBIGUOUS: Failure(
        _CONFIG,
        _PLATFORM,
        "Take spec.default from all but one of the profiles that the message names, or list namespaces in the one that "
        "is for few; until then, name one of them in spec.profile.",
    ),
    Reason.PROFILE_INVALID: Failure(
        _CONFIG,
        _PLATFORM,
        "Correct the field of the FineTuneProfile that the message names; the run goes on by itself.",
    ),
    Reason.LIMIT_EXCEEDED: Failure(
        _DENIED,
        _USER,
        "Change the fields that the message names to what is allowed, or ask the platform team to raise the limit; "
        "then the run goes on by itself.",
    ),
    Reason.DATASET_EMPTY: Failure(_DATA, _USER, "Put rows into the file that spec.dataset.uri names."),
    Reason.DATASET_MALFORMED: Failure(
        _DATA,
        _USER,
        "Mend the line that the message names, or allow some bad rows with spec.dataset.maxInvalidFraction. "
        "`tunemill-trainer lint` shows what is wrong in full.",
    ),
    Reason.DATASET_FORMAT_UNKNOWN: Failure(
        _DATA, _USER, "Set spec.dataset.format, or bring the rows into one of the formats of the data page."
    ),
    Reason.DATASET_INVALID_ROWS: Failure(
        _DATA,
        _USER,
        "Mend the rows that the message names, or allow some bad rows with spec.dataset.maxInvalidFraction. "
        "`tunemill-trainer lint` shows what is wrong in full.",
    ),
    Reason.DATASET_TOO_SMALL: Failure(
        _DATA,
        _USER,
        "Add rows, or change spec.dataset.evaluation so that training and evaluation both get at least one.",
    ),
    Reason.ALL_ROWS_TOO_LONG: Failure(
        _DATA, _USER, "Raise spec.training.maxLength above the length that the message gives."
    ),
    Reason.NOTHING_TO_LEARN: Failure(
        _DATA, _USER, "Give the rows assistant messages: with spec.training.lossOn Assistant nothing else is learnt."
    ),
    Reason.BUCKET_NOT_FOUND: Failure(
        _MISSING, _USER, "Correct the bucket in the uri that the message names, or create it."
    ),
    Reason.OBJECT_NOT_FOUND: Failure(
        _MISSING, _USER, "Correct the key in the uri that the message names, or upload the object."
    ),
    Reason.DATASET_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Correct the data set's name, revision or path in the uri that the message names; for a private one, set "
        "spec.baseModel.tokenSecretRef.",
    ),
    Reason.BASE_MODEL_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Correct spec.baseModel.id or revision; for a private model, set spec.baseModel.tokenSecretRef.",
    ),
    Reason.BASE_MODEL_UNSUPPORTED: Failure(
        _SPEC, _USER, "Choose a causal language model with safetensors weights and a fast tokenizer in spec.baseModel."
    ),
    Reason.SECRET_NOT_FOUND: Failure(
        _MISSING, _USER, "Create the Secret, with the key, in the object's namespace; the run goes on by itself."
    ),
    Reason.CONFIG_MAP_NOT_FOUND: Failure(
        _MISSING, _USER, "Create the ConfigMap, with the key, in the object's namespace; the run goes on by itself."
    ),
    Reason.CREDENTIALS_MISSING: Failure(
        _MISSING,
        _USER,
        "Set the credentialsSecretRef or tokenSecretRef that the message names, or give the pod an identity "
        "with serviceAccountName in spec.podTemplates.",
    ),
    Reason.S3_ACCESS_DENIED: Failure(
        _DENIED, _USER, "Give the credentials of the uri that the message names the missing permission on the bucket."
    ),
    Reason.HUB_TOKEN_INVALID: Failure(
        _DENIED, _USER, "Put a valid Hugging Face token into the Secret of the tokenSecretRef that the message names."
    ),
    Reason.HUB_WRITE_DENIED: Failure(
        _DENIED,
        _USER,
        "Use a token with write access to the namespace of spec.publish.repository in "
        "spec.publish.tokenSecretRef, or change the namespace.",
    ),
    Reason.BASE_MODEL_GATED: Failure(
        _DENIED, _USER, "Accept the model's licence on its Hub page with the account of spec.baseModel.tokenSecretRef."
    ),
    Reason.DATASET_GATED: Failure(
        _DENIED, _USER, "Accept the data set's terms on its Hub page with the account of spec.baseModel.tokenSecretRef."
    ),
    Reason.HUB_QUOTA_EXCEEDED: Failure(
        _DENIED, _USER, "Free storage in the Hub account, or set spec.publish.private to false."
    ),
    Reason.S3_UNREACHABLE: Failure(
        _RETRY,
        _PLATFORM,
        "Check the endpoint that the message names and that the namespace's network policy lets pods reach it.",
    ),
    Reason.S3_STORAGE_FULL: Failure(
        _CONFIG,
        _PLATFORM,
        "Free space in the object store of the uri that the message names, or raise its quota; then set the annotation "
        "tunemill.dev/requested-at to a new value.",
    ),
    Reason.HUB_UNREACHABLE: Failure(
        _RETRY, _PLATFORM, "Check spec.hub.endpoint and that the namespace's network policy lets pods reach it."
    ),
    Reason.CUDA_UNAVAILABLE: Failure(
        _NODE,
        _PLATFORM,
        "Check the GPU, the driver (580 or newer) and the device plugin of the nodes that the message names; for a run "
        "on the CPU set spec.compute.gpus to 0. docs/how-to/gpus.md has what works.",
    ),
    Reason.CUDA_OUT_OF_MEMORY: Failure(
        _CONFIG,
        _USER,
        "Set spec.baseModel.quantization to NF4, lower spec.training.maxLength, or choose a GPU with more memory with "
        "nodeSelector in spec.podTemplates.train.",
    ),
    Reason.DISK_FULL: Failure(
        _NODE,
        _PLATFORM,
        "Free the disk that the message names, or ask for more with ephemeral-storage in the resources of the "
        "stage in spec.podTemplates, or give it a scratch volume there.",
    ),
    Reason.OUT_OF_MEMORY: Failure(
        _RETRY,
        _USER,
        "Raise the memory limit in the resources of the stage in spec.podTemplates; evaluate runs in the pod of train.",
    ),
    Reason.EVICTED: Failure(
        _RETRY, _PLATFORM, "Give the pod requests in spec.podTemplates that cover what it uses, or free the node."
    ),
    Reason.POD_LOST: Failure(
        _RETRY, _NOBODY, "Nothing: the stage is started again and goes on from its last checkpoint."
    ),
    Reason.IMAGE_PULL_FAILED: Failure(
        _CONFIG,
        _PLATFORM,
        "Correct spec.compute.trainerImage or the operator's trainer image, or give the pods an image pull secret.",
    ),
    Reason.POD_REJECTED: Failure(
        _CONFIG, _PLATFORM, "Change what the admission policy named in the message refuses, or relax the policy."
    ),
    Reason.QUOTA_EXCEEDED: Failure(
        _CONFIG, _PLATFORM, "Raise the namespace's ResourceQuota or LimitRange, or ask for less in spec.podTemplates."
    ),
    Reason.QUEUE_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Set spec.queue.name to a LocalQueue of the object's namespace, or have this one created; the run goes on by "
        "itself.",
    ),
    Reason.QUEUE_UNAVAILABLE: Failure(
        _CONFIG,
        _PLATFORM,
        "Install or mend Kueue, or remove spec.queue to train without one; the run goes on by itself.",
    ),
    Reason.UNSCHEDULABLE: Failure(
        _RETRY, _PLATFORM, "Add a node that has what the message says is missing, or ask for less in spec.podTemplates."
    ),
    Reason.SERVICE_ACCOUNT_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Create the ServiceAccount that serviceAccountName in spec.podTemplates names; the run goes on by itself.",
    ),
    Reason.CLAIM_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Create the PersistentVolumeClaim that spec.compute.modelCache names in the object's namespace, or correct the "
        "name; the run goes on by itself.",
    ),
    Reason.VOLUME_UNAVAILABLE: Failure(
        _RETRY,
        _PLATFORM,
        "Check the claim and its volume; pods on several nodes need one with the access mode ReadWriteMany.",
    ),
    Reason.SANDBOX_FAILED: Failure(
        _RETRY,
        _PLATFORM,
        "Check the container runtime and the network plugin of the pod's node, and runtimeClassName in "
        "spec.podTemplates.",
    ),
    Reason.NODE_REJECTED_POD: Failure(
        _RETRY,
        _PLATFORM,
        "Check the device plugin of the pod's node and what else runs there, or choose other nodes in "
        "spec.podTemplates.",
    ),
    Reason.NODE_LOST: Failure(
        _RETRY,
        _PLATFORM,
        "Bring the node back, or delete its Node object once the machine is surely off: the stage then goes on "
        "elsewhere from its last checkpoint.",
    ),
    Reason.SIDECAR_FAILED: Failure(
        _RETRY,
        _PLATFORM,
        "Read the log of the container that the message names. It was added to the pod by an admission policy: correct "
        "the policy, or exclude pods with the label tunemill.dev/finetune from it.",
    ),
    Reason.JOB_DELETED: Failure(
        _RETRY,
        _PLATFORM,
        "Exclude Jobs with the label tunemill.dev/finetune from the policy or script that deletes them, then set the "
        "annotation tunemill.dev/requested-at to a new value.",
    ),
    Reason.REPORT_LOST: Failure(
        _RETRY,
        _PLATFORM,
        "Keep pods with the label tunemill.dev/finetune until their Job has ended, and do not dispatch the Job to "
        "another cluster; then set the annotation tunemill.dev/requested-at to a new value.",
    ),
    Reason.WEBHOOK_UNAVAILABLE: Failure(
        _RETRY, _PLATFORM, "Bring the admission webhook that the message names back; the run goes on by itself."
    ),
    Reason.NAME_CONFLICT: Failure(
        _CONFIG, _USER, "Rename this object, or remove the Job of the same name that belongs to something else."
    ),
    Reason.INTERRUPTED: Failure(
        ExitCode.INTERRUPTED, _NOBODY, "Nothing: the stage was stopped in time and goes on from its last checkpoint."
    ),
    Reason.DEADLINE_EXCEEDED: Failure(_SPEC, _USER, "Raise spec.maxRuntime: the run goes on from its last checkpoint."),
    Reason.NO_PROGRESS: Failure(
        _RETRY,
        _PLATFORM,
        "Look at the log and the node of the pods that fell silent; where a stage is only slow, raise "
        "spec.stallTimeout.",
    ),
    Reason.GPU_HOURS_SPENT: Failure(_SPEC, _USER, "Raise spec.maxGpuHours: the run goes on from its last checkpoint."),
    Reason.STAGE_OUTPUT_MISSING: Failure(
        _RETRY, _NOBODY, "Nothing: the stage whose output is gone from the workspace is done again."
    ),
    Reason.GATE_NOT_PASSED: Failure(
        _SPEC,
        _USER,
        "Improve the data or the training, or change the gate in spec.evaluation.gates: nothing is trained again.",
    ),
    Reason.PROOF_FAILED: Failure(
        ExitCode.INTERNAL_ERROR,
        _NOBODY,
        "Report it with the stage's log: what was pushed does not reproduce what was trained.",
    ),
    Reason.INTERNAL_ERROR: Failure(
        ExitCode.INTERNAL_ERROR, _NOBODY, "Report it with the stage's log: this is a defect of Tunemill."
    ),
}
"""Reason → what to do about it. Every reason has an entry; a test holds that."""
