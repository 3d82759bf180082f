"""Names shared by the operator, the stages and users' tools: labels, annotations, paths, environment variables."""

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
"""URL of the Hub when spec.hub.endpoint is empty."""

FIELD_MANAGER: Final = "tunemill-operator"
"""Field manager of `.status` for server-side apply."""

LABEL_FINETUNE: Final = f"{GROUP}/finetune"
"""On every Job and pod: the name of the FunctionCallFineTune that it belongs to. The operator watches only objects with
this label."""
LABEL_STAGE: Final = f"{GROUP}/stage"
"""On every Job and pod: `prepare`, `train` (which also evaluates) or `publish`."""
LABEL_LEADER: Final = f"{GROUP}/leader"
"""On the operator pod that holds the Lease. The progress Service selects this label."""

LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY: Final = "kueue.x-k8s.io/priority-class"
"""Kueue's labels. The operator sets them on the train Job. On a FunctionCallFineTune they are the default of
spec.queue."""

ANNOTATION_RUN_SPEC: Final = f"{GROUP}/run-spec"
"""On stage pods: the RunSpec as JSON. The pod reads it through the downward API."""
ANNOTATION_KEY: Final = f"{GROUP}/key"
"""On Jobs: the key of the output that the Job computes. A Job whose key is no longer needed is obsolete."""
ANNOTATION_GENERATION: Final = f"{GROUP}/generation"
"""On Jobs: the generation of the object for which the Job was created. An edit after a failure retries the same key."""
ANNOTATION_REQUESTED_AT: Final = f"{GROUP}/requested-at"
"""On a FunctionCallFineTune, set by users: a new value checks the data and the base model again and retries failed
stages."""

STAGE_DIRECTORY: Final = "/var/run/tunemill"
RUN_SPEC_PATH: Final = f"{STAGE_DIRECTORY}/spec/run.json"
SECRETS_DIRECTORY: Final = f"{STAGE_DIRECTORY}/secrets"
"""Directory with one subdirectory per purpose: `dataset` and `workspace` with the files AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY and optionally AWS_SESSION_TOKEN; `hub-read`, `hub-write` and `wandb` with a file `token`;
`mlflow` with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; `signing` with a file
`key.pem`; `registry` with a file `config.json`; `manifest-key` with a file `key` and optionally `previous-key` and
`trusted-before`."""
CHAT_TEMPLATE_PATH: Final = f"{STAGE_DIRECTORY}/chat-template/chat_template.jinja"
TOOLS_PATH: Final = f"{STAGE_DIRECTORY}/tools/tools.json"
MODEL_CACHE_PATH: Final = f"{STAGE_DIRECTORY}/models"
PROGRESS_TOKEN_PATH: Final = f"{STAGE_DIRECTORY}/progress/token"
PROGRESS_CA_PATH: Final = f"{STAGE_DIRECTORY}/progress/ca.crt"
CA_BUNDLE_PATH: Final = f"{STAGE_DIRECTORY}/authorities/ca.crt"
TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LOG_BYTES: Final = 4096
"""Maximum size of a termination message that the kubelet keeps. The reports of all stages of a container share it."""

ENV_CA_BUNDLE: Final = "TUNEMILL_CA_BUNDLE"
"""On stage containers: path of the file with additional trusted CA certificates."""
ENV_IMAGE: Final = "TUNEMILL_IMAGE"
"""On stage containers: reference of the container's image, for the provenance of its outputs."""
ENV_BUILDER_ID: Final = "TUNEMILL_BUILDER_ID"
"""On stage containers: URI of this installation, the builder in the provenance of published models. Absent if the
platform sets none."""
PROGRESS_AUDIENCE: Final = f"progress.{GROUP}"
"""Audience of the ServiceAccount token in stage pods. The token is valid for progress reports only."""
ENV_PROGRESS_URL: Final = "KUBEFLOW_TRAINER_SERVER_URL"
ENV_PROGRESS_CA: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
ENV_PROGRESS_TOKEN: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"  # noqa: S105 - the name of a variable, not a token
"""The three variables of Kubeflow's status protocol (KEP-2779), which Transformers supports."""

ENV_GRACE_SECONDS: Final = "TUNEMILL_GRACE_SECONDS"
"""On stage containers: seconds from SIGTERM within which the stage must stop, including the checkpoint. Less than the
pod's terminationGracePeriodSeconds, so that the stage ends before it is killed."""

ENV_NODES: Final = "TUNEMILL_NODES"
"""On the container of the train pods of a run with spec.compute.nodes above 1: number of pods that train together.
Absent: one pod."""
ENV_NODE_RANK: Final = "TUNEMILL_NODE_RANK"
"""On the same containers: the pod's index, from 0 to nodes - 1."""
ENV_COORDINATOR: Final = "TUNEMILL_COORDINATOR"
"""On the same containers: DNS name of the pod with index 0."""
COORDINATOR_PORT: Final = 29500
"""Port of the pod with index 0 at which the processes of a run with several pods meet."""

USER_ID: Final = 65532
"""User and group ID of all containers, unless the platform leaves the choice to the cluster."""
