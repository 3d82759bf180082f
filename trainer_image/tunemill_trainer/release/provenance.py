"""provenance.json: what a release was made from, as an in-toto statement with SLSA's provenance (v1) as its predicate.

It names the digest of every other file of the release. With a signing key it is a DSSE envelope, else the plain
statement. docs/how-to/provenance.md explains the build type. The repository may be public: where data and workspace
lie, who may read them and where pods ran are not in it; the training data is a digest.
"""

import json
import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel
from tunemill_api.constants import ENV_BUILDER_ID, ENV_IMAGE, GROUP
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.local_files import is_local

from tunemill_trainer.release.card import ReleaseFacts
from tunemill_trainer.release.push import contents
from tunemill_trainer.release.signing import Envelope, SigningKey
from tunemill_trainer.storage.checksums import sha256_of

PROVENANCE: Final = "provenance.json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = f"https://{GROUP}/build-types/finetune/v1"
DEFAULT_BUILDER: Final = f"https://{GROUP}/builders/trainer/v1"
LARGEST_BYTES: Final = 4 << 20
"""Of a provenance.json that is read: one file of a release takes about 150 bytes."""

PARAMETERS: Final[Any] = {
    "base_model": {"id", "revision", "quantization"},
    "dataset": {"format": True, "evaluation": {"fraction", "seed"}, "max_invalid_fraction": True, "max_rows": True},
    "tokenizer": {"mode", "add_tokens", "think"},
    "adapter": True,
    "training": True,
    "evaluation": {"max_rows", "max_new_tokens", "gates", "on_gate_failure"},
    "publish": {"repository", "private", "branch", "tag", "artifacts", "serving"},
}
"""The fields of the spec that are published: what is asked for, and no place, no credential and nothing about pods. A
field that is not listed is left out."""
NO_PARAMETERS: Final[Any] = {"training": {"checkpoint"}}

_IMAGE_FILE = "image.json"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class _Model(BaseModel):
    """A part of a statement. Fields that other producers add are passed over."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Resource(_Model):
    """An in-toto ResourceDescriptor."""

    name: str
    """What it is, or the path of a file."""
    uri: str | None = None
    """A package URL."""
    digest: dict[str, str] = {}
    """Algorithm → hexadecimal."""


class BuildDefinition(_Model):
    """What was asked for, and what it was made from."""

    build_type: str
    """Says how the rest is to be read."""
    external_parameters: dict[str, JsonValue]
    """`spec`: the fields of PARAMETERS."""
    internal_parameters: dict[str, JsonValue] = {}
    """The object's name, the repository, whether it is a draft, and the keys of the stages' outputs."""
    resolved_dependencies: list[Resource] = []
    """Base model, training data and images."""


class Builder(_Model):
    """Who made it."""

    id: str
    """A URI."""
    version: dict[str, str] = {}
    """Package → version."""


class Metadata(_Model):
    """When it was made."""

    invocation_id: str = ""
    """The run's id."""
    started_on: str = ""
    """When publish began, RFC 3339."""
    finished_on: str = ""
    """When the files of the release were complete."""


class RunDetails(_Model):
    """Who made it and when."""

    builder: Builder
    """Who."""
    metadata: Metadata = Metadata()
    """When."""


class Predicate(_Model):
    """SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance)."""

    build_definition: BuildDefinition
    """From what."""
    run_details: RunDetails
    """By whom."""


