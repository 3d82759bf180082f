"""`tunemill verify`: checks a published model against its provenance.json, and the signature.

tunemill verify acme/support-tools --key cosign.pub
tunemill verify acme/support-tools --certificate-identity https://kubernetes.io/namespaces/a/serviceaccounts/b \
    --certificate-oidc-issuer https://oidc.example.com
tunemill verify acme/support-tools --revision v1 --endpoint https://hub.example.com --download
"""

import argparse
import os
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.constants import PUBLIC_HUB
from tunemill_api.failures import ExitCode
from tunemill_api.plain_text import plain

from tunemill_trainer.commands import output
from tunemill_trainer.commands.command import Command, JsonField, JsonOutput, Task
from tunemill_trainer.process import console
from tunemill_trainer.process.bars import ProgressBar

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

    from tunemill_trainer.release.provenance import Statement
    from tunemill_trainer.release.signing import VerificationKey
    from tunemill_trainer.release.verification import ExpectedIdentity, Snapshot, Verdict

_MAX_SHOWN_PROBLEMS = 20
_REMEDY = (
    "Do not use it before you know why. To verify the commit that was published, pass --revision with "
    "status.published.revision of the object. If you added files to the release yourself, pass --ignore."
)


class _CannotVerifyError(Exception):
    """There is nothing to compare.

    Args:
        message: what is missing, and what to do.
        code: the exit code of the command.
    """

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument(
        "repository", metavar="REPO", help="the repository, owner/name; a private one needs a token in HF_TOKEN"
    )
    command.add_argument(
        "--revision", metavar="REVISION", default="main", help="branch, tag or commit (default: %(default)s)"
    )
    command.add_argument(
        "--key",
        metavar="FILE",
        type=Path,
        help="public key as PEM; without it and without --certificate-identity, no signature is checked",
    )
    command.add_argument(
        "--certificate-identity",
        metavar="URL",
        default="",
        help="who must have signed without a key: https://kubernetes.io/namespaces/NAMESPACE/serviceaccounts/NAME",
    )
    command.add_argument(
        "--certificate-oidc-issuer",
        metavar="URL",
        default="",
        help="issuer of the service account's tokens; required with --certificate-identity",
    )
    command.add_argument(
        "--trust-config",
        metavar="FILE",
        type=Path,
        help="trust configuration of your own instance of Sigstore (default: the public instance)",
    )
    command.add_argument(
        "--endpoint",
        metavar="URL",
        default="",
        help="URL of the Hub (default: $HF_ENDPOINT, or the public Hub)",
    )
    command.add_argument(
        "--published-as",
        metavar="REPO",
        default="",
        help="the repository's name at publication, for a copy or a renamed repository",
    )
    command.add_argument(
        "--ignore",
        metavar="GLOB",
        action="append",
        default=[],
        help="files that are not part of the release and may be there; may be repeated",
    )
    command.add_argument(
        "--download",
        action="store_true",
        help="also download large files and hash their bytes instead of using the hashes that the Hub lists",
    )
    output.add_json_option(command)


def main(options: argparse.Namespace) -> int:
    """Print what the model was made from; return 0 when it is verified, 65 when it is not, others when unknown."""
    endpoint = options.endpoint or os.environ.get("HF_ENDPOINT", PUBLIC_HUB)
    if endpoint.rstrip("/") != PUBLIC_HUB:
        # huggingface_hub reads this at import. Against a server without Xet it hangs for more than a minute.
        os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from tunemill_trainer.release.verification import verify

    try:
        signer = _signer(options)
        commit, snapshot = _snapshot(options, endpoint)
    except _CannotVerifyError as error:
        return output.fail("verify", str(error), error.code)
    verdict = verify(snapshot, signer)
    if options.json:
        output.show_json(_json_of(options, commit, snapshot, verdict))
    else:
        console.show(_text(options, commit, snapshot, verdict))
    return ExitCode.DATA_WRONG if verdict.problems else ExitCode.DONE


