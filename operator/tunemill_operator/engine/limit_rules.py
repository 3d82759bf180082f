"""Tables of the limits of a FineTuneProfile, for the operator and for the admission policy of the chart.

`profile_limits` checks a spec with them. `python -m tunemill_dev.chart` generates CEL expressions from them, with which
the API server rejects the same at `kubectl apply`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tunemill_operator.engine.profiles import STAGES

CODE_ENV: Final = ("PYTHON*", "LD_*", "PATH", "BASH_ENV", "GCONV_PATH")
"""Variables that change which code the stage's image runs."""
SERVER_ENV: Final = (
    "AWS_ENDPOINT_URL*",
    "AWS_EC2_METADATA*",
    "AWS_CONTAINER_*",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "HF_ENDPOINT",
    "ALL_PROXY",
    "all_proxy",
)
"""Variables that set the servers of boto3 and the Hub client."""
VARIABLES: Final = (
    ("trainerImages", "changes which code runs", CODE_ENV),
    ("endpoints", "names a server", SERVER_ENV),
)
"""Environment variables that users must not set: the limit that they would bypass, their effect, their names."""

TEMPLATE_LISTS: Final = {
    "serviceAccountName": "serviceAccounts",
    "priorityClassName": "priorityClasses",
    "runtimeClassName": "runtimeClasses",
}
"""Fields of pod templates that users may set if a limit lists their values, with that limit."""


class Measure(StrEnum):
    """How values are compared with a maximum."""

    COUNT = "count"
    HOURS = "hours"
    DURATION = "duration"


@dataclass(frozen=True)
class Maximum:
    """A limit that is the maximum of a field."""

    limit: str
    path: str
    """Path of the field in the spec."""
    measure: Measure
    or_default: int | None = None
    """If the limit is not set: the maximum is the value in the profile's defaults, or this one. None: there is none."""


@dataclass(frozen=True)
class NameList:
    """A limit that lists the allowed values of a field."""

    limit: str
    path: str
    """Path of the field in the spec."""
    or_defaults: bool = False
    """Whether, if the limit is not set, only the value in the profile's defaults is allowed. Otherwise every value
    is."""
    or_name: str = ""
    """Value that is allowed if there is neither a list nor a default. Empty: none."""
    of_owner: bool = False
    """Whether the list applies to the part before the slash."""


MAXIMA: Final = (
    Maximum("maxGpus", "compute.gpus", Measure.COUNT),
    Maximum("maxNodes", "compute.nodes", Measure.COUNT, or_default=1),
    Maximum("maxGpuHours", "maxGpuHours", Measure.HOURS),
    Maximum("maxRetries", "retry.limit", Measure.COUNT),
    Maximum("maxRuntime", "maxRuntime", Measure.DURATION),
)
GPU_RESOURCE: Final = NameList("gpuResources", "compute.gpuResource", or_defaults=True, or_name="nvidia.com/gpu")
"""Applies only to runs with GPUs."""
NAMES: Final = (
    NameList("baseModels", "baseModel.id"),
    NameList("baseModels", "baseModel.adapter.id"),
    NameList("hubOrganizations", "publish.repository", of_owner=True),
    NameList("trainerImages", "compute.trainerImage", or_defaults=True),
    GPU_RESOURCE,
    NameList("claims", "compute.modelCache.claimName", or_defaults=True),
    *(NameList(limit, f"podTemplates.{stage}.{field}") for stage in STAGES for field, limit in TEMPLATE_LISTS.items()),
)
SECRET_REFS: Final = (
    "dataset.credentialsSecretRef",
    "workspace.credentialsSecretRef",
    "workspace.manifestKeySecretRef",
    "baseModel.tokenSecretRef",
    "publish.tokenSecretRef",
    "publish.signing.keySecretRef",
    "publish.oci.secretRef",
    "tracking.mlflow.credentialsSecretRef",
    "tracking.wandb.tokenSecretRef",
)
"""Fields that refer to a Secret, to which limits.secrets applies."""
