"""Reads the manifest of a run on one machine: the YAML file that `kubectl apply` takes."""

import copy
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml
from pydantic import ValidationError
from tunemill_api.constants import API_VERSION, CHAT_TEMPLATE_PATH, KIND, TOOLS_PATH
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec, workspace_of
from tunemill_api.local_files import FILE_SCHEME, is_local
from tunemill_api.run_spec import RunSpec

from tunemill_trainer.data.files import STANDARD_INPUT, name_of
from tunemill_trainer.errors import StageError

_MAY_BE_LOCAL = (
    ("baseModel", "id"),
    ("baseModel", "adapter", "id"),
    ("dataset", "uri"),
    ("dataset", "evaluation", "uri"),
    ("dataset", "validation", "uri"),
    ("dataset", "replay", "uri"),
    ("evaluation", "suites", "uri"),
    ("workspace", "uri"),
    ("publish", "repository"),
)
"""The fields that may name a file or folder of this machine."""
_WORKSPACE = "tunemill"
"""The folder next to the manifest for the outputs, when the data is on this machine and spec.workspace.uri is empty."""

_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@dataclass(frozen=True)
class Manifest:
    """A manifest.

    Attributes:
        run: the run that its FunctionCallFineTune describes.
        config_maps: the data of the ConfigMaps in the same file, by their names.
    """

    run: RunSpec
    config_maps: Mapping[object, dict[str, Any]]

    def write_config(self, folder: Path) -> None:
        """Write the ConfigMap keys that the spec refers to as files, as a pod has them mounted.

        A key that the file does not hold is left out: the prepare stage reports it.
        """
        folder.mkdir()
        spec = self.run.spec
        for source, mounted in ((spec.tokenizer.chat_template, CHAT_TEMPLATE_PATH), (spec.tools, TOOLS_PATH)):
            if source is not None:
                text = self.config_maps.get(source.config_map_key_ref.name, {}).get(source.config_map_key_ref.key)
                if isinstance(text, str):
                    (folder / Path(mounted).name).write_text(text, encoding="utf-8")


def load(path: Path) -> Manifest:
    """Read a FunctionCallFineTune and the ConfigMaps in the same YAML file.

    Args:
        path: the file; - is standard input. Relative paths in it start at its folder, those of a pipe at the current
            one.

    Raises:
        StageError: InvalidSpec, naming the file and the field.
    """
    shown = name_of(path)
    documents = _documents(path)
    ours = _of_kind(documents, KIND)
    if len(ours) != 1 or ours[0].get("apiVersion") != API_VERSION:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected one {KIND} of {API_VERSION} in {shown}, found {len(ours)} of any version",
            "Name a file with one such object.",
        )
    name, namespace = (_dns_name(ours[0], field, shown) for field in ("name", "namespace"))
    folder = path.absolute().parent if path.is_file() else Path.cwd()
    written = ours[0].get("spec") or {}
    try:
        spec = FineTuneSpec.model_validate(_with_local_files(written, folder) if isinstance(written, dict) else written)
    except ValidationError as error:
        wrong = [
            f"spec.{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
            for found in error.errors(include_url=False, include_input=False)
        ]
        raise StageError(Reason.INVALID_SPEC, f"{shown}: {'; '.join(wrong)}") from error
    if not (spec.workspace.uri or spec.dataset.uri.startswith("s3://")):
        raise StageError(
            Reason.INVALID_SPEC,
            f"{shown}: spec.workspace.uri is needed when spec.dataset.uri is on the Hub: there is no bucket for a "
            "workspace",
            "Set spec.workspace.uri.",
        )
    spec = spec.model_copy(update={"workspace": workspace_of(spec, namespace)})
    run = RunSpec(namespace=namespace, name=name, run_id=name, local=True, spec=spec)
    return Manifest(run, {_name(document): document.get("data") or {} for document in _of_kind(documents, "ConfigMap")})


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8")
        documents = list(yaml.safe_load_all(text))
    except OSError as error:
        raise StageError(
            Reason.INVALID_SPEC, f"{name_of(path)} could not be read: {error.strerror}", "Correct the path."
        ) from error
    except UnicodeDecodeError as error:
        raise StageError(Reason.INVALID_SPEC, f"{name_of(path)} is not UTF-8: {error.reason}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise StageError(Reason.INVALID_SPEC, f"{name_of(path)} is not YAML: {message}", "Correct the file.") from error
    return [document for document in documents if isinstance(document, dict)]


def _of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document.get("kind") == kind]


def _name(document: dict[str, Any], field: str = "name") -> object:
    metadata = document.get("metadata")
    return metadata.get(field) if isinstance(metadata, dict) else None


def _dns_name(document: dict[str, Any], field: str, file: str) -> str:
    """Return metadata.name or metadata.namespace, which also become names of folders.

    Raises:
        StageError: InvalidSpec.
    """
    name = _name(document, field) or ("default" if field == "namespace" else None)
    if name is None:
        raise StageError(Reason.INVALID_SPEC, f"expected metadata.{field} in {file}, found none", "Add it.")
    if not (isinstance(name, str) and _DNS_NAME.fullmatch(name)):
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected metadata.{field} in {file} to be lower-case letters, digits, - and ., found {name!r}",
            "Correct it. Kubernetes takes no other names.",
        )
    return name


def _with_local_files(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the spec with paths as absolute file:// URIs, and with a workspace next to the manifest for local data.

    Args:
        spec: as it is written.
        folder: where relative paths start.
    """
    found = copy.deepcopy(spec)
    for *parents, last in _MAY_BE_LOCAL:
        for part in _parts(found, parents):
            if isinstance(part.get(last), str):
                part[last] = _as_uri(part[last], folder)
    dataset, workspace = found.get("dataset"), found.get("workspace", {})
    has_local_data = isinstance(dataset, dict) and is_local(str(dataset.get("uri", "")))
    if has_local_data and isinstance(workspace, dict) and not workspace.get("uri"):
        found["workspace"] = {**workspace, "uri": (folder / _WORKSPACE).as_uri() + "/"}
    return found


def _parts(spec: dict[str, Any], path: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects at a path; several where it leads through a list."""
    if not path:
        yield spec
        return
    below = spec.get(path[0])
    for part in below if isinstance(below, list) else [below]:
        if isinstance(part, dict):
            yield from _parts(part, path[1:])


def _as_uri(text: str, folder: Path) -> str:
    """Return a path as a file:// URI, and any other text unchanged. A path begins with /, ./, ../ or ~/."""
    if text.startswith(FILE_SCHEME):
        text = unquote(text.removeprefix(FILE_SCHEME))
    elif not text.startswith(("/", "./", "../", "~/")) and text not in {".", ".."}:
        return text
    path = os.path.normpath(folder / Path(text).expanduser())
    return FILE_SCHEME + quote(path, safe="/*?") + ("/" if text.endswith("/") else "")
