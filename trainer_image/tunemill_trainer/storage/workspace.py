"""The workspace: every stage's output under its key, there whole or not at all, verified by digest.

    PREFIX/<stage>/<key>/manifest.json                      written last; without it there is no output
    PREFIX/<stage>/<key>/<attempt>/…                        the files, in a folder of the attempt that wrote them
    PREFIX/train/<key>/checkpoints/<step>-<attempt>/…       checkpoints, built the same way; removed by the commit
    PREFIX/runs/…                                           which run refers to which output, see references.py

Each process writes below an attempt of its own, so that two pods with the same work (a lost node that is still alive,
say) never mix their files. The first manifest wins: it is written with If-None-Match. On an S3 server that ignores
this header the last one would win, after each has removed the files of the other: `check_writable` refuses such a
server.
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
    "The output was withdrawn: it is made again. If it is older than the key, set trusted-before in the Secret of "
    "spec.workspace.manifestKeySecretRef. Else find out who writes to spec.workspace.uri besides the stages."
)

_log = logging.getLogger(__name__)


def _stays_inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"expected a relative path that stays in its folder, found {path!r}")
    return path


class ManifestFile(ApiModel):
    """One file of an output."""

    path: Annotated[str, AfterValidator(_stays_inside)]
    """Relative to the output's folder, with slashes; never leaves it."""
    size: int
    """Bytes."""
    sha256: str
    """Of the contents, hexadecimal."""


class Manifest(ApiModel):
    """What an output consists of."""

    stage: str
    """The stage that made it."""
    key: str
    """The key of the output."""
    attempt: str
    """The folder below the key that holds the files."""
    files: list[ManifestFile]
    """All files, sorted by path."""
    facts: dict[str, JsonValue]
    """What the stage found, as it reported it."""
    signature: str = ""
    """See manifest_keys.py; empty where no key is set."""


