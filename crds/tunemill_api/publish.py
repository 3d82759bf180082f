"""Publishing to the Hub."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import DataKey, OwnRepository, SecretKeyRef, rule, rules


class Artifact(StrEnum):
    """An artifact that is pushed to the Hub."""

    AUTO = "Auto"
    ADAPTER = "Adapter"
    MERGED = "Merged"
    REPORT = "Report"


class ServingTarget(StrEnum):
    """The server that will serve the model."""

    VLLM = "vLLM"
    TRANSFORMERS = "Transformers"
    NONE = "None"


class SigningKeyRef(SecretKeyRef):
    """A private key in a Secret of the object's namespace: PEM without a passphrase, ECDSA P-256 or Ed25519."""

    key: DataKey = "key.pem"
    """Key in the Secret's data."""


class Signing(ApiModel):
    """Signature of the provenance of a release."""

    key_secret_ref: SigningKeyRef
    """Private key that signs provenance.json. Only the publish pod mounts it. Releases that are already published are
    not signed afterwards."""


class Publish(ApiModel):
    """Where and how the model is published."""

    repository: OwnRepository
    """Repository on the Hub, owner/name. It is created if it does not exist."""
    private: bool = True
    """Whether a newly created repository is private."""
    branch: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][-._/A-Za-z0-9]*$")] = "main"
    """Branch to push to. It is created if it does not exist."""
    tag: Annotated[str, Field(max_length=100, pattern=r"^([A-Za-z0-9][-._A-Za-z0-9]*)?$")] = ""
    """Tag for the pushed commit, for example v1. Empty: no tag."""
    artifacts: Annotated[
        list[Artifact],
        Field(
            min_length=1,
            max_length=4,
            json_schema_extra={
                "x-kubernetes-list-type": "set",
                **rules(
                    rule(
                        "self.exists(a, a != 'Report')",
                        "publish.artifacts needs Auto, Adapter or Merged: a report alone is no model",
                    )
                ),
            },
        ),
    ] = [Artifact.AUTO]
    """Artifacts to push. Adapter: the adapter. Merged: the adapter merged into the base model; with an adapter, it is
    pushed to a separate repository with the suffix -merged. Report: report.html, which contains held-out rows, readable
    by everyone who can read the repository. Auto: the adapter, and the merged model if spec.publish.serving needs it.
    With spec.adapter.method Full, the whole model is pushed in every case."""
    serving: ServingTarget = ServingTarget.VLLM
    """Server for which the published model is tested and a start command is given: vLLM, Transformers (`transformers
    serve`) or None."""
    token_secret_ref: SecretKeyRef = SecretKeyRef(name="hf-write")
    """Secret with a token that can write to the repository's namespace. The train pod does not get it."""
    signing: Signing | None = None
    """Signs provenance.json, which records the inputs of a release. Absent: provenance.json is not signed."""
