"""Compares the files of a repository with its provenance.json. `verify_command` downloads both from the Hub."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tunemill_trainer.release.keyless import Identity, NotVerifiedError, verified
from tunemill_trainer.release.provenance import BUILD_TYPE, BUNDLE, PROVENANCE, STATEMENT_FILES, Statement
from tunemill_trainer.release.signing import Envelope, VerificationKey

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig

NOT_RELEASED = STATEMENT_FILES | {".gitattributes"}
"""Files that no statement lists: provenance.json itself and its signature, and .gitattributes, which the Hub writes."""
DRAFTS = "tunemill-draft-"


@dataclass(frozen=True)
class Snapshot:
    """The content of a repository at a revision.

    Attributes:
        repository: owner/name under which it was published.
        revision: the requested branch, tag or commit.
        files: the sha256 of each file by path.
        provenance: the bytes of provenance.json.
        bundle: the bytes of its signature by Sigstore; empty if there is none.
    """

    repository: str
    revision: str
    files: Mapping[str, str]
    provenance: bytes
    bundle: bytes = b""


@dataclass(frozen=True)
class ExpectedIdentity:
    """Who must have signed without a key.

    Attributes:
        identity: the service account and the issuer of its tokens.
        trust: the instance of Sigstore.
    """

    identity: Identity
    trust: "ClientTrustConfig"


@dataclass(frozen=True)
class Verdict:
    """The result of a verification.

    Attributes:
        problems: the differences from the statement, one clause each; empty when there are none.
        statement: None when it cannot be parsed.
        signed_by: the id of the key, or the identity, that signed the statement; without one to check, the ids in the
            envelope.
    """

    problems: tuple[str, ...]
    statement: Statement | None
    signed_by: tuple[str, ...]


def verify(snapshot: Snapshot, signer: VerificationKey | ExpectedIdentity | None) -> Verdict:
    """Check a repository against its statement, and the statement's signature if a signer is given."""
    envelope = Envelope.read(snapshot.provenance)
    signed_by = tuple(signature.keyid for signature in envelope.signatures) if envelope else ()
    key = signer if isinstance(signer, VerificationKey) else None
    if isinstance(signer, ExpectedIdentity):
        if problem := _of_bundle(snapshot, signer):
            return Verdict((problem,), None, ())
        signed_by = (signer.identity.name,)
    if key is not None:
        if envelope is None:
            return Verdict((f"{PROVENANCE} is not signed, so the key verifies nothing",), None, ())
        if not key.has_signed(envelope):
            claimed = ", ".join(signed_by)
            return Verdict((f"{PROVENANCE} is not signed by {key.key_id} (it names the key {claimed})",), None, ())
        signed_by = (key.key_id,)
    try:
        statement = Statement.model_validate_json(envelope.document() if envelope else snapshot.provenance)
    except (ValidationError, ValueError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        return Verdict((f"{PROVENANCE} is not an in-toto statement with SLSA provenance v1: {what}",), None, signed_by)
    return Verdict((*_of_statement(statement, snapshot), *_of_files(statement, snapshot)), statement, signed_by)


def is_safe(path: str) -> bool:
    """Return whether a path from a server stays inside its folder."""
    return bool(path) and not path.startswith("/") and ".." not in PurePosixPath(path).parts and "\\" not in path


def _of_bundle(snapshot: Snapshot, signer: ExpectedIdentity) -> str:
    """Return why the bundle does not prove that the identity signed provenance.json; empty if it does."""
    if not snapshot.bundle:
        return f"{PROVENANCE} is not signed by an identity: there is no {BUNDLE}"
    try:
        document = verified(snapshot.bundle, signer.identity, signer.trust)
    except NotVerifiedError as error:
        return f"{BUNDLE} is no valid signature of {signer.identity.name}: {error}"
    return "" if document == snapshot.provenance else f"{BUNDLE} is the signature of another {PROVENANCE}"


def _of_statement(statement: Statement, snapshot: Snapshot) -> Iterator[str]:
    definition = statement.predicate.build_definition
    if definition.build_type != BUILD_TYPE:
        yield f"expected the build type {BUILD_TYPE}, found {definition.build_type}: another tool made the statement"
        return
    repository = definition.internal_parameters.get("repository")
    if repository != snapshot.repository:
        yield (
            f"the statement is about {repository} and not about {snapshot.repository}: for a copy or a renamed "
            "repository, pass the name under which it was published with --published-as"
        )
    if definition.internal_parameters.get("draft") is not False and not snapshot.revision.startswith(DRAFTS):
        yield "it is a draft, which did not pass its gates: pass its branch with --revision to verify a draft"


def _of_files(statement: Statement, snapshot: Snapshot) -> Iterator[str]:
    stated = {resource.name: resource.digest.get("sha256", "") for resource in statement.subject}
    if len(stated) != len(statement.subject):
        yield "the statement lists a file twice"
    for path, digest in sorted(stated.items()):
        found = snapshot.files.get(path)
        if found is None:
            yield f"{path} is in the statement but not in the repository"
        elif found != digest:
            yield f"{path} has sha256 {found}, the statement has {digest or 'none'}"
    for path in sorted(snapshot.files.keys() - stated.keys() - NOT_RELEASED):
        yield f"{path} is in the repository but not in the statement: it was added after publishing"
