"""The workspace: the stages' outputs by key, committed atomically and verified by digest.

    PREFIX/<stage>/<key>/manifest.json                      written last; an output exists if its manifest does
    PREFIX/<stage>/<key>/<attempt>/…                        the files, in a folder of the attempt that wrote them
    PREFIX/train/<key>/checkpoints/<step>-<attempt>/…       checkpoints, in the same format; removed by the commit
    PREFIX/runs/…                                           references from runs to outputs, see references.py

Each process writes to a separate folder, the attempt, so that two pods with the same work (for example if a lost node
is still running) never mix their files. The manifest is written with If-None-Match, so the first one wins. On an S3
server that ignores this header, both pods could delete the files of the other: `check_writable` refuses such a server.
"""

import json
import logging
import secrets
import shutil
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, JsonValue, ValidationError
from pydantic_core import from_json
from tunemill_api import finetune as api
from tunemill_api.base import ApiModel
from tunemill_api.failures import Reason
from tunemill_api.local_files import is_local, local_path
from tunemill_api.stage_report import Stage
from tunemill_api.status import StatusModel

from tunemill_trainer.errors import StageError
from tunemill_trainer.process import tracing
from tunemill_trainer.storage import s3
from tunemill_trainer.storage.bucket import BucketPrefix
from tunemill_trainer.storage.checksums import sha256_of
from tunemill_trainer.storage.credentials import Credentials
from tunemill_trainer.storage.folder import Folder
from tunemill_trainer.storage.manifest_keys import SIGNATURE, ManifestKeys
from tunemill_trainer.storage.objects import NoObjectError, ObjectExistsError, ObjectStore

_FIELD = "spec.workspace"
_MANIFEST = "manifest.json"
_CHECKPOINTS = "checkpoints"
_TRANSFERS = 8
_UNSIGNED_REMEDY = (
    "The output was removed and is computed again. If it is older than the key, set trusted-before in the Secret of "
    "spec.workspace.manifestKeySecretRef. Otherwise find out who else writes to spec.workspace.uri."
)

_log = logging.getLogger(__name__)


def _stays_inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"expected a relative path without .., found {path!r}")
    return path


class ManifestFile(ApiModel):
    """A file of an output."""

    path: Annotated[str, AfterValidator(_stays_inside)]
    """Path relative to the output's folder, with forward slashes and without `..`."""
    size: int
    """Size in bytes."""
    sha256: str
    """Hexadecimal sha256 of the content."""


class Manifest(ApiModel):
    """The manifest of an output."""

    stage: str
    """The stage that wrote the output."""
    key: str
    """The key of the output."""
    attempt: str
    """The folder with the files, below the key."""
    files: list[ManifestFile]
    """All files, sorted by path."""
    facts: dict[str, JsonValue]
    """The facts that the stage reported."""
    signature: str = ""
    """The signature, see manifest_keys.py; empty without a key."""


