"""Shows the progress of a run: a live table on a terminal, plain lines in a log."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from tunemill_api.status import FineTuneStatus, StageState, StageStatus

from tunemill_dev.demo.results import STAGES, stages_run

MARKS = {StageState.PENDING: "·", StageState.RUNNING: "▸", StageState.SUCCEEDED: "✓", StageState.FAILED: "✗"}
PLAIN_PERCENT = 20
"""In a log, a running stage gets a line for every 20 % of progress."""


@dataclass(frozen=True)
class StageLine:
    """The displayed state of a stage."""

    name: str
    state: StageState
    percent: int | None
    seconds: float | None
    text: str
    """The results, or the current loss and the remaining time."""


def stage_lines(before: FineTuneStatus, status: FineTuneStatus, now: datetime) -> list[StageLine]:
    """Return one line per stage, in order. Stages that were done before an edit, whose status is `before`, are kept."""
    known = {stage.name: stage for stage in status.stages}
    lines = [_line(known.get(name) or StageStatus(name=name, state=StageState.PENDING), status, now) for name in STAGES]
    kept = {name for name, times in stages_run(before, status).items() if not times} if before.stages else set()
    return [
        replace(line, seconds=None, text="kept") if line.state == StageState.SUCCEEDED and line.name in kept else line
        for line in lines
    ]


class RunView:
    """Shows every status that it receives, until the block ends."""

    def __init__(self, console: Console, before: FineTuneStatus) -> None:
        self._console = console
        self._before = before
        self._live = Live(console=console, auto_refresh=False)
        self._printed: dict[str, tuple[StageState, int]] = {}

    def __enter__(self) -> "RunView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, status: FineTuneStatus) -> None:
        """Show a status."""
        lines = stage_lines(self._before, status, datetime.now(UTC))
        if self._console.is_terminal:
            self._live.update(_table(lines, waiting_for(status)), refresh=True)
            return
        for line in lines:
            step = (line.state, (line.percent or 0) // PLAIN_PERCENT)
            if line.state != StageState.PENDING and self._printed.get(line.name) != step:
                self._printed[line.name] = step
                self._console.print(plain(line), highlight=False, soft_wrap=True)


def waiting_for(status: FineTuneStatus) -> str:
    """Return why the run waits, for example for an image pull; empty while a stage runs."""
    if any(stage.state == StageState.RUNNING and stage.started_at for stage in status.stages):
        return ""
    return next((each.message for each in status.conditions if each.type == "Reconciling"), "")


def plain(line: StageLine) -> str:
    """Return a line for a log."""
    percent = f"{line.percent:3d} %" if line.percent is not None and line.state == StageState.RUNNING else "     "
    seconds = f"{line.seconds:6.1f} s" if line.seconds is not None else " " * 8
    return f"{MARKS[line.state]} {line.name:<9}{percent} {seconds}  {line.text}".rstrip()


def _table(lines: list[StageLine], waiting: str) -> Table:
    table = Table.grid(padding=(0, 2))
    for line in lines:
        style = {StageState.PENDING: "dim", StageState.FAILED: "red"}.get(line.state, "")
        done = 100 if line.state == StageState.SUCCEEDED else line.percent or 0
        pulse = line.state == StageState.RUNNING and line.percent is None
        bar = ProgressBar(total=100, completed=done, width=24, pulse=pulse)
        percent = f"{done:3d} %" if line.state != StageState.PENDING else ""
        seconds = f"{line.seconds:.1f} s" if line.seconds is not None else ""
        table.add_row(f"{MARKS[line.state]} {line.name}", bar, percent, f"{seconds:>7}", line.text, style=style)
    table.add_row("", "", "", "", waiting, style="dim")
    return table


def _line(stage: StageStatus, status: FineTuneStatus, now: datetime) -> StageLine:
    seconds, percent, text = None, None, ""
    if stage.started_at:
        seconds = max(0.0, ((stage.finished_at or now) - stage.started_at).total_seconds()) + stage.earlier_seconds
    if stage.state == StageState.RUNNING and stage.started_at and status.trainer_status:
        percent = status.trainer_status.progress_percentage
        text = _present(status)
    elif stage.state == StageState.SUCCEEDED:
        text = _result(stage.name, status) + ("" if stage.executed else " (was there already)")
    elif stage.state == StageState.FAILED and status.failure:
        text = str(status.failure.reason)
    return StageLine(stage.name, stage.state, percent, seconds, text)


def _present(status: FineTuneStatus) -> str:
    progress = status.trainer_status
    if progress is None:
        return ""
    words = [f"loss {metric.value}" for metric in progress.metrics if metric.name == "loss"]
    if progress.estimated_remaining_seconds is not None:
        minutes, seconds = divmod(progress.estimated_remaining_seconds, 60)
        words.append(f"{minutes}:{seconds:02d} left")
    return ", ".join(words)


def _result(stage: str, status: FineTuneStatus) -> str:
    if stage == "prepare" and status.prepared:
        found = status.prepared.dataset
        text = f"{found.train_rows} training rows, {found.evaluation_rows} held out, {found.tools} tools"
        return text + (f", {status.prepared.added_tokens} tokens added" if status.prepared.added_tokens else "")
    if stage == "train" and status.trained:
        return f"{status.trained.steps} steps, loss {status.trained.first_loss} → {status.trained.loss}"
    if stage == "evaluate" and status.evaluation:
        match = next((metric for metric in status.evaluation.metrics if metric.name == "exact_match"), None)
        return f"exact match {match.base} → {match.tuned}" if match else ""
    if stage == "publish" and status.published:
        return f"{status.published.repository} at {status.published.revision[:8]}"
    return ""
