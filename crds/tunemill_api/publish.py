"""Publishing to the Hub, and to an OCI registry."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import DataKey, OwnRepository, SecretKeyRef, rule, rules


class Artifact(StrEnum):
    """An artifact that is published."""

    AUTO = "Auto"
    ADAPTER = "Adapter"
    MERGED = "Merged"
    REPORT = "Report"
    GGUF = "GGUF"
    OCI = "OCI"


class GgufQuantization(StrEnum):
    """The number format of the matrices in a GGUF file."""

    NONE = "None"
    Q8_0 = "Q8_0"


class ServingTarget(StrEnum):
    """The server that will serve the model."""

    VLLM = "vLLM"
    TRANSFORMERS = "Transformers"
    NONE = "None"


class Gguf(ApiModel):
    """The artifact GGUF."""

    quantization: GgufQuantization = GgufQuantization.NONE
    """None: the number format of the merged model. Q8_0: 8 bits per weight, with a scale for each 32 weights. The
    metrics of evaluate do not apply to quantized weights."""


class RegistryCredentialsRef(SecretKeyRef):
    """Credentials of a registry in a Secret of the object's namespace, of the type kubernetes.io/dockerconfigjson."""

    key: DataKey = ".dockerconfigjson"
    """Key in the Secret's data."""


class Oci(ApiModel):
    """The artifact OCI."""

    registry: Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s/?#@]+$")]
    """URL of the registry, for example https://ghcr.io. A pod that mounts the image writes it without https://."""
    repository: Annotated[
        str,
        Field(min_length=1, max_length=255, pattern=r"^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$"),
    ]
    """Repository in the registry, for example acme/support-tools. The tag is spec.publish.tag, or else the branch with
    - instead of /."""
    secret_ref: RegistryCredentialsRef | None = None
    """Credentials that can push to the repository. The train pod does not get them. Absent: the image is pushed
    without credentials."""


class SigningKeyRef(SecretKeyRef):
    """A private key in a Secret of the object's namespace: PEM without a passphrase, ECDSA P-256 or Ed25519."""

    key: DataKey = "key.pem"
    """Key in the Secret's data."""


class Signing(ApiModel):
    """Signature of the provenance of a release. Releases that are already published are not signed afterwards."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "has(self.keySecretRef) != (has(self.keyless) && self.keyless)",
                "publish.signing needs either keySecretRef or keyless: true",
            )
        )
    }

    key_secret_ref: SigningKeyRef | None = None
    """Private key that signs provenance.json. Only the publish pod mounts it."""
    keyless: bool = False
    """Whether Sigstore signs provenance.json with the identity of the publish pod's service account. The platform team
    must enable it. With the public instance of Sigstore, namespace, service account and cluster are visible to everyone
    in a public log, and cannot be removed from it."""


class Publish(ApiModel):
    """Where and how the model is published."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "!has(self.artifacts) || !('OCI' in self.artifacts) || has(self.oci)",
                "publish.artifacts has OCI, which needs publish.oci: the registry and the repository",
            )
        )
    }

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
            max_length=6,
            json_schema_extra={
                "x-kubernetes-list-type": "set",
                **rules(
                    rule(
                        "self.exists(a, a in ['Auto', 'Adapter', 'Merged'])",
                        "publish.artifacts needs Auto, Adapter or Merged: the others are made in addition",
                    )
                ),
            },
        ),
    ] = [Artifact.AUTO]
    """Artifacts to push. Adapter: the adapter. Merged: the adapter merged into the base model; with an adapter, it is
    pushed to a separate repository with the suffix -merged. Report: report.html, which contains held-out rows, readable
    by everyone who can read the repository. Auto: the adapter, and the merged model if spec.publish.serving needs it.
    GGUF: the merged model for llama.cpp and Ollama, in a separate repository with the suffix -GGUF. OCI: the merged
    model as a container image for Kubernetes image volumes and KServe, in the registry of spec.publish.oci. With
    spec.adapter.method Full, the whole model is pushed in every case."""
    gguf: Gguf = Gguf()
    """Settings of the artifact GGUF."""
    oci: Oci | None = None
    """Where the artifact OCI is pushed. Required for it."""
    serving: ServingTarget = ServingTarget.VLLM
    """Server for which the published model is tested and a start command is given: vLLM, Transformers (`transformers
    serve`) or None."""
    token_secret_ref: SecretKeyRef = SecretKeyRef(name="hf-write")
    """Secret with a token that can write to the repository's namespace. The train pod does not get it."""
    signing: Signing | None = None
    """Signs provenance.json, which records the inputs of a release. Absent: provenance.json is not signed."""

    @property
    def signs_keyless(self) -> bool:
        """Whether Sigstore signs releases with the identity of the publish pod."""
        return self.signing is not None and self.signing.keyless
