"""Failure reasons, used by the stages, the operator, the metrics, the docs and the tests.

Each reason has an exit code, the party who must act, and a remedy. A failing stage exits with the exit code of its
reason and writes a StageReport. Failures that a pod cannot report itself (an image that cannot be pulled, a missing
Secret, a lost node) are detected by the operator from the objects and mapped to the same reasons.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """Exit codes of stage containers, evaluated by the Job's podFailurePolicy. The numbers are those of sysexits.h."""

    DONE = 0
    SPEC_WRONG = 64
    DATA_WRONG = 65
    INPUT_MISSING = 66
    SERVICE_UNAVAILABLE = 69
    INTERNAL_ERROR = 70
    NODE_BROKEN = 71
    INTERRUPTED = 75
    PEER_LOST = 76
    PERMISSION_DENIED = 77
    CONFIGURATION = 78


FINAL_EXIT_CODES = (
    ExitCode.SPEC_WRONG,
    ExitCode.DATA_WRONG,
    ExitCode.INPUT_MISSING,
    ExitCode.PERMISSION_DENIED,
    ExitCode.CONFIGURATION,
)
"""Exit codes after which a retry cannot succeed. The Job fails immediately."""


class Actor(StrEnum):
    """Who has to act to resolve a failure."""

    USER = "User"
    PLATFORM = "Platform"
    NOBODY = "Nobody"