class Workspace:
    """The outputs of all stages. All methods raise StageError for errors of the object store.

    With `keys`, manifests are signed, and a manifest without a valid signature is not accepted.
    """

    def __init__(self, store: ObjectStore, keys: ManifestKeys | None = None) -> None:
        self._store, self._keys = store, keys
        self._attempt = secrets.token_hex(4)

    @classmethod
    def open(cls, spec: api.Workspace, credentials: Credentials) -> Self:
        """Return the workspace of a spec, as returned by `api.effective_workspace`. Sends no request."""
        if is_local(spec.uri):
            return cls(Folder(local_path(spec.uri), _FIELD), credentials.manifest_keys())
        with s3.s3_errors(spec.uri, _FIELD):
            client = s3.client(spec.endpoint, spec.region, credentials.s3("workspace"))
            return cls(BucketPrefix(client, spec.uri, _FIELD), credentials.manifest_keys())

    def check_writable(self) -> None:
        """Write, read, list and delete a small object, so that missing permissions show before training.

        Raises:
            StageError: InvalidSpec, when the server does not support conditional writes.
        """
        name = f".write-check/{self._attempt}"
        overwrites = self._store.overwrites(name)
        self._store.read_small(name)
        self._store.list(name)
        self._store.delete([name])
        if overwrites:
            raise StageError(
                Reason.INVALID_SPEC,
                f"the S3 server of {_FIELD}.uri does not support If-None-Match, so that two pods could delete each "
                "other's outputs",
                f"Set {_FIELD} to a server with conditional writes, or upgrade the server: AWS S3 and recent versions "
                "of most self-hosted servers support them.",
            )

    def uri(self, stage: str, key: str) -> str:
        """Return the URI of the folder with this attempt's files of an output, without a trailing slash."""
        return self._store.uri(f"{self._folder(stage, key)}{self._attempt}")

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """Return the manifest of a committed output; None if there is none.

        A manifest of another output or without a valid signature is removed, and the stage runs again.
        """
        try:
            return self._own_manifest(stage, key)
        except _DamagedError as error:
            _log.warning("removing the manifest: %s", error)
            self.remove_manifest(stage, key)
            return None

    @tracing.step("fetch outputs")
    def fetch(self, stage: str, key: str, into: Path, *, without: Collection[str] = ()) -> Manifest:
        """Download a committed output and verify every file. Files that are in the folder already are not downloaded.

        Args:
            stage: the stage that wrote the output.
            key: the key of the output.
            into: the target folder.
            without: paths of files that are not needed.

        Raises:
            StageError: StageOutputMissing, when there is no output, a file is missing or damaged, or the manifest is
                that of another output or not signed. Except in the first case, the manifest is removed, so that the
                stage runs again.
        """
        try:
            manifest = self._own_manifest(stage, key)
            if manifest is None:
                raise StageError(
                    Reason.STAGE_OUTPUT_MISSING,
                    f"expected the output of {stage} at {self._store.uri(self._folder(stage, key))}, found none",
                )
            self._download(self._folder(stage, key), manifest, into, without)
        except _DamagedError as error:
            self.remove_manifest(stage, key)
            raise StageError(
                Reason.STAGE_OUTPUT_MISSING,
                f"the output of {stage} in the workspace cannot be used: {error}",
                _UNSIGNED_REMEDY if isinstance(error, _UntrustedError) else "",
            ) from error
        return manifest

    @tracing.step("commit outputs")
    def commit(self, stage: str, key: str, folder: Path, facts: StatusModel) -> Manifest:
        """Upload a folder as the output of a stage, with the manifest last; remove other attempts and checkpoints.

        Returns:
            The committed manifest. If another attempt was first, it is that one, and the files of this attempt are
            removed.
        """
        place = self._folder(stage, key)
        try:
            self._upload(
                place,
                Manifest(
                    stage=stage,
                    key=key,
                    attempt=self._attempt,
                    files=_files(folder),
                    facts=facts.model_dump(mode="json", by_alias=True),
                ),
                folder,
            )
        except ObjectExistsError:
            _log.info("another attempt has already committed %s %s; discarding the files of this one", stage, key)
        manifest = self.manifest(stage, key)
        if manifest is None:
            raise StageError(Reason.STAGE_OUTPUT_MISSING, f"{self._store.uri(place)} was removed during the commit")
        self._store.delete(
            name
            for name in self._store.list(place)
            if name != place + _MANIFEST and not name.startswith(f"{place}{manifest.attempt}/")
        )
        return manifest

    def remove_manifest(self, stage: str, key: str) -> None:
        """Remove the manifest of an output, if there is one, so that the stage runs again."""
        self._store.delete([self._folder(stage, key) + _MANIFEST])

    def leave(self, stage: str, key: str, name: str, content: bytes) -> str:
        """Write a file for users next to an output that was not committed, for example an error report; return its URI.

        The file is removed when the output is committed, or together with the references of the run.
        """
        place = f"{self._folder(stage, key)}{name}"
        self._store.put(place, content)
        return self._store.uri(place)

    def put_checkpoint(self, key: str, folder: Path, step: int) -> None:
        """Upload a checkpoint of a training, with its manifest last, which marks it as complete."""
        place = f"{self._folder(Stage.TRAIN, key)}{_CHECKPOINTS}/{step:08d}-{self._attempt}/"
        manifest = Manifest(stage=Stage.TRAIN, key=key, attempt="files", files=_files(folder), facts={"step": step})
        try:
            self._upload(place, manifest, folder)
        except ObjectExistsError:
            _log.info("the checkpoint of step %d is in the workspace already", step)

    def latest_checkpoint(self, key: str, into: Path) -> int | None:
        """Download the newest complete checkpoint into a folder; return its step, or None if there is none."""
        for place in self._whole_checkpoints(key):
            try:
                manifest = self._read_manifest(place)
                if manifest is None:
                    continue
                _check_place(manifest, Stage.TRAIN, key, self._store.uri(place))
                self._download(place, manifest, into)
            except _DamagedError as error:
                _log.warning("skipping the damaged checkpoint %s: %s", self._store.uri(place), error)
                shutil.rmtree(into, ignore_errors=True)
                continue
            return int(str(manifest.facts["step"]))
        return None

    def prune_checkpoints(self, key: str, keep: int) -> None:
        """Remove all checkpoints except the newest `keep` complete ones."""
        kept = tuple(self._whole_checkpoints(key)[:keep])
        self._store.delete(
            name
            for name in self._store.list(f"{self._folder(Stage.TRAIN, key)}{_CHECKPOINTS}/")
            if not name.startswith(kept)
        )

    def mark(self, path: str) -> None:
        """Write an empty object."""
        self._store.put(path, b"")

    def marks(self, path: str) -> dict[str, datetime]:
        """Return name and time of writing of the objects below a path."""
        return self._store.list(path)

    def remove(self, path: str) -> None:
        """Remove everything below a path. Manifests are removed first, so that no incomplete output has one."""
        self._store.delete(sorted(self._store.list(path), key=lambda name: not name.endswith(f"/{_MANIFEST}")))

    def _folder(self, stage: str, key: str) -> str:
        return f"{stage}/{key}/"

    def _whole_checkpoints(self, key: str) -> list[str]:
        """Return the paths of the checkpoints that have a manifest, newest first."""
        names = self._store.list(f"{self._folder(Stage.TRAIN, key)}{_CHECKPOINTS}/")
        return sorted((name.removesuffix(_MANIFEST) for name in names if name.endswith(f"/{_MANIFEST}")), reverse=True)

    def _own_manifest(self, stage: str, key: str) -> Manifest | None:
        """Return the manifest of an output; None if there is none.

        Raises:
            _DamagedError: it is the manifest of another output.
        """
        place = self._folder(stage, key)
        manifest = self._read_manifest(place)
        if manifest is not None:
            _check_place(manifest, stage, key, self._store.uri(place))
        return manifest

    def _read_manifest(self, place: str) -> Manifest | None:
        """Return the manifest in a folder; None if there is none.

        Raises:
            _UntrustedError: it has no valid signature.
        """
        found = self._store.read_small(place + _MANIFEST)
        if found is None:
            return None
        body, written_at = found
        try:
            document = from_json(body)
        except ValueError:
            document = None
        if self._keys:
            # Check the signature before the format, so that an unsigned document is replaced, whatever it is.
            known = document if isinstance(document, dict) else {}
            if problem := self._keys.problem(place, known, written_at):
                raise _UntrustedError(
                    f"{self._store.uri(place + _MANIFEST)} {problem} (see {_FIELD}.manifestKeySecretRef)"
                )
        try:
            return Manifest.model_validate(document)
        except ValidationError as error:
            raise StageError(
                Reason.INTERNAL_ERROR,
                f"{self._store.uri(place + _MANIFEST)} is not a manifest of this version: {error.errors()[0]['msg']}",
                f"Remove {self._store.uri(place)}, or set another spec.workspace.uri.",
            ) from error

    def _signed(self, place: str, manifest: Manifest) -> bytes:
        """Return the manifest as JSON. Without a key, it has no signature field, as in versions without signatures."""
        document = manifest.model_dump(mode="json", by_alias=True, exclude={SIGNATURE})
        if self._keys:
            document[SIGNATURE] = self._keys.sign(place, document)
        return json.dumps(document, indent=1, ensure_ascii=False).encode()

    def _upload(self, place: str, manifest: Manifest, folder: Path) -> None:
        def upload(file: ManifestFile) -> None:
            self._store.upload(folder / file.path, f"{place}{manifest.attempt}/{file.path}")

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(upload, manifest.files))
        self._store.put_new(place + _MANIFEST, self._signed(place, manifest))

    def _download(self, place: str, manifest: Manifest, into: Path, without: Collection[str] = ()) -> None:
        def download(file: ManifestFile) -> None:
            target = into / file.path
            if target.is_file() and sha256_of(target) == file.sha256:
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            name = f"{place}{manifest.attempt}/{file.path}"
            try:
                self._store.download(name, target)
            except NoObjectError as error:
                raise _DamagedError(f"{self._store.uri(name)} does not exist") from error
            if (found := sha256_of(target)) != file.sha256:
                raise _DamagedError(f"{self._store.uri(name)} has sha256 {found}, expected {file.sha256}")

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(download, [file for file in manifest.files if file.path not in without]))


class _DamagedError(Exception):
    """A file of the manifest is missing or has a different digest, or the manifest is that of another output."""


class _UntrustedError(_DamagedError):
    """A manifest has no valid signature of the namespace's key."""


def _check_place(manifest: Manifest, stage: str, key: str, uri: str) -> None:
    """Check that a manifest belongs to the output in whose folder it is, and was not copied from another one."""
    if (manifest.stage, manifest.key) != (stage, key):
        raise _DamagedError(
            f"{uri}{_MANIFEST} is the manifest of {manifest.stage}/{manifest.key}, expected that of {stage}/{key}"
        )


def _files(folder: Path) -> list[ManifestFile]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        ManifestFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))
        for path in paths
    ]
