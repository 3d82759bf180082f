"""Downloads the data from S3 or the Hub to the work folder and computes its digest."""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.failures import Reason
from tunemill_api.local_files import is_local, local_path

from tunemill_trainer.data.files import Data, DataFile
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.stop import StopSignal
from tunemill_trainer.storage import s3
from tunemill_trainer.storage.checksums import sha256_of
from tunemill_trainer.storage.hub import Hub

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
"""The suffixes of data files. Other files are skipped, unless the URI names a single file."""

_WILDCARD = re.compile(r"\*\*|\*|\?")
_HUB_URI = re.compile(
    r"hf://(?:datasets/)?(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+))?\Z", re.DOTALL
)
_ABOUT_DATA = re.compile(r"(?:\A|/)(?:[._]|dataset_infos?\.json\Z|dataset_dict\.json\Z|state\.json\Z)")
"""Files in a data set's repository that contain no rows."""
_TRAINING = re.compile(r"(?:\A|[/._-])train(?:ing)?(?=[/._-])")
"""Matches the names of training split files on the Hub (https://huggingface.co/docs/hub/datasets-file-names-and-splits)."""


_OUTPUT = re.compile(
    r"(?:\A|/)(?:prepare|train|evaluate|publish|base-replies|suites)/[0-9a-f]{16}/(?:[^/]+/|manifest\.json\Z)"
)
"""Matches the output of stages in a workspace, possibly of another user. It contains rows of other runs, not input."""


class DataFetcher:
    """Fetches data from S3, the Hub or the local disk.

    Args:
        s3: opens the S3 client of spec.dataset. It is called only for data on S3, so only that needs credentials.
        hub: the Hub client.
        stop: checked between chunks.
    """

    def __init__(self, s3: "Callable[[], S3Client]", hub: Hub, stop: StopSignal) -> None:
        self._s3 = s3
        self._hub = hub
        self._stop = stop

    def fetch(self, uri: str, field: str, into: Path) -> Data:
        """Download the files of a URI.

        Args:
            uri: s3://bucket/key, s3://bucket/prefix/, s3://bucket, s3://bucket/glob*.jsonl,
                hf://owner/name[@revision][/path] or file:///path, where the path is a file, a folder that ends in a
                slash, or a glob.
            field: the field of the spec with the URI, for messages.
            into: an empty folder. File names in it are numbers: an S3 key never becomes a path.

        Raises:
            StageError: BucketNotFound, ObjectNotFound, S3AccessDenied, S3Unreachable, CredentialsMissing,
                DatasetNotFound, DatasetGated, HubTokenInvalid or HubUnreachable; InvalidSpec, if all files are outputs
                of stages in a workspace. If only some are, they are skipped.
        """
        into.mkdir(parents=True, exist_ok=True)
        if is_local(uri):
            return self._from_here(uri, field)
        return self._from_hub(uri, field) if uri.startswith("hf://") else self._from_s3(uri, field, into)

    def _from_here(self, uri: str, field: str) -> Data:
        path = local_path(uri)
        text = path.as_posix() + ("/" if path.is_dir() else "")
        if text.endswith("/") or _WILDCARD.search(text):
            root = Path(_WILDCARD.split(text)[0].rpartition("/")[0] or "/")
            names = (found.as_posix() for found in root.rglob("*") if found.is_file())
            paths = _usable(names, text, uri, field)
        elif path.is_file():
            paths = [text]
        else:
            raise StageError(
                Reason.OBJECT_NOT_FOUND,
                f"{field}.uri is {path}, but no such file or folder exists",
                f"Set {field}.uri to a file, folder or glob. Relative paths start at the folder of the manifest.",
            )
        files = []
        for name in paths:
            self._stop.check()
            files.append(DataFile(_shown(name, text), Path(name), sha256_of(Path(name))))
        return Data(uri, tuple(files))

    def _from_s3(self, uri: str, field: str, into: Path) -> Data:
        client = self._s3()
        bucket, key = s3.split_uri(uri)
        with s3.s3_errors(uri, field):
            if not key or key.endswith("/") or _WILDCARD.search(key):
                prefix = _WILDCARD.split(key)[0]
                pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
                keys = _usable((item["Key"] for page in pages for item in page.get("Contents", [])), key, uri, field)
            else:
                keys = [key]
            outputs = [name for name in keys if _OUTPUT.search(name)]
            keys = [name for name in keys if name not in outputs]
            if not keys:
                raise StageError(
                    Reason.INVALID_SPEC,
                    f"{field}.uri is {uri}, but {outputs[0]!r} is the output of a stage in a workspace, not input data",
                    f"Set {field}.uri to the files with the rows.",
                )
            files = []
            for number, name in enumerate(keys):
                path = into / f"{number:06d}"
                files.append(DataFile(_shown(name, key), path, self._download(client, bucket, name, path)))
        return Data(uri, tuple(files))

    def _download(self, client: "S3Client", bucket: str, key: str, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in s3.chunks(client, bucket, key):
                self._stop.check()
                digest.update(chunk)
                file.write(chunk)
        return digest.hexdigest()

    def _from_hub(self, uri: str, field: str) -> Data:
        parts = _HUB_URI.match(uri)
        if parts is None:
            raise StageError(Reason.INVALID_SPEC, f"expected hf://owner/name in {field}.uri, found {uri}")
        dataset = self._hub.resolve_dataset(parts["id"], parts["revision"] or "main")
        path = parts["path"] or ""
        rows = [name for name in dataset.files if not _ABOUT_DATA.search(name)]
        if not path:
            rows = [name for name in rows if _TRAINING.search(name)] or rows
        if path and not path.endswith("/") and not _WILDCARD.search(path):
            if path not in dataset.files:
                raise StageError(Reason.DATASET_NOT_FOUND, f"{field}.uri is {uri}, but {dataset.id} has no file {path}")
            names = [path]
        else:
            names = _usable(rows, path, uri, field)
        files = []
        for name in names:
            self._stop.check()
            local = self._hub.download_file_of_dataset(dataset, name)
            files.append(DataFile(_shown(name, path), local, sha256_of(local)))
        return Data(uri, tuple(files))


def matching(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a glob. * and ? match within a folder, ** also across folders."""
    meanings = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    texts, wildcards = _WILDCARD.split(pattern), _WILDCARD.findall(pattern)
    parts = [re.escape(texts[0])]
    for wildcard, text in zip(wildcards, texts[1:], strict=True):
        parts += [meanings[wildcard], re.escape(text)]
    return re.compile("".join(parts), re.DOTALL)


def _usable(names: Iterable[str], path: str, uri: str, field: str) -> list[str]:
    """Return the sorted names of the data files below a prefix or that match a glob."""
    glob = matching(path) if _WILDCARD.search(path) else None
    found = [name for name in names if (glob.fullmatch(name) if glob else name.startswith(path))]
    usable = sorted(name for name in found if name.endswith(ENDINGS))
    if not usable:
        where = "that match" if glob else "below"
        raise StageError(
            Reason.OBJECT_NOT_FOUND,
            f"expected objects ending in {', '.join(ENDINGS)} {where} {uri} ({field}.uri), "
            f"found {len(found)} objects, none with such a suffix",
        )
    return usable


def _shown(name: str, path: str) -> str:
    """Return a name for messages, relative to the folder of the URI."""
    folder = _WILDCARD.split(path)[0].rpartition("/")[0]
    return name.removeprefix(f"{folder}/" if folder else "")
