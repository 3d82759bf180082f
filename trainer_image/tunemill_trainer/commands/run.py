"""`tunemill run`: runs all four stages on one machine, from the manifest that `kubectl apply` takes.

Each stage is a separate process, as in the cluster: it frees its memory when it ends, and libraries that read their
settings at import read those of this run.

tunemill run finetune.yaml
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tunemill_api.failures import FAILURES, ExitCode, Reason
from tunemill_api.local_files import is_local, local_path
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, StageReport

from tunemill_trainer.commands import manifest, output
from tunemill_trainer.commands.command import INTERRUPTED_EXIT_CODE, Command, JsonField, JsonOutput, Task
from tunemill_trainer.commands.stages import ENV_WORK
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import bars, console
from tunemill_trainer.stages.config_maps import ENV_CONFIG_DIRECTORY


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument(
        "manifest",
        metavar="FILE",
        type=Path,
        help="a YAML file with a FunctionCallFineTune and the ConfigMaps that it refers to; - for standard input",
    )
    command.add_argument(
        "--work",
        metavar="FOLDER",
        type=Path,
        help=f"folder for temporary files and downloaded models (default: ${ENV_WORK}, or tunemill/work in "
        "$XDG_CACHE_HOME or ~/.cache)",
    )
    output.add_json_option(command, "print JSON instead of tables; the log goes to standard error")


def main(options: argparse.Namespace) -> int:
    """Run the command; return the exit code of `run`."""
    return run(options.manifest, options.work or default_work(), as_json=options.json)


def default_work() -> Path:
    """Return the folder to work in when --work is not given."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(ENV_WORK) or cache / "tunemill" / "work")


def run(path: Path, work: Path, *, as_json: bool = False) -> int:
    """Run the stages whose outputs do not exist yet, print the results, and return the exit code of the last stage.

    The exit code is that of a failed gate also when a draft was pushed: a draft is no release.
    """
    try:
        loaded = manifest.load(path)
    except StageError as error:
        return output.fail("run", f"{error.reason}: {error.message}. {error.failure.remedy}", error.exit_code)
    stages, work = loaded.run, work / loaded.run.name
    _clear(work)
    loaded.write_config(work / "config")
    reports: list[StageReport] = []
    for stage in Stage:
        ended = _run_stage(stage, stages, work, log_to_stderr=as_json)
        if ended.interrupted:
            message = "interrupted; the same command continues from the last checkpoint"
            return output.fail("run", message, INTERRUPTED_EXIT_CODE)
        if ended.report is None:
            message = f"{stage} exited without a report (exit code {ended.code}). See the log above."
            return output.fail("run", message, ended.code)
        reports.append(ended.report)
        if ended.report.failure is not None:
            _show(reports, as_json=as_json)
            return ended.code
        if ended.report.prepared is not None:
            stages = stages.model_copy(update={"prepared": ended.report.prepared})
    _show(reports, as_json=as_json)
    draft = any(report.published and report.published.draft for report in reports)
    return FAILURES[Reason.GATE_NOT_PASSED].exit_code if draft else ExitCode.DONE


def _show(reports: list[StageReport], *, as_json: bool) -> None:
    if as_json:
        output.show_json({"stages": [report.model_dump(mode="json", by_alias=True) for report in reports]})
    else:
        console.show(summary(reports))


def summary(reports: list[StageReport]) -> str:
    """Return the results as text: what each finished stage did, the metrics of both models, where the model is."""
    done = [report for report in reports if report.failure is None]
    lines = ["", "STAGE      DID        KEY               SECONDS"]
    for report in done:
        seconds = (report.finished_at - report.started_at).total_seconds()
        did = "executed" if report.executed else "nothing"
        lines.append(f"{report.stage:<10} {did:<10} {report.key:<17} {seconds:7.1f}")
    adapter = ""
    for report in done:
        if report.evaluation is not None:
            metrics = report.evaluation.metrics
            # Only with spec.baseModel.adapter.
            compared = any(metric.adapter for metric in metrics)
            lines += ["", f"METRIC                  BASE  {'ADAPTER  ' if compared else ''}  TUNED   CASES"]
            for metric in metrics:
                other = f"{metric.adapter or '-':>7}  " if compared else ""
                figures = f"{metric.base or '-':>6}  {other} {metric.tuned or '-':>6}  {metric.cases:>6}"
                lines.append(f"{metric.name:<22} {figures}")
            if report.evaluation.suites:
                lines += ["", "SUITE                             JUDGE           BASE     TUNED  DIFFERENCE   CASES"]
            lines += [
                f"{suite.name:<33} {suite.judge:<10} {suite.base:>9} {suite.tuned:>9} {suite.difference:>11}  "
                f"{suite.cases:>6}"
                for suite in report.evaluation.suites
            ]
        if report.trained is not None:
            adapter = report.trained.adapter
            if is_local(adapter):
                adapter = str(local_path(adapter))
        if report.published is not None:
            published = report.published
            where = published.url or f"{published.repository}@{published.revision}"
            label = "draft, because a gate is not passed:" if published.draft else "published "
            lines += ["", f"adapter    {adapter}", f"{label} {where}"]
            if published.serving and published.serving.command:
                lines += ["", "serve it with", published.serving.command]
    return "\n".join(lines)


