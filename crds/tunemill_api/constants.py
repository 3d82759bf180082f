"""Every name that the operator, the stages and users' tools share: labels, annotations, mount paths, environment."""

from typing import Final

GROUP: Final = "tunemill.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "FunctionCallFineTune"
PLURAL: Final = "functioncallfinetunes"
SINGULAR: Final = "functioncallfinetune"
SHORT_NAME: Final = "fcft"
PROFILE_KIND: Final = "FineTuneProfile"
PROFILE_PLURAL: Final = "finetuneprofiles"
PROFILE_SINGULAR: Final = "finetuneprofile"
PROFILE_SHORT_NAME: Final = "ftp"

PUBLIC_HUB: Final = "https://huggingface.co"
"""Where base models, data sets and releases lie when spec.hub.endpoint is empty."""

FIELD_MANAGER: Final = "tunemill-operator"
"""The server-side-apply owner of `.status`."""

LABEL_FINETUNE: Final = f"{GROUP}/finetune"
"""On every Job and pod: the name of the FunctionCallFineTune it works for. The operator watches only what carries
it."""
LABEL_STAGE: Final = f"{GROUP}/stage"
"""On every Job and pod: `prepare`, `train` (which also evaluates) or `publish`."""
LABEL_LEADER: Final = f"{GROUP}/leader"
"""On the operator pod that holds the Lease: the progress Service selects it."""

LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY: Final = "kueue.x-k8s.io/priority-class"
"""Kueue's own: on the Job that trains, and, for those who queue everything by label, on a FunctionCallFineTune."""

ANNOTATION_RUN_SPEC: Final = f"{GROUP}/run-spec"
"""On stage pods: the RunSpec as JSON; the pod reads it through the downward API."""
ANNOTATION_KEY: Final = f"{GROUP}/key"
"""On Jobs: the key of the work that the Job does; a Job whose key is no longer wanted is obsolete."""
ANNOTATION_GENERATION: Final = f"{GROUP}/generation"
"""On Jobs: the generation of the object that asked for it; an edit after a failure may try the same key again."""
ANNOTATION_REQUESTED_AT: Final = f"{GROUP}/requested-at"
"""On a FunctionCallFineTune, set by users: a new value checks the data and the base model again and retries what
failed."""

STAGE_DIRECTORY: Final = "/var/run/tunemill"
RUN_SPEC_PATH: Final = f"{STAGE_DIRECTORY}/spec/run.json"
SECRETS_DIRECTORY: Final = f"{STAGE_DIRECTORY}/secrets"
"""One folder a purpose below it: `dataset` and `workspace` with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and optionally
AWS_SESSION_TOKEN as files, `hub-read` and `hub-write` with a file `token`, `signing` with a file `key.pem`,
`manifest-key` with a file `key` and optionally `previous-key` and `trusted-before`."""
CHAT_TEMPLATE_PATH: Final = f"{STAGE_DIRECTORY}/chat-template/chat_template.jinja"
TOOLS_PATH: Final = f"{STAGE_DIRECTORY}/tools/tools.json"
MODEL_CACHE_PATH: Final = f"{STAGE_DIRECTORY}/models"
PROGRESS_TOKEN_PATH: Final = f"{STAGE_DIRECTORY}/progress/token"
PROGRESS_CA_PATH: Final = f"{STAGE_DIRECTORY}/progress/ca.crt"
CA_BUNDLE_PATH: Final = f"{STAGE_DIRECTORY}/authorities/ca.crt"
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LOG_BYTES: Final = 4096
"""What the kubelet keeps of a termination message; the reports of all stages of a container have to fit."""

ENV_CA_BUNDLE: Final = "TUNEMILL_CA_BUNDLE"
"""On stage containers: the file with the authorities that the platform trusts beside the public ones."""
ENV_IMAGE: Final = "TUNEMILL_IMAGE"
"""On stage containers: the reference of their image, for the provenance of what they make."""
ENV_BUILDER_ID: Final = "TUNEMILL_BUILDER_ID"
"""On stage containers: the URI of this installation, the builder in the provenance of what it publishes; absent where
the platform sets none."""
PROGRESS_AUDIENCE: Final = f"progress.{GROUP}"
"""The only audience of the token that a stage pod holds: it is good for progress reports and for nothing else."""
ENV_PROGRESS_URL: Final = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_PROGRESS_CA: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
ENV_PROGRESS_TOKEN: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - the name of a variable, not a token
"""The three variables of Kubeflow's status protocol (KEP-2779), which Transformers speaks by itself."""

ENV_GRACE_SECONDS: Final = "TUNEMILL_GRACE_SECONDS"
"""On stage containers: seconds from SIGTERM within which the stage must have stopped, checkpoint included. Less than
the pod's terminationGracePeriodSeconds, so that the stage ends before it is killed."""

USER_ID: Final = 65532
"""The user and group that every container of ours runs as, unless the platform leaves the choice to the cluster."""
