"""Runs one stage: reads its RunSpec, and always writes a StageReport and returns an exit code.

A stage is the function `run(context)` in the module of its name. For train and evaluate it returns the facts, and is
called only if there is no committed output yet; otherwise their modules, which import torch, are not imported. For
prepare and publish it returns the facts and whether anything was done: prepare computes its own key, and publish has to
check on the Hub whether the release still exists.
"""

import contextlib
import errno
import gc
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from tunemill_api import trust
from tunemill_api.constants import ENV_CA_BUNDLE, MODEL_CACHE_PATH, PUBLIC_HUB
from tunemill_api.failures import FAILURES, ExitCode, Reason
from tunemill_api.finetune import effective_workspace
from tunemill_api.local_files import is_local
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, StageFailure, StageReport, failure_of
from tunemill_api.status import EvaluationFacts, PreparedFacts, PublishedFacts, TrainedFacts

from tunemill_trainer.errors import Interrupted, StageError
from tunemill_trainer.process import addresses, console, cpus, rank_processes, tracing
from tunemill_trainer.process.bars import ENV_BAR, ProgressBar
from tunemill_trainer.process.console import Redaction
from tunemill_trainer.process.progress import Destination, Progress
from tunemill_trainer.process.rank_processes import Node
from tunemill_trainer.process.ranks import Place, Ranks
from tunemill_trainer.process.stop import StopSignal, grace_seconds
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.continued import continued_run
from tunemill_trainer.storage import references
from tunemill_trainer.storage.credentials import Credentials
from tunemill_trainer.storage.workspace import Workspace

Facts = PreparedFacts | TrainedFacts | EvaluationFacts | PublishedFacts
_BY_ALL_RANKS = (Stage.TRAIN, Stage.EVALUATE)

_log = logging.getLogger(__name__)


def main(stage: Stage, run_spec: Path, work: Path, report_path: Path) -> int:
    """Run a stage and return its exit code.

    The stage runs in this process, or with several ranks in processes that this one starts and waits for.

    Args:
        stage: the stage.
        run_spec: the file with the RunSpec.
        work: the work folder.
        report_path: where to write the StageReport; in a pod, the termination log. A failed write is logged only.
    """
    place = Place.from_environment()
    console.log_to_stdout(place.index)
    rank_processes.end_with_parent(place)
    started_at = datetime.now(UTC)
    stop = StopSignal()

    def end(failure: StageFailure) -> int:
        shown = Redaction(Credentials.from_environment()).of_failure(failure)
        _publish_report(
            StageReport(stage=stage, started_at=started_at, finished_at=datetime.now(UTC), failure=shown), report_path
        )
        return FAILURES[failure.reason].exit_code

    def exit_now() -> None:
        # The pod is killed in a few seconds. Exiting is safe at any point, because outputs are committed atomically.
        os._exit(end(Interrupted("the stage did not stop within the grace period").failure))

    with stop.listening(exit_now, grace_seconds()):
        try:
            run = _load(run_spec)
            node = Node.of(run)
            if stage in _BY_ALL_RANKS and place.count == 1 and node.all_ranks > 1:
                stop.check()
                places, on_gpus = node.places(), run.spec.compute.gpus > 0
                return _run_ranks(stage, places, run_spec, work, report_path, on_gpus=on_gpus)
            report = run_stage(stage, run, work, Ranks(place, stop), started_at)
        except BaseException as error:  # noqa: BLE001 - every exception becomes a report and an exit code
            return end(_failure(error, work))
        _publish_report(report, report_path)
        return ExitCode.DONE


def _run_ranks(
    stage: Stage, places: Sequence[Place], run_spec: Path, work: Path, report_path: Path, *, on_gpus: bool
) -> int:
    """Run the stage in one process per rank of this node; leave the report of one of them, and return its exit code."""
    folder = work / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    reports = [folder / f"{stage}-{place.local_index}.json" for place in places]
    for report in reports:
        report.unlink(missing_ok=True)
    options = ["--run-spec", str(run_spec), "--work", str(work), "--report"]
    commands = [rank_processes.command_for(stage, [*options, str(report)]) for report in reports]
    ended = rank_processes.run(places, commands, on_gpus=on_gpus)
    written = reports[ended.local_index]
    if written.exists():
        try:
            report_path.write_text(written.read_text(encoding="utf-8"), encoding="utf-8")
        except OSError as error:
            _log.warning("cannot write the report to %s: %s", report_path, error.strerror)
    return ended.code


