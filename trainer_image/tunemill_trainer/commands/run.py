"""All four stages on one machine, from the same manifest that `kubectl apply` takes.

Each stage is a process of its own, as it is in the cluster: it gives its memory back at its end, and the libraries that
read their settings at the first import read those of this run.
"""

import copy
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote, unquote

import yaml
from pydantic import ValidationError
from tunemill_api.constants import API_VERSION, CHAT_TEMPLATE_PATH, KIND, TOOLS_PATH
from tunemill_api.failures import FAILURES, ExitCode, Reason
from tunemill_api.finetune import FineTuneSpec, workspace_of
from tunemill_api.local_files import FILE_SCHEME, is_local, local_path
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, StageReport

from tunemill_trainer.errors import StageError
from tunemill_trainer.stages.config_maps import ENV_CONFIG_DIRECTORY

_MAY_BE_LOCAL = (
    ("baseModel", "id"),
    ("dataset", "uri"),
    ("dataset", "evaluation", "uri"),
    ("workspace", "uri"),
    ("publish", "repository"),
)
"""The fields that may name a file or folder of this machine."""
_WORKSPACE = "tunemill"
"""The folder for outputs beside the manifest, where the data is on this machine and spec.workspace.uri is empty."""


def main(manifest: Path, work: Path) -> int:
    """Run the stages that are not done yet, print what came out, and return the exit code of the last stage.

    That of a gate that is not passed is also returned when a draft was pushed: nobody shall take it for a release.
    """
    try:
        run = load(manifest)
    except StageError as error:
        print(f"{error.reason}: {error.message}\n{error.failure.remedy}", file=sys.stderr)
        return error.exit_code
    work /= run.name
    _clear(work)
    write_config(manifest, run, work / "config")
    reports: list[StageReport] = []
    for stage in Stage:
        code, report = _run_stage(stage, run, work)
        if report is None:
            print(f"the process of {stage} ended with code {code} and without a report", file=sys.stderr)
            return code
        if report.failure is not None:
            print(summary(reports))  # the figures are what someone needs whose gate is not passed
            return code
        reports.append(report)
        if report.prepared is not None:
            run = run.model_copy(update={"prepared": report.prepared})
    print(summary(reports))
    draft = any(report.published and report.published.draft for report in reports)
    return FAILURES[Reason.GATE_NOT_PASSED].exit_code if draft else ExitCode.DONE


def load(manifest: Path) -> RunSpec:
    """Read a FunctionCallFineTune from a YAML file.

    Raises:
        StageError: InvalidSpec, naming the field.
    """
    ours = [document for document in _documents(manifest) if document.get("kind") == KIND]
    if len(ours) != 1 or ours[0].get("apiVersion") != API_VERSION:
        raise StageError(Reason.INVALID_SPEC, f"expected one {KIND} of {API_VERSION} in {manifest}, found {len(ours)}")
    metadata: dict[str, Any] = ours[0].get("metadata") or {}
    if not metadata.get("name"):
        raise StageError(Reason.INVALID_SPEC, f"expected metadata.name in {manifest}, found none")
    try:
        written = ours[0].get("spec") or {}
        spec = FineTuneSpec.model_validate(_with_local_files(written, manifest.absolute().parent))
    except ValidationError as error:
        wrong = [
            f"spec.{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
            for found in error.errors(include_url=False, include_input=False)
        ]
        raise StageError(Reason.INVALID_SPEC, f"{manifest}: {'; '.join(wrong)}") from error
    if not (spec.workspace.uri or spec.dataset.uri.startswith("s3://")):
        raise StageError(
            Reason.INVALID_SPEC,
            f"{manifest}: spec.workspace.uri is needed when spec.dataset.uri is on the Hub: there is no bucket to put "
            "a workspace into",
        )
    namespace = metadata.get("namespace") or "default"
    whole = spec.model_copy(update={"workspace": workspace_of(spec, namespace)})
    return RunSpec(namespace=namespace, name=metadata["name"], run_id=metadata["name"], local=True, spec=whole)


