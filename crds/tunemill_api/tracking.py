"""Experiment trackers, to which train and evaluate log."""

from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import DnsName, Endpoint, SecretKeyRef, SecretRef, rule, rules

PUBLIC_WANDB = "https://api.wandb.ai"
"""URL of Weights & Biases when spec.tracking.wandb.endpoint is empty."""


class TrackingServerRef(SecretRef):
    """A Secret with the credentials of a tracking server."""

    name: DnsName
    """Name of the Secret. Its keys are MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD."""


class MLflow(ApiModel):
    """An MLflow tracking server."""

    uri: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]
    """URL of the tracking server, for example https://mlflow.acme.com."""
    experiment: Annotated[str, Field(max_length=256, pattern=r"^([^\s]([^\r\n\t]*[^\s])?)?$")] = ""
    """Name of the experiment. It is created if it does not exist. Empty: the object's namespace."""
    credentials_secret_ref: TrackingServerRef | None = None
    """Secret with the credentials. Absent: the server is used without credentials."""


class WandB(ApiModel):
    """Weights & Biases."""

    endpoint: Endpoint = ""
    """URL of the server. Empty: https://api.wandb.ai."""
    entity: Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][-._A-Za-z0-9]*)?$")] = ""
    """Team or user. Empty: the default of the API key."""
    project: Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9][-._A-Za-z0-9]*)?$")] = ""
    """Name of the project. It is created if it does not exist. Empty: the object's namespace."""
    token_secret_ref: SecretKeyRef
    """Secret with an API key."""


class Tracking(ApiModel):
    """Experiment trackers. Train logs the settings and the losses, and evaluate the metrics and its report.

    A tracker that cannot be reached does not stop a stage, and delays its end by at most 30 seconds. What cannot be
    logged is left out, with a warning in the log of the pod. A change of these fields runs no stage again.
    """

    model_config = {
        "json_schema_extra": rules(
            rule("has(self.mlflow) || has(self.wandb)", "tracking needs mlflow or wandb: remove it, or set one of them")
        )
    }

    mlflow: MLflow | None = None
    """The MLflow tracking server to log to."""
    wandb: WandB | None = None
    """The Weights & Biases project to log to."""
