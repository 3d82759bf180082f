"""What goes to the Hub."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import DataKey, OwnRepository, SecretKeyRef, rule, rules


class Artifact(StrEnum):
    """What is pushed to the Hub."""

    AUTO = "Auto"
    ADAPTER = "Adapter"
    MERGED = "Merged"
    REPORT = "Report"


class ServingTarget(StrEnum):
    """The server that will run the model."""

    VLLM = "vLLM"
    TRANSFORMERS = "Transformers"
    NONE = "None"


class SigningKeyRef(SecretKeyRef):
    """A private key in a Secret of the object's namespace: PEM without a passphrase, ECDSA P-256 or Ed25519."""

    key: DataKey = "key.pem"
    """The key in the Secret's data."""


class Signing(ApiModel):
    """How the provenance of a release is signed."""

    key_secret_ref: SigningKeyRef
    """The private key that signs provenance.json. Only the publish pod mounts it. It signs what is published from then
    on: what is published already is not signed afterwards."""


class Publish(ApiModel):
    """Where the result goes."""

    repository: OwnRepository
    """The repository on the Hub, owner/name. It is created when it does not exist."""
    private: bool = True
    """Whether a repository that is created is private."""
    branch: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][-._/A-Za-z0-9]*$")] = "main"
    """The branch that is pushed to. It is created when it does not exist."""
    tag: Annotated[str, Field(max_length=100, pattern=r"^([A-Za-z0-9][-._A-Za-z0-9]*)?$")] = ""
    """A tag for the pushed commit, for example v1; empty means none."""
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
    """Adapter: the adapter. Merged: the whole model, base and adapter in one; beside an adapter it has a repository of
    its own, named after the other with -merged at its end. Report: report.html with held-out rows in it, for the eyes
    of all who can read the repository. Auto: the adapter, and the merged model where spec.publish.serving needs it.
    With spec.adapter.method Full there is only the whole model, whichever is asked for."""
    serving: ServingTarget = ServingTarget.VLLM
    """What the serving contract is for: vLLM, Transformers' own `transformers serve`, or None."""
    token_secret_ref: SecretKeyRef = SecretKeyRef(name="hf-write")
    """A token that may write to the repository's namespace. The GPU pod never sees it."""
    signing: Signing | None = None
    """Signs provenance.json, the statement of what a release was made from; absent: it is published unsigned."""