def _with_local_files(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a spec whose paths are absolute file:// URIs; one without a place for outputs has it beside the manifest.

    Args:
        spec: as it is written.
        folder: the manifest's, where relative paths start.
    """
    found = copy.deepcopy(spec)
    for path in _MAY_BE_LOCAL:
        *parents, last = path
        part: Any = found
        for name in parents:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict) and isinstance(part.get(last), str):
            part[last] = _as_uri(part[last], folder)
    dataset, workspace = found.get("dataset"), found.get("workspace", {})
    has_local_data = isinstance(dataset, dict) and is_local(str(dataset.get("uri", "")))
    if has_local_data and isinstance(workspace, dict) and not workspace.get("uri"):
        found["workspace"] = {**workspace, "uri": (folder / _WORKSPACE).as_uri() + "/"}
    return found


def _as_uri(text: str, folder: Path) -> str:
    """Return a path, which begins with a slash or a dot as in a shell, as a file:// URI; anything else as it is."""
    if text.startswith(FILE_SCHEME):
        text = unquote(text.removeprefix(FILE_SCHEME))
    elif not text.startswith(("/", "./", "../", "~/")) and text not in {".", ".."}:
        return text
    path = os.path.normpath(folder / Path(text).expanduser())
    return FILE_SCHEME + quote(path, safe="/*?") + ("/" if text.endswith("/") else "")


def write_config(manifest: Path, run: RunSpec, folder: Path) -> None:
    """Put the ConfigMaps that the wish refers to, which stand in the manifest too, where the stages look for them."""
    folder.mkdir()
    data = {
        document["metadata"]["name"]: document.get("data") or {}
        for document in _documents(manifest)
        if document.get("kind") == "ConfigMap"
    }
    for source, mounted in ((run.spec.tokenizer.chat_template, CHAT_TEMPLATE_PATH), (run.spec.tools, TOOLS_PATH)):
        if source is not None:
            text = data.get(source.config_map_key_ref.name, {}).get(source.config_map_key_ref.key)
            if isinstance(text, str):
                (folder / Path(mounted).name).write_text(text, encoding="utf-8")


def summary(reports: list[StageReport]) -> str:
    """Return what came out, for people: what each stage did, the metrics of both models, where the model lies."""
    lines = ["", "STAGE      DID        KEY               SECONDS"]
    for report in reports:
        seconds = (report.finished_at - report.started_at).total_seconds()
        did = "executed" if report.executed else "nothing"
        lines.append(f"{report.stage:<10} {did:<10} {report.key:<17} {seconds:7.1f}")
    for report in reports:
        if report.evaluation is not None:
            lines += ["", "METRIC                  BASE    TUNED   CASES"]
            lines += [
                f"{metric.name:<22} {metric.base or '-':>6}   {metric.tuned or '-':>6}  {metric.cases:>6}"
                for metric in report.evaluation.metrics
            ]
        if report.trained is not None:
            adapter = report.trained.adapter
            if is_local(adapter):
                adapter = str(local_path(adapter))
        if report.published is not None:
            published = report.published
            where = published.url or f"{published.repository}@{published.revision}"
            did = "draft, as a gate is not passed:" if published.draft else "published "
            lines += ["", f"adapter    {adapter}", f"{did} {where}"]
            if published.serving and published.serving.command:
                lines += ["", "serve it with", published.serving.command]
    return "\n".join(lines)


def _documents(manifest: Path) -> list[dict[str, Any]]:
    try:
        documents = list(yaml.safe_load_all(manifest.read_text(encoding="utf-8")))
    except OSError as error:
        raise StageError(Reason.INVALID_SPEC, f"could not read {manifest}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise StageError(Reason.INVALID_SPEC, f"{manifest} is not YAML: {error}") from error
    return [document for document in documents if isinstance(document, dict)]


def _clear(work: Path) -> None:
    """Remove what an earlier run left, so that its files do not mix with ours. The downloaded models stay."""
    work.mkdir(parents=True, exist_ok=True)
    for left in work.iterdir():
        if left.is_dir() and left.name != "hub":
            shutil.rmtree(left)


def _run_stage(stage: Stage, run: RunSpec, work: Path) -> tuple[int, StageReport | None]:
    """Return the exit code and the report; None when the process ended without one."""
    run_spec, report = work / "run.json", work / "report.json"
    run_spec.write_text(run.model_dump_json(by_alias=True), encoding="utf-8")
    report.unlink(missing_ok=True)
    options = ["--run-spec", str(run_spec), "--work", str(work), "--report", str(report)]
    environment = os.environ | {ENV_CONFIG_DIRECTORY: str(work / "config")}
    with subprocess.Popen([sys.executable, "-m", "tunemill_trainer", stage, *options], env=environment) as process:

        def forward(number: int, _frame: FrameType | None) -> None:
            # Ctrl-C reaches the stage by itself; both ask it to stop, and its end is ours.
            if number != signal.SIGINT:
                process.send_signal(number)

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return code, StageReport.model_validate_json(report.read_text()) if report.exists() else None
