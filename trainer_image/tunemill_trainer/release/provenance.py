"""provenance.json: the inputs of a release, as an in-toto statement with an SLSA provenance v1 predicate.

It has the digest of every other file of the release. With a signing key it is a DSSE envelope, otherwise the plain
statement. With keyless signing, its signature is in a separate bundle. docs/how-to/provenance.md explains the build
type. The repository may be public, so the statement leaves out the locations of data and workspace, their credentials
and the pods, and identifies the training data by digest only.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel
from tunemill_api.constants import ENV_BUILDER_ID, ENV_IMAGE, GROUP
from tunemill_api.data import SplitBy
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.local_files import is_local

from tunemill_trainer.prepared import BaseModel as BaseModelFiles
from tunemill_trainer.release.card import ReleaseFacts
from tunemill_trainer.release.keyless import KeylessSigner
from tunemill_trainer.release.push import contents
from tunemill_trainer.release.signing import Envelope, SigningKey
from tunemill_trainer.storage.checksums import sha256_of

PROVENANCE: Final = "provenance.json"
BUNDLE: Final = f"{PROVENANCE}.sigstore.json"
"""The signature of a release that is signed without a key."""
STATEMENT_FILES: Final = frozenset({PROVENANCE, BUNDLE})
"""The files of a release that its statement does not list."""
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = f"https://{GROUP}/build-types/finetune/v1"
DEFAULT_BUILDER: Final = f"https://{GROUP}/builders/trainer/v1"
TRAINING_DATA: Final = "training data"
START_ADAPTER: Final = "adapter to start from"
"""Names of dependencies."""
LARGEST_BYTES: Final = 4 << 20
"""The largest provenance.json, or bundle, that is read. Each file of a release takes about 150 bytes of it."""

PARAMETERS: Final[Any] = {
    "base_model": {"id": True, "revision": True, "quantization": True, "adapter": {"id", "revision"}},
    "dataset": {
        "format": True,
        "evaluation": {"fraction", "seed", "split_by"},
        "validation": {"fraction"},
        "replay": {"format", "share"},
        "max_invalid_fraction": True,
        "max_rows": True,
        "augmentation": {"shuffle_tools", "distractor_tools", "masked_names", "irrelevant_rows", "seed"},
    },
    "tokenizer": {"mode", "add_tokens", "think"},
    "adapter": True,
    "training": True,
    "evaluation": {
        "max_rows": True,
        "max_new_tokens": True,
        "suites": {"__all__": {"name", "format", "judge"}},
        "gates": True,
        "on_gate_failure": True,
    },
    "publish": {"repository", "private", "branch", "tag", "artifacts", "serving", "gguf"},
}
"""The fields of the spec that are published: hyperparameters and targets, but no location, credential or pod setting.
A field that is not listed is left out."""
NO_PARAMETERS: Final[Any] = {"training": {"checkpoint"}}

_IMAGE_FILE = "image.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class _Model(BaseModel):
    """A part of a statement. Unknown fields are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Resource(_Model):
    """An in-toto ResourceDescriptor."""

    name: str
    """A description, or the path of a file."""
    uri: str | None = None
    """A package URL."""
    digest: dict[str, str] = {}
    """Hexadecimal digest by algorithm."""


class BuildDefinition(_Model):
    """The inputs of the build."""

    build_type: str
    """The URI that defines the meaning of the other fields."""
    external_parameters: dict[str, JsonValue]
    """`spec`: the fields of PARAMETERS."""
    internal_parameters: dict[str, JsonValue] = {}
    """The object's name, the repository, whether it is a draft, and the keys of the stages' outputs."""
    resolved_dependencies: list[Resource] = []
    """Base model, the adapter to start from, training data and images."""


class Builder(_Model):
    """The builder."""

    id: str
    """Its URI."""
    version: dict[str, str] = {}
    """Version by package."""


class Metadata(_Model):
    """Run id and times."""

    invocation_id: str = ""
    """The run's id."""
    started_on: str = ""
    """When publish started, RFC 3339."""
    finished_on: str = ""
    """When the files of the release were complete, RFC 3339."""


