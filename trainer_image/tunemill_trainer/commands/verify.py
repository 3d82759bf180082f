"""`tunemill-trainer verify`: checks a published model against its provenance.json, and the signature by a public key.

tunemill-trainer verify acme/support-tools --key cosign.pub
tunemill-trainer verify acme/support-tools --revision v1 --endpoint https://hub.example.com --download
"""

import argparse
import os
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.constants import PUBLIC_HUB
from tunemill_api.failures import ExitCode
from tunemill_api.plain_text import plain

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile

    from tunemill_trainer.release.signing import VerificationKey
    from tunemill_trainer.release.verification import Snapshot, Verdict

_MOST_PROBLEMS = 20
_REMEDY = (
    "Do not use it before you know why. To verify the commit that was published, pass --revision with "
    "status.published.revision of the object; for files of yours beside the release, pass --ignore."
)


class _CannotVerifyError(Exception):
    """There is nothing to compare; says what to do, and with which code the command ends."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument("repository", metavar="REPO", help="owner/name; HF_TOKEN is used for a private one")
    command.add_argument("--revision", default="main", help="a branch, tag or commit (default: %(default)s)")
    command.add_argument(
        "--key", metavar="FILE", type=Path, help="the public key as PEM; without it no signature is checked"
    )
    command.add_argument(
        "--endpoint", metavar="URL", default="", help="of the Hub (default: HF_ENDPOINT or the public one)"
    )
    command.add_argument(
        "--published-as", metavar="REPO", default="", help="the name at publication, of a copy or a renamed repository"
    )
    command.add_argument(
        "--ignore", metavar="GLOB", action="append", default=[], help="files of yours that may lie beside the release"
    )
    command.add_argument(
        "--download",
        action="store_true",
        help="also download large files and compare their bytes, not what the Hub lists",
    )


def main(options: argparse.Namespace) -> int:
    """Print what the model was made from and return the exit code: 0 verified, 65 not, others when nobody can tell."""
    endpoint = options.endpoint or os.environ.get("HF_ENDPOINT", PUBLIC_HUB)
    if endpoint.rstrip("/") != PUBLIC_HUB:
        # Read by huggingface_hub at its import. Against a server without Xet it hangs for more than a minute.
        os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from tunemill_trainer.release.verification import verify

    try:
        key = _key(options.key) if options.key else None
        commit, snapshot = _snapshot(options, endpoint)
    except _CannotVerifyError as error:
        print(f"tunemill-trainer verify: {error}", file=sys.stderr)
        return error.code
    verdict = verify(snapshot, key)
    print(_text(options.repository, commit, verdict, checked=key is not None))
    return ExitCode.DATA_WRONG if verdict.problems else ExitCode.DONE


def _key(path: Path) -> "VerificationKey":
    from tunemill_trainer.release.signing import KeyFormatError, VerificationKey

    try:
        return VerificationKey.read(path.read_bytes())
    except OSError as error:
        raise _CannotVerifyError(f"{path} could not be read: {error.strerror}", ExitCode.INPUT_MISSING) from error
    except KeyFormatError as error:
        raise _CannotVerifyError(f"{path}: {error}", ExitCode.SPEC_WRONG) from error


def _snapshot(options: argparse.Namespace, endpoint: str) -> "tuple[str, Snapshot]":
    """Return the commit and what it holds."""
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
    # False and not None: a token that huggingface_hub finds in a file is meant for the public Hub.
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
        raise _CannotVerifyError(f"{endpoint} answered HTTP {status} when asked for {where}", code) from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise _CannotVerifyError(f"{endpoint} could not be read: {first}", ExitCode.SERVICE_UNAVAILABLE) from error


def _read(api: "HfApi", options: argparse.Namespace) -> "tuple[str, Snapshot]":
    from huggingface_hub import RepoFile

    from tunemill_trainer.release.provenance import LARGEST_BYTES, PROVENANCE
    from tunemill_trainer.release.verification import Snapshot, is_safe
    from tunemill_trainer.storage.checksums import sha256_of

    # Everything else is asked of this commit: a branch may move meanwhile.
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
            "was published by another tool, or by a version of Tunemill that wrote none. Publish it again to verify it",
            ExitCode.INPUT_MISSING,
        )
    if unsafe := next((entry.path for entry in entries if not is_safe(entry.path)), ""):
        raise _CannotVerifyError(
            f"the Hub lists a file outside of the repository: {plain(unsafe)}", ExitCode.DATA_WRONG
        )
    with tempfile.TemporaryDirectory() as folder:

        def digest(entry: "RepoFile") -> str:
            if entry.lfs is not None and not options.download:
                return entry.lfs.sha256
            path = Path(api.hf_hub_download(options.repository, entry.path, revision=commit, local_dir=folder))
            try:
                return sha256_of(path)
            finally:
                if entry.path != PROVENANCE:
                    path.unlink()

        files = {entry.path: digest(entry) for entry in entries}
        # Also where it is ignored, or stored as a large file.
        found = Path(
            api.hf_hub_download(options.repository, PROVENANCE, revision=commit, local_dir=folder)
        ).read_bytes()
    return commit, Snapshot(options.published_as or options.repository, options.revision, files, found)


def _text(repository: str, commit: str, verdict: "Verdict", *, checked: bool) -> str:
    """Return the outcome for people. Whatever stands in the statement is shown as one line of plain text."""
    head = f"{repository} at {commit}"
    lines = [f"{head}: {'NOT verified' if verdict.problems else 'verified'}"]
    shown = [f"  - {plain(problem)}" for problem in verdict.problems[:_MOST_PROBLEMS]]
    if (more := len(verdict.problems) - len(shown)) > 0:
        shown.append(f"  - and {more} more")
    if shown:
        lines += [*shown, _REMEDY]
    if verdict.statement is None:
        return "\n".join(lines)
    lines += ["", f"signature   {_signature(verdict, checked=checked)}"]
    details, definition = verdict.statement.predicate.run_details, verdict.statement.predicate.build_definition
    rows = [
        ("files", str(len(verdict.statement.subject))),
        ("run", f"{definition.internal_parameters.get('name', '')}, {details.metadata.invocation_id}"),
        ("builder", details.builder.id),
        ("published", details.metadata.finished_on),
        *((resource.name, _resource(resource.uri, resource.digest)) for resource in definition.resolved_dependencies),
    ]
    # The files of the base model are for machines.
    lines += [f"{plain(name):<11} {plain(value)}" for name, value in rows if not name.startswith("base model: ")]
    return "\n".join(lines)


def _signature(verdict: "Verdict", *, checked: bool) -> str:
    ids = plain(", ".join(verdict.signed_by))
    if checked:
        return f"valid, of the key {ids}"
    if ids:
        return f"NOT CHECKED: it names the key {ids}; pass the public key with --key"
    return "NONE: whoever can write to the repository could have written the statement"


def _resource(uri: str | None, digest: dict[str, str]) -> str:
    return " ".join(filter(None, [uri, *(f"{name} {value}" for name, value in digest.items())]))