def run_stage(stage: Stage, run: RunSpec, work: Path, ranks: Ranks, started_at: datetime) -> StageReport:
    """Run a stage and return its report. Failures are raised."""
    _refuse_local_files(run)
    _configure_libraries(run, work)
    if stage in _BY_ALL_RANKS and run.spec.compute.gpus == 0:
        # Only attention on a GPU is compiled. Without this, bitsandbytes imports the compiler: 2.6 of 10 CPU seconds.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # The ranks of a node share the work folder, but each one writes the file that it then reads.
    _configure_trust(work / "ranks" / str(ranks.index) if ranks.count > 1 else work)
    _check_addresses(run)
    credentials = Credentials.from_environment()
    bar = ProgressBar(stage, total=100, unit="%") if os.environ.get(ENV_BAR) and ranks.first else None
    progress = Progress(stage, Destination.from_environment() if ranks.first else None, bar=bar)
    # Once the operator has heard a stage it takes silence for a stall.
    progress.report(0)
    try:
        workspace = Workspace.open(effective_workspace(run.spec), credentials)
        context = StageContext(run, workspace, work, credentials, progress, ranks)
        with tracing.stage(stage, run) if ranks.first else contextlib.nullcontext():
            key, facts, executed = _outcome(stage, context)
        if executed:
            progress.report(100, 0)
    finally:
        progress.close()
    return StageReport(
        stage=stage,
        key=key,
        executed=executed,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        prepared=facts if isinstance(facts, PreparedFacts) else None,
        trained=facts if isinstance(facts, TrainedFacts) else None,
        evaluation=facts if isinstance(facts, EvaluationFacts) else None,
        published=facts if isinstance(facts, PublishedFacts) else None,
    )


def _outcome(stage: Stage, context: StageContext) -> tuple[str, Facts, bool]:
    """Return the key of the output, the facts, and whether anything was done."""
    # Imported where needed, because each stage imports slow libraries that the others do not need.
    if stage is Stage.PREPARE:
        with _no_garbage_collection():
            from tunemill_trainer.stages import prepare

        prepared, executed = prepare.run(context)
        return prepared.key, prepared, executed
    context = replace(context, run=continued_run(context.run))
    if context.ranks.first:
        references.refer(context.workspace, context.run, context.prepared.key, context.prepared.suites)
    if stage is Stage.PUBLISH:
        with _no_garbage_collection():
            from tunemill_trainer.stages import publish

        published, executed = publish.run(context)
        if executed:
            references.prune(context.workspace, context.run)
        return context.publish_key(draft=published.draft), published, executed
    key = context.train_key if stage is Stage.TRAIN else context.evaluate_key
    manifest = context.workspace.manifest(stage, key)
    if stage is Stage.TRAIN:
        if manifest is not None:
            return key, TrainedFacts.model_validate(manifest.facts), False
        with _no_garbage_collection():
            from tunemill_trainer.stages import train

        return key, train.run(context), True
    if manifest is not None:
        return key, EvaluationFacts.model_validate(manifest.facts), False
    with _no_garbage_collection():
        from tunemill_trainer.stages import evaluate

    return key, evaluate.run(context), True


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Import modules without collecting garbage, and leave their objects out of later collections.

    torch and Transformers make half a million objects that all stay. Looking through them again and again takes a
    seventh of the time of the imports, and a quarter of a second in each full collection afterwards.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _load(path: Path) -> RunSpec:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StageError(Reason.INVALID_SPEC, f"cannot read the RunSpec at {path}: {error.strerror}") from error
    try:
        return RunSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "its top level"
        raise StageError(Reason.INVALID_SPEC, f"the RunSpec at {path} is invalid at {where}: {first['msg']}") from error