class Reason(StrEnum):
    """Every reason for which a run fails or waits. The names are part of the API: alerts and scripts use them."""

    # Spec
    INVALID_SPEC = "InvalidSpec"
    INVALID_CHAT_TEMPLATE = "InvalidChatTemplate"
    TOKENIZER_LACKS_TAGS = "TokenizerLacksTags"
    TRAINING_DIVERGED = "TrainingDiverged"
    # FineTuneProfile
    PROFILE_NOT_FOUND = "ProfileNotFound"
    PROFILE_NOT_ALLOWED = "ProfileNotAllowed"
    PROFILE_AMBIGUOUS = "ProfileAmbiguous"
    PROFILE_INVALID = "ProfileInvalid"
    LIMIT_EXCEEDED = "LimitExceeded"
    # Data
    DATASET_EMPTY = "DatasetEmpty"
    DATASET_MALFORMED = "DatasetMalformed"
    DATASET_FORMAT_UNKNOWN = "DatasetFormatUnknown"
    DATASET_INVALID_ROWS = "DatasetInvalidRows"
    DATASET_TOO_SMALL = "DatasetTooSmall"
    ALL_ROWS_TOO_LONG = "AllRowsTooLong"
    NOTHING_TO_LEARN = "NothingToLearn"
    # Missing inputs
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
    REGISTRY_WRITE_DENIED = "RegistryWriteDenied"
    REGISTRY_UNREACHABLE = "RegistryUnreachable"
    SIGSTORE_REFUSED = "SigstoreRefused"
    SIGSTORE_UNREACHABLE = "SigstoreUnreachable"
    # Nodes, pods and cluster services
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
    PEER_LOST = "PeerLost"
    SIDECAR_FAILED = "SidecarFailed"
    JOB_DELETED = "JobDeleted"
    REPORT_LOST = "ReportLost"
    WEBHOOK_UNAVAILABLE = "WebhookUnavailable"
    NAME_CONFLICT = "NameConflict"
    # Run
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
    """Exit code, actor and remedy of a failure reason.

    Attributes:
        exit_code: exit code of the stage. Reasons that only the operator detects also have one, for the metrics.
        actor: who must act.
        remedy: one sentence that names the field, or the external resource, to change.
    """

    exit_code: ExitCode
    actor: Actor
    remedy: str

    @property
    def retryable(self) -> bool:
        """Whether a retry without changes can succeed."""
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
        "Correct the template in spec.tokenizer.chatTemplate, or remove the field to use the default template.",
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
        'Correct spec.profile, or set it to "" for the default profile. The run continues once the profile exists.',
    ),
    Reason.PROFILE_NOT_ALLOWED: Failure(
        _DENIED,
        _USER,
        "Set spec.profile to a profile that this namespace may use, or ask the platform team to add the namespace to "
        "the profile's spec.namespaces.",
    ),
    Reason.PROFILE_AMBIGUOUS: Failure(
        _CONFIG,
        _PLATFORM,
        "Set spec.default to false in all but one of the profiles in the message, or set spec.namespaces in one of "
        "them. Until then, set spec.profile to one of them.",
    ),
    Reason.PROFILE_INVALID: Failure(
        _CONFIG,
        _PLATFORM,
        "Correct the field of the FineTuneProfile that the message names. The run then continues.",
    ),
    Reason.LIMIT_EXCEEDED: Failure(
        _DENIED,
        _USER,
        "Change the fields that the message names to allowed values, or ask the platform team to raise the limit. The "
        "run then continues.",
    ),
    Reason.DATASET_EMPTY: Failure(_DATA, _USER, "Add rows to the data at spec.dataset.uri."),
    Reason.DATASET_MALFORMED: Failure(
        _DATA,
        _USER,
        "Correct the line that the message names, or allow invalid rows with spec.dataset.maxInvalidFraction. "
        "`tunemill lint` lists all errors.",
    ),
    Reason.DATASET_FORMAT_UNKNOWN: Failure(
        _DATA, _USER, "Set spec.dataset.format, or convert the rows to one of the formats in docs/how-to/data.md."
    ),
    Reason.DATASET_INVALID_ROWS: Failure(
        _DATA,
        _USER,
        "Correct the rows that the message names, or allow invalid rows with spec.dataset.maxInvalidFraction. "
        "`tunemill lint` lists all errors.",
    ),
    Reason.DATASET_TOO_SMALL: Failure(
        _DATA,
        _USER,
        "Add rows, or change spec.dataset.evaluation so that training and evaluation each get at least one row.",
    ),
    Reason.ALL_ROWS_TOO_LONG: Failure(
        _DATA, _USER, "Increase spec.training.maxLength above the length in the message."
    ),
    Reason.NOTHING_TO_LEARN: Failure(
        _DATA,
        _USER,
        "Add assistant messages to the rows: with spec.training.lossOn Assistant only they are trained on.",
    ),
    Reason.BUCKET_NOT_FOUND: Failure(
        _MISSING, _USER, "Correct the bucket in the URI that the message names, or create it."
    ),
    Reason.OBJECT_NOT_FOUND: Failure(
        _MISSING, _USER, "Correct the key in the URI that the message names, or upload the object."
    ),
    Reason.DATASET_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Correct the data set's name, revision or path in the URI that the message names; for a private data set, set "
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
        _MISSING, _USER, "Create the Secret, with the key, in the object's namespace. The run then continues."
    ),
    Reason.CONFIG_MAP_NOT_FOUND: Failure(
        _MISSING, _USER, "Create the ConfigMap, with the key, in the object's namespace. The run then continues."
    ),
    Reason.CREDENTIALS_MISSING: Failure(
        _MISSING,
        _USER,
        "Set the credentialsSecretRef or tokenSecretRef that the message names, or give the pod an identity "
        "with serviceAccountName in spec.podTemplates.",
    ),
    Reason.S3_ACCESS_DENIED: Failure(
        _DENIED, _USER, "Grant the credentials of the URI in the message the missing permission on the bucket."
    ),
    Reason.HUB_TOKEN_INVALID: Failure(
        _DENIED, _USER, "Store a valid Hugging Face token in the Secret of the tokenSecretRef that the message names."
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
        "Check the endpoint in the message, and that the namespace's NetworkPolicies allow pods to reach it.",
    ),
    Reason.S3_STORAGE_FULL: Failure(
        _CONFIG,
        _PLATFORM,
        "Free space in the object store of the URI in the message, or raise its quota; then set the annotation "
        "tunemill.dev/requested-at to a new value.",
    ),
    Reason.HUB_UNREACHABLE: Failure(
        _RETRY, _PLATFORM, "Check spec.hub.endpoint, and that the namespace's NetworkPolicies allow pods to reach it."
    ),
    Reason.REGISTRY_WRITE_DENIED: Failure(
        _DENIED,
        _USER,
        "Put credentials into the Secret of spec.publish.oci.secretRef that can push to the repository, and create the "
        "repository if the registry does not.",
    ),
    Reason.REGISTRY_UNREACHABLE: Failure(
        _RETRY,
        _PLATFORM,
        "Check spec.publish.oci.registry, and that the namespace's NetworkPolicies allow pods to reach it.",
    ),
    Reason.SIGSTORE_REFUSED: Failure(
        _DENIED,
        _PLATFORM,
        "Let Sigstore accept the tokens of this cluster's issuer, correct the trust configuration in "
        "sigstore.configMap of the operator's chart, or set spec.publish.signing.keySecretRef instead of keyless.",
    ),
    Reason.SIGSTORE_UNREACHABLE: Failure(
        _RETRY,
        _PLATFORM,
        "Check that the namespace's NetworkPolicies allow pods to reach Sigstore, and the URLs in sigstore.configMap "
        "of the operator's chart.",
    ),
    Reason.CUDA_UNAVAILABLE: Failure(
        _NODE,
        _PLATFORM,
        "Check the GPU, the driver (580 or newer) and the device plugin of the nodes that the message names. To train "
        "on the CPU, set spec.compute.gpus to 0. See docs/how-to/gpus.md.",
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
        "Free space on the disk that the message names, or increase ephemeral-storage in the resources of the stage in "
        "spec.podTemplates, or set a scratch volume there.",
    ),
    Reason.OUT_OF_MEMORY: Failure(
        _RETRY,
        _USER,
        "Increase the memory limit of the stage in spec.podTemplates. For evaluate, set it in spec.podTemplates.train.",
    ),
    Reason.EVICTED: Failure(
        _RETRY,
        _PLATFORM,
        "Set requests in spec.podTemplates that cover the pod's usage, or free memory and disk on the node.",
    ),
    Reason.POD_LOST: Failure(
        _RETRY, _NOBODY, "None needed: the stage is retried and continues from its last checkpoint."
    ),
    Reason.IMAGE_PULL_FAILED: Failure(
        _CONFIG,
        _PLATFORM,
        "Correct spec.compute.trainerImage or the chart value trainer.image, or add an image pull Secret.",
    ),
    Reason.POD_REJECTED: Failure(
        _CONFIG, _PLATFORM, "Change what the admission policy in the message refuses, or relax the policy."
    ),
    Reason.QUOTA_EXCEEDED: Failure(
        _CONFIG,
        _PLATFORM,
        "Raise the namespace's ResourceQuota or LimitRange, or reduce the requests in spec.podTemplates.",
    ),
    Reason.QUEUE_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Set spec.queue.name to a LocalQueue in the object's namespace, or create this one. The run then continues.",
    ),
    Reason.QUEUE_UNAVAILABLE: Failure(
        _CONFIG,
        _PLATFORM,
        "Install or repair Kueue, or remove spec.queue to train without a queue. The run then continues.",
    ),
    Reason.UNSCHEDULABLE: Failure(
        _RETRY,
        _PLATFORM,
        "Add a node with the resources or labels in the message, or reduce the requirements in spec.podTemplates.",
    ),
    Reason.SERVICE_ACCOUNT_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Create the ServiceAccount that serviceAccountName in spec.podTemplates names. The run then continues.",
    ),
    Reason.CLAIM_NOT_FOUND: Failure(
        _MISSING,
        _USER,
        "Create the PersistentVolumeClaim in the object's namespace, or correct its name in spec.compute.modelCache or "
        "spec.podTemplates. The run then continues.",
    ),
    Reason.VOLUME_UNAVAILABLE: Failure(
        _RETRY,
        _PLATFORM,
        "Check the PersistentVolumeClaim and its volume. Pods on several nodes need the access mode ReadWriteMany.",
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
        "Check the device plugin of the pod's node and the other pods on it, or choose other nodes in "
        "spec.podTemplates.",
    ),
    Reason.NODE_LOST: Failure(
        _RETRY,
        _PLATFORM,
        "Bring the node back, or delete its Node object once the machine is certainly off. The stage then continues on "
        "another node from its last checkpoint.",
    ),
    Reason.PEER_LOST: Failure(
        ExitCode.PEER_LOST,
        _NOBODY,
        "None needed: all pods of the run start again and continue from the last checkpoint.",
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
        _RETRY, _PLATFORM, "Restore the admission webhook that the message names. The run then continues."
    ),
    Reason.NAME_CONFLICT: Failure(
        _CONFIG, _USER, "Rename this object, or delete the Job with the same name that belongs to something else."
    ),
    Reason.INTERRUPTED: Failure(
        ExitCode.INTERRUPTED, _NOBODY, "None needed: the stage was stopped and continues from its last checkpoint."
    ),
    Reason.DEADLINE_EXCEEDED: Failure(
        _SPEC, _USER, "Increase spec.maxRuntime. The run then continues from its last checkpoint."
    ),
    Reason.NO_PROGRESS: Failure(
        _RETRY,
        _PLATFORM,
        "Check the log and the node of the stopped pods. If the stage is only slow, increase spec.stallTimeout.",
    ),
    Reason.GPU_HOURS_SPENT: Failure(
        _SPEC, _USER, "Increase spec.maxGpuHours. The run then continues from its last checkpoint."
    ),
    Reason.STAGE_OUTPUT_MISSING: Failure(
        _RETRY, _NOBODY, "None needed: the stage whose output is missing from the workspace runs again."
    ),
    Reason.GATE_NOT_PASSED: Failure(
        _SPEC,
        _USER,
        "Improve the data or the training, or change the gate in spec.evaluation.gates, which needs no new training.",
    ),
    Reason.PROOF_FAILED: Failure(
        ExitCode.INTERNAL_ERROR,
        _NOBODY,
        "Report a bug with the stage's log: the published model does not give the replies of the trained model.",
    ),
    Reason.INTERNAL_ERROR: Failure(ExitCode.INTERNAL_ERROR, _NOBODY, "Report a bug in Tunemill, with the stage's log."),
}
"""Properties of each reason. A test checks that every reason has an entry."""