def _signer(options: argparse.Namespace) -> "VerificationKey | ExpectedIdentity | None":
    """Return who must have signed; None if no signature is to be checked."""
    identity, issuer = options.certificate_identity, options.certificate_oidc_issuer
    if bool(identity) != bool(issuer):
        message = "--certificate-identity and --certificate-oidc-issuer are needed together: pass both"
        raise _CannotVerifyError(message, ExitCode.SPEC_WRONG)
    if options.key and identity:
        message = "--key and --certificate-identity exclude each other: a release has one kind of signature"
        raise _CannotVerifyError(message, ExitCode.SPEC_WRONG)
    if options.trust_config and not identity:
        raise _CannotVerifyError("--trust-config needs --certificate-identity", ExitCode.SPEC_WRONG)
    if options.key:
        return _key(options.key)
    return _identity(identity, issuer, options.trust_config) if identity else None


def _identity(name: str, issuer: str, trust: Path | None) -> "ExpectedIdentity":
    from tunemill_trainer.release.keyless import Identity, KeylessError, SigstoreUnreachableError, trust_config
    from tunemill_trainer.release.verification import ExpectedIdentity

    try:
        text = trust.read_text(encoding="utf-8") if trust else ""
        return ExpectedIdentity(Identity(name, issuer), trust_config(text))
    except (OSError, UnicodeDecodeError) as error:
        raise _CannotVerifyError(
            f"--trust-config {trust} could not be read: {error}", ExitCode.INPUT_MISSING
        ) from error
    except SigstoreUnreachableError as error:
        raise _CannotVerifyError(str(error), ExitCode.SERVICE_UNAVAILABLE) from error
    except KeylessError as error:
        raise _CannotVerifyError(f"--trust-config {trust}: {error}", ExitCode.SPEC_WRONG) from error


def _key(path: Path) -> "VerificationKey":
    from tunemill_trainer.release.signing import KeyFormatError, VerificationKey

    try:
        return VerificationKey.read(path.read_bytes())
    except OSError as error:
        raise _CannotVerifyError(f"--key {path} could not be read: {error.strerror}", ExitCode.INPUT_MISSING) from error
    except KeyFormatError as error:
        raise _CannotVerifyError(f"--key {path}: {error}", ExitCode.SPEC_WRONG) from error