class Statement(_Model):
    """An in-toto statement v1 (https://in-toto.io/Statement/v1)."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = STATEMENT_TYPE
    """Of the statement."""
    subject: list[Resource]
    """Every file of the release but the statement itself, by path, with its sha256."""
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = PREDICATE_TYPE
    """Of the predicate."""
    predicate: Predicate
    """Where the subject comes from."""

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        value = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class Sources:
    """What a release is made from, beyond what its card tells.

    Attributes:
        started: when publish began.
        keys: stage → key of its output in the workspace.
        base_files: path → sha256 of the base model's files; empty where prepare recorded none.
        train_image: the image that trained; empty where it is not known.
    """

    started: datetime
    keys: dict[str, str]
    base_files: dict[str, str] = field(default_factory=dict)
    train_image: str = ""


def statement(folder: Path, facts: ReleaseFacts, sources: Sources, finished: datetime) -> Statement:
    """Return the statement of a release whose files are complete."""
    base = facts.base
    model = base.id if is_local(base.id) else f"pkg:huggingface/{quote(base.id)}@{base.revision}"
    endpoint = facts.run.spec.hub.endpoint.rstrip("/")
    if endpoint and not is_local(base.id):
        model += f"?repository_url={quote(endpoint, safe='')}"
    dependencies = [
        Resource(name="base model", uri=model, digest={} if is_local(base.id) else {"gitCommit": base.revision}),
        *(
            Resource(name=f"base model: {path}", uri=f"{model}#{quote(path)}", digest={"sha256": digest})
            for path, digest in sorted(sources.base_files.items())
        ),
        Resource(name="training data", digest={"sha256": facts.prepared.dataset_digest}),
        *_images(sources.train_image, os.environ.get(ENV_IMAGE, "")),
    ]
    definition = BuildDefinition(
        build_type=BUILD_TYPE,
        external_parameters={"spec": parameters(facts.run.spec)},
        internal_parameters={
            "name": facts.run.name,
            "repository": facts.repository,
            "draft": facts.draft,
            "keys": dict(sources.keys),
        },
        resolved_dependencies=dependencies,
    )
    builder = Builder(
        id=os.environ.get(ENV_BUILDER_ID) or DEFAULT_BUILDER, version={"tunemill-trainer": version("tunemill")}
    )
    metadata = Metadata(invocation_id=facts.run.run_id, started_on=_time(sources.started), finished_on=_time(finished))
    return Statement(
        subject=[
            Resource(name=path, digest={"sha256": sha256_of(folder / path)})
            for path in contents(folder)
            if path != PROVENANCE
        ],
        predicate=Predicate(build_definition=definition, run_details=RunDetails(builder=builder, metadata=metadata)),
    )


def parameters(spec: FineTuneSpec) -> dict[str, JsonValue]:
    """Return the fields of a spec that are published."""
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True, include=PARAMETERS, exclude=NO_PARAMETERS)


def document(made: Statement, key: SigningKey | None, *earlier: bytes | None) -> bytes:
    """Return provenance.json.

    It is an earlier one where that says the same and is signed by the same key: a publication that is repeated, after a
    pod was lost or after a revert say, makes the same files.

    Args:
        made: the statement.
        key: signs it; None leaves it unsigned.
        earlier: every provenance.json that may be of the same release; None for one that is not there.
    """
    plain = made.to_bytes()
    for found in earlier:
        if found is not None and _without_times(_payload(found, key)) == _without_times(plain):
            return found
    return key.sign(plain).to_bytes() if key else plain


def is_signed(found: bytes | None, key: SigningKey) -> bool:
    """Return whether a provenance.json is signed by a key."""
    envelope = Envelope.read(found) if found else None
    return envelope is not None and key.public.has_signed(envelope)


def record_image(folder: Path) -> None:
    """Keep in a stage's output in which image the stage ran, where this is known."""
    if image := os.environ.get(ENV_IMAGE):
        (folder / _IMAGE_FILE).write_text(json.dumps({"image": image}) + "\n", encoding="utf-8")


def recorded_image(folder: Path) -> str:
    """Return what `record_image` kept; empty where nothing was."""
    path = folder / _IMAGE_FILE
    return str(json.loads(path.read_text(encoding="utf-8"))["image"]) if path.is_file() else ""


def _images(train: str, publish: str) -> list[Resource]:
    """Return the images of two stages; once where they are the same. Registries are nobody's business."""
    found = [("train", train), ("publish", publish)] if train != publish else [("train, publish", publish)]
    return [_image(f"image of {stages}", reference) for stages, reference in found if reference]


def _image(name: str, reference: str) -> Resource:
    """Return an image as a package URL of the type oci: NAME[:TAG][@DIGEST] without the registry."""
    place, _, digest = reference.partition("@")
    image, _, tag = place.rpartition("/")[2].partition(":")
    found = _DIGEST.fullmatch(digest)
    at = f"@{quote(digest, safe='')}" if found else ""
    return Resource(
        name=name,
        uri=f"pkg:oci/{quote(image.lower())}{at}{f'?tag={quote(tag)}' if tag else ''}",
        digest={"sha256": found[1]} if found else {},
    )


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _payload(found: bytes, key: SigningKey | None) -> bytes:
    """Return the statement in a file: in an envelope of this key, or, without a key, as it is."""
    if key is None:
        return found
    return Envelope.model_validate_json(found).document() if is_signed(found, key) else b""


def _without_times(text: bytes) -> JsonValue:
    """Return a statement without its times; None when it is no JSON object of that form."""
    try:
        value = json.loads(text)
        for name in ("startedOn", "finishedOn"):
            del value["predicate"]["runDetails"]["metadata"][name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    found: JsonValue = value
    return found