class RunDetails(_Model):
    """Builder, run id and times."""

    builder: Builder
    """The builder."""
    metadata: Metadata = Metadata()
    """Run id and times."""


class Predicate(_Model):
    """SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance)."""

    build_definition: BuildDefinition
    """The inputs."""
    run_details: RunDetails
    """The builder and the run."""


class Statement(_Model):
    """An in-toto statement v1 (https://in-toto.io/Statement/v1)."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = STATEMENT_TYPE
    """The type of the statement."""
    subject: list[Resource]
    """Every file of the release except the statement itself, by path, with its sha256."""
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = PREDICATE_TYPE
    """The type of the predicate."""
    predicate: Predicate
    """How the files were made."""

    def to_bytes(self) -> bytes:
        """Return the statement as JSON."""
        value = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


Signer = SigningKey | KeylessSigner
"""What signs a statement."""


@dataclass(frozen=True)
class Document:
    """The statement of a release as it is published.

    Attributes:
        statement: provenance.json.
        bundle: provenance.json.sigstore.json; empty if there is none.
    """

    statement: bytes
    bundle: bytes = b""

    def write(self, folder: Path) -> None:
        """Write the files into the folder of a release."""
        (folder / PROVENANCE).write_bytes(self.statement)
        if self.bundle:
            (folder / BUNDLE).write_bytes(self.bundle)


@dataclass(frozen=True)
class Sources:
    """The inputs of a release that are not in its model card.

    Attributes:
        started: when publish started.
        keys: the key of each stage's output in the workspace.
        base_files: the sha256 of the base model's files by path; empty if prepare recorded none.
        train_image: the image of the train stage; empty if unknown.
        image: the published container image with the same model, NAME@DIGEST; empty if there is none.
    """

    started: datetime
    keys: dict[str, str]
    base_files: dict[str, str] = field(default_factory=dict)
    train_image: str = ""
    image: str = ""


def statement(folder: Path, facts: ReleaseFacts, sources: Sources, finished: datetime) -> Statement:
    """Return the statement of a release whose files are complete."""
    endpoint = facts.run.spec.hub.endpoint.rstrip("/")
    dependencies = [
        *_model("base model", facts.base, sources.base_files, endpoint),
        *(_model(START_ADAPTER, facts.adapter, facts.adapter.files, endpoint) if facts.adapter else ()),
        Resource(name=TRAINING_DATA, digest={"sha256": facts.prepared.dataset_digest}),
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
            **({"image": _image("", sources.image).uri} if sources.image else {}),
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
            if path not in STATEMENT_FILES
        ],
        predicate=Predicate(build_definition=definition, run_details=RunDetails(builder=builder, metadata=metadata)),
    )


@dataclass(frozen=True)
class Origin:
    """What a published adapter was trained from.

    Attributes:
        data: the sha256 of the training rows.
        adapter: the commit of the adapter from which training started, in the same repository.
    """

    data: str
    adapter: str


def origin_of(found: bytes, repository: str) -> Origin | None:
    """Return what the adapter in a repository was trained from, by its provenance.json, whose signature is not checked.

    Args:
        found: the content of provenance.json.
        repository: the repository.

    Returns:
        None if the file cannot be parsed, or training did not start from an adapter of this repository.
    """
    envelope = Envelope.read(found)
    try:
        made = Statement.model_validate_json(found if envelope is None else envelope.document())
    except ValueError:
        return None
    named = {each.name: each for each in made.predicate.build_definition.resolved_dependencies}
    data, adapter = named.get(TRAINING_DATA), named.get(START_ADAPTER)
    if data is None or adapter is None:
        return None
    commit = adapter.digest.get("gitCommit", "")
    if not _COMMIT.fullmatch(commit) or not (adapter.uri or "").startswith(f"{_on_hub(repository)}@"):
        return None
    return Origin(data.digest.get("sha256", ""), commit)


def parameters(spec: FineTuneSpec) -> dict[str, JsonValue]:
    """Return the fields of a spec that are published."""
    # Without newer fields, a statement has the form of those of earlier versions.
    exclude = {
        **NO_PARAMETERS,
        **({} if spec.evaluation.suites else {"evaluation": {"suites"}}),
        **({} if spec.dataset.evaluation.split_by is SplitBy.TOOLS else {"dataset": {"evaluation": {"split_by"}}}),
    }
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True, include=PARAMETERS, exclude=exclude)


def document(made: Statement, signer: Signer | None, *earlier: Document | None) -> Document:
    """Return provenance.json and its signature.

    An earlier one is reused if it differs in its times only and has the same signer. So publishing again, for example
    after a lost pod or a revert, gives the same files.

    Args:
        made: the statement.
        signer: signs it; None leaves the statement unsigned.
        earlier: candidates for reuse; None for one that does not exist.

    Raises:
        KeylessError: keyless signing has failed.
    """
    plain = made.to_bytes()
    for found in earlier:
        if found is not None and _without_times(_signed_statement(found, signer)) == _without_times(plain):
            return found
    if isinstance(signer, KeylessSigner):
        return Document(plain, signer.sign(plain))
    return Document(signer.sign(plain).to_bytes() if signer else plain)


def is_signed(found: Document | None, signer: Signer) -> bool:
    """Return whether a signer has signed a release."""
    if found is None:
        return False
    if isinstance(signer, KeylessSigner):
        return signer.has_signed(found.bundle, found.statement)
    envelope = Envelope.read(found.statement)
    return envelope is not None and signer.public.has_signed(envelope)


def files_of(spec: FineTuneSpec) -> tuple[str, ...]:
    """Return the names of the files of `document` that a release with this spec has."""
    return (PROVENANCE, BUNDLE) if spec.publish.signs_keyless else (PROVENANCE,)


def record_image(folder: Path) -> None:
    """Write the image in which the stage runs, if known, into its output folder."""
    if image := os.environ.get(ENV_IMAGE):
        (folder / _IMAGE_FILE).write_text(json.dumps({"image": image}) + "\n", encoding="utf-8")


def recorded_image(folder: Path) -> str:
    """Return the image that `record_image` wrote; empty if there is none."""
    path = folder / _IMAGE_FILE
    return str(json.loads(path.read_text(encoding="utf-8"))["image"]) if path.is_file() else ""


def _model(name: str, model: BaseModelFiles, files: Mapping[str, str], endpoint: str) -> list[Resource]:
    """Return a model or adapter, and each of its files, as package URLs."""
    local = is_local(model.id)
    uri = model.id if local else f"{_on_hub(model.id)}@{model.revision}"
    if endpoint and not local:
        uri += f"?repository_url={quote(endpoint, safe='')}"
    return [
        Resource(name=name, uri=uri, digest={} if local else {"gitCommit": model.revision}),
        *(
            Resource(name=f"{name}: {path}", uri=f"{uri}#{quote(path)}", digest={"sha256": digest})
            for path, digest in sorted(files.items())
        ),
    ]


def _on_hub(repository: str) -> str:
    return f"pkg:huggingface/{quote(repository)}"


def _images(train: str, publish: str) -> list[Resource]:
    """Return the images of two stages, or one entry if they are the same. The registry's host is left out."""
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


def _signed_statement(found: Document, signer: Signer | None) -> bytes:
    """Return the statement of a release; empty unless the signer, if there is one, has signed it."""
    if signer and not is_signed(found, signer):
        return b""
    return (
        Envelope.model_validate_json(found.statement).document() if isinstance(signer, SigningKey) else found.statement
    )


def _without_times(text: bytes) -> JsonValue:
    """Return a statement without its times; None if it does not have the form of a statement."""
    try:
        value = json.loads(text)
        for name in ("startedOn", "finishedOn"):
            del value["predicate"]["runDetails"]["metadata"][name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    found: JsonValue = value
    return found