def _failure(error: BaseException, work: Path) -> StageFailure:
    if isinstance(error, StageError):
        _log.debug("the stage failed", exc_info=error)
        return error.failure
    if isinstance(error, KeyboardInterrupt):
        return Interrupted().failure
    if any(isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT} for cause in _causes(error)):
        free = shutil.disk_usage(work).free if work.exists() else 0
        return failure_of(Reason.DISK_FULL, f"no space left on the disk of {work}: {free >> 20} MiB free ({error})")
    if any(isinstance(cause, MemoryError) for cause in _causes(error)):
        return failure_of(Reason.OUT_OF_MEMORY, "the stage needed more memory than the machine or the pod's limit")
    _log.error("the stage failed with an unexpected exception", exc_info=error)
    first_line = (str(error).splitlines() or [""])[0]
    return failure_of(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {first_line}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _publish_report(report: StageReport, path: Path) -> None:
    message = report.termination_message()
    if report.failure is None:
        _log.info("%s %s: %s", report.stage, "done" if report.executed else "already done", message)
    else:
        _log.error(
            "%s failed: %s: %s %s", report.stage, report.failure.reason, report.failure.message, report.failure.remedy
        )
    try:
        path.write_text(message, encoding="utf-8")
    except OSError as error:
        _log.warning("cannot write the report to %s: %s", path, error.strerror)


def _configure_libraries(run: RunSpec, work: Path) -> None:
    """Set the environment variables that the Hugging Face libraries and OpenMP read at import."""
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(cpus.available()))
    os.environ.setdefault("RAYON_NUM_THREADS", threads)
    # Let waiting threads sleep. Spinning is 20 to 90 times slower on a busy machine (two threads, 256 x 256 layers,
    # load 12 on two cores: 1759 and 456 ms per step, instead of 19 and 27 ms).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The size of forward passes varies. Expandable segments avoid out-of-memory errors by fragmentation. PyTorch reads
    # both variables; do not override a user's setting.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    endpoint = run.spec.hub.endpoint.rstrip("/")
    if endpoint:
        os.environ["HF_ENDPOINT"] = endpoint
    if os.environ.get("HF_ENDPOINT", PUBLIC_HUB).rstrip("/") != PUBLIC_HUB:
        # With a server without Xet, the client hangs for more than 90 seconds.
        os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ["HF_HOME"] = str(work / "hub")
    if run.spec.compute.model_cache.claim_name and Path(MODEL_CACHE_PATH).is_dir():
        os.environ["HF_HUB_CACHE"] = MODEL_CACHE_PATH
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Transformers would send its own progress reports when it finds the same variables.
    os.environ["DISABLE_KUBEFLOW_INTEGRATION"] = "TRUE"
    work.mkdir(parents=True, exist_ok=True)


def _refuse_local_files(run: RunSpec) -> None:
    """Refuse local paths in a pod. The CRD refuses them already.

    Raises:
        StageError: InvalidSpec, with the field.
    """
    spec = run.spec
    named = {
        "spec.baseModel.id": spec.base_model.id,
        "spec.baseModel.adapter.id": spec.base_model.adapter.id if spec.base_model.adapter else "",
        "spec.dataset.uri": spec.dataset.uri,
        "spec.dataset.evaluation.uri": spec.dataset.evaluation.uri,
        "spec.dataset.validation.uri": spec.dataset.validation.uri if spec.dataset.validation else "",
        "spec.dataset.replay.uri": spec.dataset.replay.uri if spec.dataset.replay else "",
        **{f"spec.evaluation.suites[{suite.name}].uri": suite.uri for suite in spec.evaluation.suites},
        "spec.workspace.uri": spec.workspace.uri,
        "spec.publish.repository": spec.publish.repository,
    }
    local = [field for field, uri in named.items() if is_local(uri)]
    if local and not run.local:
        raise StageError(Reason.INVALID_SPEC, f"{local[0]} is a local path, which only `tunemill run` supports")


def _check_addresses(run: RunSpec) -> None:
    """Refuse endpoints at a node's metadata service, and block connections of this process to one.

    Raises:
        StageError: InvalidSpec, with the field.
    """
    addresses.guard()
    spec = run.spec
    addresses.check(spec.hub.endpoint, "spec.hub.endpoint")
    addresses.check(spec.dataset.endpoint, "spec.dataset.endpoint")
    addresses.check(spec.workspace.endpoint, "spec.workspace.endpoint")
    if spec.tracking and spec.tracking.mlflow:
        addresses.check(spec.tracking.mlflow.uri, "spec.tracking.mlflow.uri")
    if spec.tracking and spec.tracking.wandb:
        addresses.check(spec.tracking.wandb.endpoint, "spec.tracking.wandb.endpoint")


def _configure_trust(work: Path) -> None:
    bundle = os.environ.get(ENV_CA_BUNDLE, "")
    if not bundle:
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
        trust.trust(Path(bundle), work)
    except (OSError, ValueError) as error:
        raise StageError(
            Reason.INVALID_SPEC, f"cannot use the CA certificates in {bundle} (${ENV_CA_BUNDLE}): {error}"
        ) from error