def _clear(work: Path) -> None:
    """Remove the files of an earlier run, so that they do not mix with those of this one. Downloaded models stay."""
    work.mkdir(parents=True, exist_ok=True)
    for left in work.iterdir():
        if left.is_dir() and left.name != "hub":
            shutil.rmtree(left)


@dataclass(frozen=True)
class _Ended:
    """How a stage's process ended.

    Attributes:
        code: its exit code.
        report: None when it has written none.
        interrupted: whether Ctrl-C stopped it.
    """

    code: int
    report: StageReport | None
    interrupted: bool


def _run_stage(stage: Stage, spec: RunSpec, work: Path, *, log_to_stderr: bool) -> _Ended:
    run_spec, report = work / "run.json", work / "report.json"
    run_spec.write_text(spec.model_dump_json(by_alias=True), encoding="utf-8")
    report.unlink(missing_ok=True)
    arguments = ["--run-spec", str(run_spec), "--work", str(work), "--report", str(report)]
    environment = os.environ | {ENV_CONFIG_DIRECTORY: str(work / "config")}
    if bars.is_terminal():
        environment[bars.ENV_BAR] = "1"
    signals: list[int] = []
    # A terminal sends SIGINT to both processes. The stage inherits that it is ignored and gets one SIGTERM instead, so
    # that it stops in the same way at any time, also while it still imports its libraries.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "tunemill_trainer", stage, *arguments],
            env=environment,
            stdout=sys.__stderr__ if log_to_stderr else None,
        ) as process:

            def forward(number: int, _frame: FrameType | None) -> None:
                signals.append(number)
                process.send_signal(signal.SIGTERM)

            for number in before:
                signal.signal(number, forward)
            code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    found = StageReport.model_validate_json(report.read_text(encoding="utf-8")) if report.exists() else None
    done = found is not None and found.failure is None
    return _Ended(code, found, interrupted=signal.SIGINT in signals and not done)


COMMAND = Command(
    name="run",
    task=Task.TRAIN,
    summary="run all four stages on this machine: prepare, train, evaluate, publish",
    add_options=add_options,
    main=main,
    examples=("run finetune.yaml", "run finetune.yaml --work /scratch/tunemill --json > result.json"),
    exit_codes={
        ExitCode.SPEC_WRONG: "the manifest is wrong, or a gate is not passed",
        ExitCode.DATA_WRONG: "the data is wrong",
        ExitCode.INPUT_MISSING: "the data or the base model does not exist",
        ExitCode.SERVICE_UNAVAILABLE: "S3 or the Hub cannot be reached",
        ExitCode.NODE_BROKEN: "the GPU or the disk of this machine fails",
        ExitCode.INTERRUPTED: "stopped by SIGTERM; the same command continues",
        ExitCode.PERMISSION_DENIED: "S3 or the Hub refuses the credentials",
        ExitCode.CONFIGURATION: "the run does not fit this machine, or the training libraries are missing",
    },
    json=JsonOutput(
        "one object",
        (
            JsonField("stages[].stage", "string", "`prepare`, `train`, `evaluate` or `publish`; in this order."),
            JsonField(
                "stages[].key", "string", "The key of the output; empty when the stage failed before it was known."
            ),
            JsonField("stages[].executed", "boolean", "False when the output already existed."),
            JsonField("stages[].startedAt", "string", "RFC 3339."),
            JsonField("stages[].finishedAt", "string", "RFC 3339."),
            JsonField("stages[].prepared", "object or null", "The result of prepare, as `status.prepared`."),
            JsonField("stages[].trained", "object or null", "The result of train, as `status.trained`."),
            JsonField("stages[].evaluation", "object or null", "The result of evaluate, as `status.evaluation`."),
            JsonField("stages[].published", "object or null", "The result of publish, as `status.published`."),
            JsonField("stages[].failure", "object or null", "`reason`, `message` and `remedy` of a failed stage."),
        ),
    ),
    needs_training=True,
)
