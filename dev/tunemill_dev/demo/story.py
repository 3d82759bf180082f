"""The steps of the demo."""

import json
import shutil
import time
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.status import EvaluationFacts, FineTuneStatus, Phase, PublishedFacts

from tunemill_dev.background import in_own_process
from tunemill_dev.cluster.console import step
from tunemill_dev.demo.answers import answers
from tunemill_dev.demo.results import stages_run, summary
from tunemill_dev.demo.view import RunView
from tunemill_dev.testbed import ENDED, REPOSITORY_ROOT, FineTune, NotReachedError, Testbed, sample, status_line
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base

OUTPUT = REPOSITORY_ROOT / "build" / "demo"
ROWS, OFFERED, QUESTIONS = 900, 2, 3
RUN_SECONDS = 900.0


class Demo:
    """The demo: set up what is missing, run the sample, show the results, and show that an edit reuses outputs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._manifest = sample("demo")
        self._spec = FineTuneSpec.model_validate(self._manifest["spec"])
        self._second_repository = f"{self._spec.publish.repository}-v2"

    def run(self, place: AbstractContextManager[Testbed]) -> None:
        """Run the demo.

        Raises:
            NotReachedError: the run did not publish a model.
            ClusterError, CommandError: the environment is not usable.
        """
        base = in_own_process(cached_base)
        with place as testbed:
            with step("operator installed"):
                testbed.install_manifest()
            finetune = self._make_ready(testbed, base)
            status = self._run(finetune)
            self._ask(testbed, _published(status))
            self._publish_again(finetune, status)

    def _make_ready(self, testbed: Testbed, base: "Future[Path]") -> FineTune:
        """Remove the results of an earlier demo, so that this one trains, and upload the model and the data."""
        metadata = self._manifest["metadata"]
        finetune = FineTune(testbed.kubectl, metadata["name"], metadata["namespace"])
        with step("namespace and secrets"):
            testbed.make_namespace(finetune.namespace)
            finetune.delete()
        with step("base model on the Hub"):
            for repository in (self._spec.publish.repository, self._second_repository):
                testbed.hub.delete(repository)
            testbed.hub.put_model(self._spec.base_model.id, base.result())
        with step(f"{ROWS} rows in the bucket"):
            testbed.store.make_empty(self._spec.dataset.uri.removeprefix("s3://").split("/")[0])
            testbed.store.put_rows(self._spec.dataset.uri, rows(ROWS, offered=OFFERED))
        return finetune

    def _run(self, finetune: FineTune) -> FineTuneStatus:
        self._say("\n[bold]kubectl apply -f crds/samples/demo.yaml[/]")
        setup_seconds = time.monotonic() - self._started
        finetune.kubectl.apply(self._manifest)
        status = self._follow(finetune, FineTuneStatus())
        seconds = time.monotonic() - self._started
        _write("summary.json", summary(FineTuneStatus(), status, setup_seconds, seconds))
        published = _published(status)
        if status.evaluation:
            self._console.print(_scores(status.evaluation))
        self._say(f"The adapter is at {published.url}")
        self._say(f"[dim]{seconds:.1f} s so far, {setup_seconds:.1f} s of them for setup[/]")
        return status

    def _ask(self, testbed: Testbed, published: PublishedFacts) -> None:
        self._say("\n[bold]The model, downloaded from the Hub, answers new requests[/]")
        cache = OUTPUT / "hub-cache"
        shutil.rmtree(cache, ignore_errors=True)
        answered = in_own_process(
            answers, testbed.hub, published.repository, published.revision, QUESTIONS, OFFERED, cache
        )
        for answer in answered.result():
            mark = "[green]✓[/]" if answer.right else "[red]✗[/]"
            self._say(f"{mark} {escape(answer.question)}  →  {escape(answer.reply)}")

    def _publish_again(self, finetune: FineTune, before: FineTuneStatus) -> None:
        self._say("\n[bold]No stage runs twice for the same inputs[/]")
        self._say(f"spec.publish.repository becomes {self._second_repository}")
        edited = time.monotonic()
        finetune.edit({"publish": {"repository": self._second_repository}})
        status = self._follow(finetune, before)
        _write("republish.json", summary(before, status, 0.0, time.monotonic() - edited))
        ran = [name for name, times in stages_run(before, status).items() if times]
        self._say(f"The adapter is also at {_published(status).url}. Stages that ran: {', '.join(ran) or 'none'}")

    def _follow(self, finetune: FineTune, before: FineTuneStatus) -> FineTuneStatus:
        with RunView(self._console, before) as view:
            return finetune.follow(lambda status: status.phase in ENDED, RUN_SECONDS, view.show)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _published(status: FineTuneStatus) -> PublishedFacts:
    if status.phase != Phase.SUCCEEDED or status.published is None:
        raise NotReachedError(f"The run did not publish a model: {status_line(status)}")
    return status.published


def _scores(evaluation: EvaluationFacts) -> Table:
    table = Table(title=f"\non {evaluation.rows} held-out rows", title_justify="left")
    table.add_column("")
    for column in ("base", "tuned", "gain"):
        table.add_column(column, justify="right")
    for metric in evaluation.metrics:
        gain = f"{float(metric.tuned) - float(metric.base):+.2f}" if metric.base and metric.tuned else ""
        table.add_row(metric.name.replace("_", " "), *(_short(value) for value in (metric.base, metric.tuned)), gain)
    return table


def _short(share: str) -> str:
    return f"{float(share):.2f}" if share else "-"


def _write(name: str, content: dict[str, Any]) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / name).write_text(json.dumps(content, indent=2) + "\n")