class Workspace:
    """The outputs of all stages. All methods raise StageError for what the store of the objects finds wrong.

    With `keys`, every manifest is signed, and one without a valid signature is that of no output.
    """

    def __init__(self, store: ObjectStore, keys: ManifestKeys | None = None) -> None:
        self._store, self._keys = store, keys
        self._attempt = secrets.token_hex(4)

    @classmethod
    def open(cls, spec: api.Workspace, credentials: Credentials) -> Self:
        """Return the workspace that `api.effective_workspace` names; nothing is asked of the server yet."""
        if is_local(spec.uri):
            return cls(Folder(local_path(spec.uri), _FIELD), credentials.manifest_keys())
        with s3.s3_errors(spec.uri, _FIELD):
            client = s3.client(spec.endpoint, spec.region, credentials.s3("workspace"))
            return cls(BucketPrefix(client, spec.uri, _FIELD), credentials.manifest_keys())

    def check_writable(self) -> None:
        """Write, read, list and delete a small object, so that what is missing shows now and not after the training.

        Raises:
            StageError: InvalidSpec, when the server overwrites what it is asked to write only if it is not there.
        """
        name = f".write-check/{self._attempt}"
        overwrites = self._store.overwrites(name)
        self._store.read_small(name)
        self._store.list(name)
        self._store.delete([name])
        if overwrites:
            raise StageError(
                Reason.INVALID_SPEC,
                f"{_FIELD}.uri is on an S3 server that does not honour If-None-Match, so that two pods could destroy "
                "each other's outputs",
                f"Set {_FIELD} to a server with conditional writes, or upgrade the server: AWS S3 has them, and newer "
                "versions of most servers that one hosts oneself.",
            )

    def uri(self, stage: str, key: str) -> str:
        """Return where the files of an output of this attempt lie, without a slash at the end."""
        return self._store.uri(f"{self._folder(stage, key)}{self._attempt}")

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """Return what was committed under a key; None when nothing was.

        A manifest of another output, or one that is not signed as it has to be, is removed and counts as none, so that
        the stage is done.
        """
        try:
            return self._own_manifest(stage, key)
        except _DamagedError as error:
            _log.warning("the manifest is removed: %s", error)
            self.withdraw(stage, key)
            return None

    @tracing.step("fetch outputs")
    def fetch(self, stage: str, key: str, into: Path, *, without: Collection[str] = ()) -> Manifest:
        """Download a committed output and verify every file; what is already there and right is not fetched again.

        Args:
            stage: which stage's.
            key: of the output.
            into: the folder.
            without: paths of the output that are not needed.

        Raises:
            StageError: StageOutputMissing, when nothing was committed, a file of it is gone or damaged, or the manifest
                is that of another output or not signed as it has to be. In the latter cases the manifest is withdrawn,
                so that the stage is done again.
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
            self.withdraw(stage, key)
            raise StageError(
                Reason.STAGE_OUTPUT_MISSING,
                f"the output of {stage} in the workspace cannot be used: {error}",
                _UNSIGNED_REMEDY if isinstance(error, _UntrustedError) else "",
            ) from error
        return manifest

    @tracing.step("commit outputs")
    def commit(self, stage: str, key: str, folder: Path, facts: StatusModel) -> Manifest:
        """Upload a folder as the output of a stage, the manifest last; remove other attempts and checkpoints.

        Returns:
            What is committed now. Where another attempt was first, that is its manifest, and this one's files are gone.
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
            _log.info("another attempt has committed %s %s already; this one's files are dropped", stage, key)
        manifest = self.manifest(stage, key)
        if manifest is None:
            raise StageError(Reason.STAGE_OUTPUT_MISSING, f"{self._store.uri(place)} was removed while it was written")
        self._store.delete(
            name
            for name in self._store.list(place)
            if name != place + _MANIFEST and not name.startswith(f"{place}{manifest.attempt}/")
        )
        return manifest

    def withdraw(self, stage: str, key: str) -> None:
        """Remove the manifest of an output, so that the stage is done again. Nothing happens when there is none."""
        self._store.delete([self._folder(stage, key) + _MANIFEST])

    def leave(self, stage: str, key: str, name: str, content: bytes) -> str:
        """Write a file beside an output that is not there, for people, in place of an earlier one; return its URI.

        It goes when the output is committed, or with the run that refers to the key.
        """
        place = f"{self._folder(stage, key)}{name}"
        self._store.put(place, content)
        return self._store.uri(place)

    def put_checkpoint(self, key: str, folder: Path, step: int) -> None:
        """Upload a checkpoint of the training with a key; `latest_checkpoint` sees it once its last byte is there."""
        place = f"{self._folder(Stage.TRAIN, key)}{_CHECKPOINTS}/{step:08d}-{self._attempt}/"
        manifest = Manifest(stage=Stage.TRAIN, key=key, attempt="files", files=_files(folder), facts={"step": step})
        try:
            self._upload(place, manifest, folder)
        except ObjectExistsError:
            _log.info("the checkpoint of step %d is in the workspace already", step)

    def latest_checkpoint(self, key: str, into: Path) -> int | None:
        """Download the newest checkpoint that is whole into a folder; return its step, or None when there is none."""
        for place in self._whole_checkpoints(key):
            try:
                manifest = self._read_manifest(place)
                if manifest is None:
                    continue
                _check_place(manifest, Stage.TRAIN, key, self._store.uri(place))
                self._download(place, manifest, into)
            except _DamagedError as error:
                _log.warning("the checkpoint %s is not whole and is passed over: %s", self._store.uri(place), error)
                shutil.rmtree(into, ignore_errors=True)
                continue
            return int(str(manifest.facts["step"]))
        return None

    def prune_checkpoints(self, key: str, keep: int) -> None:
        """Remove all checkpoints but the newest `keep` whole ones; torn ones go, too."""
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
        """Return the objects below a path, and when each was written last."""
        return self._store.list(path)

    def remove(self, path: str) -> None:
        """Remove everything below a path, manifests first, so that no half of an output passes for a whole one."""
        self._store.delete(sorted(self._store.list(path), key=lambda name: not name.endswith(f"/{_MANIFEST}")))

    def _folder(self, stage: str, key: str) -> str:
        return f"{stage}/{key}/"

    def _whole_checkpoints(self, key: str) -> list[str]:
        """Return the places of the checkpoints that have a manifest, the newest first."""
        names = self._store.list(f"{self._folder(Stage.TRAIN, key)}{_CHECKPOINTS}/")
        return sorted((name.removesuffix(_MANIFEST) for name in names if name.endswith(f"/{_MANIFEST}")), reverse=True)

    def _own_manifest(self, stage: str, key: str) -> Manifest | None:
        """Return the manifest of an output; None when there is none.

        Raises:
            _DamagedError: what lies there is the manifest of another output.
        """
        place = self._folder(stage, key)
        manifest = self._read_manifest(place)
        if manifest is not None:
            _check_place(manifest, stage, key, self._store.uri(place))
        return manifest

    def _read_manifest(self, place: str) -> Manifest | None:
        """Return the manifest that lies at a place; None when there is none.

        Raises:
            _UntrustedError: it is not signed as it has to be.
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
            # First of all: what somebody else wrote there is replaced, however odd it is.
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
        """Return the manifest as it is written; an unsigned one as versions before signatures wrote it."""
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
                raise _DamagedError(f"{self._store.uri(name)} is not there") from error
            if (found := sha256_of(target)) != file.sha256:
                raise _DamagedError(f"{self._store.uri(name)} has sha256 {found}, expected {file.sha256}")

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(download, [file for file in manifest.files if file.path not in without]))


class _DamagedError(Exception):
    """A file that the manifest names is gone or has other contents, or the manifest is that of another output."""


class _UntrustedError(_DamagedError):
    """A manifest is not signed with the key of the namespace."""


def _check_place(manifest: Manifest, stage: str, key: str, uri: str) -> None:
    """Check that a manifest lies where its output belongs: whoever may write to the bucket can copy one elsewhere."""
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