def _snapshot(options: argparse.Namespace, endpoint: str) -> "tuple[str, Snapshot]":
    """Return the commit and its files."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where, missing = f"{options.repository} at {options.revision}", ExitCode.INPUT_MISSING
    # False and not None: huggingface_hub would send a token from its file, which is for the public Hub.
    api = HfApi(endpoint=endpoint.rstrip("/"), token=os.environ.get("HF_TOKEN") or False)
    try:
        return _read(api, options)
    except HFValidationError as error:
        raise _CannotVerifyError(f"{options.repository} is no repository: {error}", ExitCode.SPEC_WRONG) from error
    except RevisionNotFoundError as error:
        raise _CannotVerifyError(f"{where}: there is no such revision; correct --revision", missing) from error
    except RepositoryNotFoundError as error:
        hint = "correct its name or --endpoint, or set HF_TOKEN to a token that may read it"
        raise _CannotVerifyError(f"{endpoint} shows no repository {options.repository}: {hint}", missing) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        code = ExitCode.PERMISSION_DENIED if status in {401, 403} else ExitCode.SERVICE_UNAVAILABLE
        raise _CannotVerifyError(f"{endpoint} returned HTTP {status} for {where}", code) from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise _CannotVerifyError(f"{endpoint} could not be read: {first}", ExitCode.SERVICE_UNAVAILABLE) from error


def _read(api: "HfApi", options: argparse.Namespace) -> "tuple[str, Snapshot]":
    from huggingface_hub import RepoFile

    from tunemill_trainer.release.provenance import BUNDLE, LARGEST_BYTES, PROVENANCE, STATEMENT_FILES
    from tunemill_trainer.release.verification import Snapshot, is_safe
    from tunemill_trainer.storage.checksums import sha256_of

    # All other requests name this commit: a branch may move between them.
    commit = api.model_info(options.repository, revision=options.revision).sha or options.revision
    tree = api.list_repo_tree(options.repository, revision=commit, recursive=True)
    entries = [
        entry
        for entry in tree
        if isinstance(entry, RepoFile) and not any(fnmatch(entry.path, form) for form in options.ignore)
    ]
    described = next((entry for entry in entries if entry.path == PROVENANCE), None)
    if described is None or described.size > LARGEST_BYTES:
        raise _CannotVerifyError(
            f"{options.repository} at {options.revision} has no {PROVENANCE} of at most {LARGEST_BYTES >> 20} MiB: it "
            "was published by another tool, or by a version of Tunemill that wrote none. Publish it again.",
            ExitCode.INPUT_MISSING,
        )
    if unsafe := next((entry.path for entry in entries if not is_safe(entry.path)), ""):
        raise _CannotVerifyError(
            f"the Hub lists a file outside of the repository: {plain(unsafe)}", ExitCode.DATA_WRONG
        )
    total = sum(entry.size for entry in entries)
    with tempfile.TemporaryDirectory() as folder, ProgressBar("hashing", total, "bytes") as bar:

        def digest(entry: "RepoFile") -> str:
            if entry.lfs is not None and not options.download:
                return entry.lfs.sha256
            path = Path(api.hf_hub_download(options.repository, entry.path, revision=commit, local_dir=folder))
            try:
                return sha256_of(path)
            finally:
                if entry.path not in STATEMENT_FILES:
                    path.unlink()

        files, done = dict[str, str](), 0
        for entry in entries:
            files[entry.path] = digest(entry)
            done += entry.size
            bar.advance_to(done)

        def content(name: str) -> bytes:
            return Path(api.hf_hub_download(options.repository, name, revision=commit, local_dir=folder)).read_bytes()

        # Downloaded also when it is ignored, or stored as a large file.
        statement = content(PROVENANCE)
        signed = any(entry.path == BUNDLE and entry.size <= LARGEST_BYTES for entry in entries)
        bundle = content(BUNDLE) if signed else b""
    return commit, Snapshot(options.published_as or options.repository, options.revision, files, statement, bundle)


def _state(options: argparse.Namespace, snapshot: "Snapshot", verdict: "Verdict") -> str:
    """Return `valid`, `not checked` or `none`."""
    if options.key or options.certificate_identity:
        return "valid" if verdict.signed_by else "none"
    return "not checked" if verdict.signed_by or snapshot.bundle else "none"


def _json_of(options: argparse.Namespace, commit: str, snapshot: "Snapshot", verdict: "Verdict") -> dict[str, object]:
    found: dict[str, object] = {
        "repository": options.repository,
        "revision": options.revision,
        "commit": commit,
        "verified": not verdict.problems,
        "problems": list(verdict.problems),
        "signature": {
            "state": _state(options, snapshot, verdict),
            "keys": [] if options.certificate_identity else list(verdict.signed_by),
            "identity": next(iter(verdict.signed_by), None) if options.certificate_identity else None,
        },
        "statement": None if verdict.statement is None else _statement_as_json(verdict.statement),
    }
    return found


def _statement_as_json(statement: "Statement") -> dict[str, object]:
    details, definition = statement.predicate.run_details, statement.predicate.build_definition
    return {
        "files": len(statement.subject),
        "run": str(definition.internal_parameters.get("name", "")),
        "runId": details.metadata.invocation_id,
        "builder": details.builder.id,
        "published": details.metadata.finished_on,
        "inputs": [
            {"name": resource.name, "uri": resource.uri, "digest": dict(resource.digest)}
            for resource in definition.resolved_dependencies
        ],
    }


def _text(options: argparse.Namespace, commit: str, snapshot: "Snapshot", verdict: "Verdict") -> str:
    """Return the outcome as text. Values of the statement are shown as one line of plain text each."""
    head = f"{options.repository} at {commit}"
    lines = [f"{head}: {'NOT verified' if verdict.problems else 'verified'}"]
    shown = [f"  - {plain(problem)}" for problem in verdict.problems[:_MAX_SHOWN_PROBLEMS]]
    if (more := len(verdict.problems) - len(shown)) > 0:
        shown.append(f"  - and {more} more")
    if shown:
        lines += [*shown, _REMEDY]
    if verdict.statement is None:
        return "\n".join(lines)
    lines += ["", f"signature   {_signature(options, snapshot, verdict)}"]
    details, definition = verdict.statement.predicate.run_details, verdict.statement.predicate.build_definition
    rows = [
        ("files", str(len(verdict.statement.subject))),
        ("run", f"{definition.internal_parameters.get('name', '')}, {details.metadata.invocation_id}"),
        ("builder", details.builder.id),
        ("published", details.metadata.finished_on),
        *((resource.name, _resource(resource.uri, resource.digest)) for resource in definition.resolved_dependencies),
    ]
    # The hashes of the base model's files are of use to programs only.
    lines += [f"{plain(name):<11} {plain(value)}" for name, value in rows if not name.startswith("base model: ")]
    return "\n".join(lines)


def _signature(options: argparse.Namespace, snapshot: "Snapshot", verdict: "Verdict") -> str:
    ids = plain(", ".join(verdict.signed_by))
    if options.certificate_identity:
        return f"valid, of {ids}, issuer {options.certificate_oidc_issuer}"
    if options.key:
        return f"valid, of the key {ids}"
    if ids:
        return f"NOT CHECKED: it names the key {ids}; pass the public key with --key"
    if snapshot.bundle:
        return "NOT CHECKED: it is one without a key; pass --certificate-identity and --certificate-oidc-issuer"
    return "NONE: anybody who can write to the repository could have written the statement"


def _resource(uri: str | None, digest: dict[str, str]) -> str:
    return " ".join(filter(None, [uri, *(f"{name} {value}" for name, value in digest.items())]))


COMMAND = Command(
    name="verify",
    task=Task.RELEASE,
    summary="check a published model against its provenance and signature",
    add_options=add_options,
    main=main,
    examples=(
        "verify acme/support-tools --key cosign.pub",
        "verify acme/support-tools --certificate-identity URL --certificate-oidc-issuer https://oidc.example.com",
        "verify acme/support-tools --revision v1 --endpoint https://hub.example.com --download",
    ),
    exit_codes={
        ExitCode.SPEC_WRONG: "options contradict each other, --key is not a public key, --trust-config is not a trust "
        "configuration, or REPO is not the name of a repository",
        ExitCode.DATA_WRONG: "the model is not verified",
        ExitCode.INPUT_MISSING: "the repository, the revision, its provenance.json or the file of an option is missing",
        ExitCode.SERVICE_UNAVAILABLE: "the Hub or the public instance of Sigstore cannot be reached",
        ExitCode.PERMISSION_DENIED: "the Hub refuses the token",
    },
    json=JsonOutput(
        "one object",
        (
            JsonField("repository", "string", "The repository as given."),
            JsonField("revision", "string", "The revision as given."),
            JsonField("commit", "string", "The commit of this revision."),
            JsonField("verified", "boolean", "Whether there are no problems."),
            JsonField("problems[]", "string", "What is not as the statement says."),
            JsonField("signature.state", "string", "`valid`, `not checked` (neither --key nor an identity) or `none`."),
            JsonField(
                "signature.identity", "string or null", "The identity of --certificate-identity, if it has signed."
            ),
            JsonField("signature.keys[]", "string", "The ids of the keys that signed, or claim to have signed."),
            JsonField("statement", "object or null", "provenance.json; null when it cannot be read or trusted."),
            JsonField("statement.files", "integer", "Files that it names."),
            JsonField("statement.run", "string", "The name of the run."),
            JsonField("statement.runId", "string", "The id of the run."),
            JsonField("statement.builder", "string", "The id of the builder."),
            JsonField("statement.published", "string or null", "When it was published; RFC 3339."),
            JsonField("statement.inputs[].name", "string", "What the model was made from: base model, data, images."),
            JsonField("statement.inputs[].uri", "string or null", "Its package URL."),
            JsonField("statement.inputs[].digest.*", "string", "Its hashes, by algorithm."),
        ),
    ),
)
