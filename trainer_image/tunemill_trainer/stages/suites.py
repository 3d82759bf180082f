"""Prepares the rows of spec.evaluation.suites.

Each suite is an output of its own in the workspace, so that a changed suite is evaluated again and trains nothing. Its
rows never change what is trained: those that have the request of a training or validation row are left out of the
suite, and not out of the training rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunemill_api import keys
from tunemill_api.evaluation import Judge, Suite
from tunemill_api.failures import Reason
from tunemill_api.status import SuiteDataFacts

from tunemill_trainer.chat import examples
from tunemill_trainer.chat.examples import Examples, RowEncoder
from tunemill_trainer.chat.templates import Choice
from tunemill_trainer.data import dataset as data
from tunemill_trainer.data.dataset import Dataset, ReadOptions, Requests, Split
from tunemill_trainer.data.files import Data
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.patterns import SuitePattern
from tunemill_trainer.prepared import Prepared, PreparedWriter
from tunemill_trainer.process import cpus, tracing
from tunemill_trainer.stages import row_reports
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.storage.references import SUITES


@dataclass(frozen=True)
class PreparedSuite:
    """A suite and its rows.

    Attributes:
        suite: the suite.
        data: its files.
        facts: what the status has about it. Without rows, only name and key are known.
    """

    suite: Suite
    data: Data
    facts: SuiteDataFacts

    @property
    def exists(self) -> bool:
        """Whether its rows are in the workspace."""
        return self.facts.rows > 0


def find(context: StageContext, prepared: str, fetched: Sequence[tuple[Suite, Data]]) -> list[PreparedSuite]:
    """Return the suites, with the facts of those whose rows are in the workspace; `prepared` is the key of prepare."""
    found = []
    for suite, files in fetched:
        key = keys.suite_key(prepared, context.spec, suite, files.digest)
        manifest = context.workspace.manifest(SUITES, key)
        facts = {"rows": 0, "key": key} if manifest is None else manifest.facts
        # Suites with the same rows and different names share an output.
        found.append(PreparedSuite(suite, files, SuiteDataFacts.model_validate({**facts, "name": suite.name})))
    return found


@tracing.step("prepare suites")
def make(
    context: StageContext, missing: Sequence[PreparedSuite], dataset: Dataset, choice: Choice, how: ReadOptions
) -> dict[str, PreparedSuite]:
    """Read, check and encode the rows of suites, and commit them. Return the suites by name.

    Args:
        context: of prepare.
        missing: suites whose rows are not in the workspace.
        dataset: the rows of spec.dataset.
        choice: the chat template.
        how: the reading options of spec.dataset.

    Raises:
        StageError: DatasetEmpty, DatasetFormatUnknown, DatasetMalformed, DatasetInvalidRows, DatasetTooSmall or
            InvalidSpec.
    """
    made = {}
    with Requests(dataset, set(Split) - {Split.HELD_OUT}, context.stop.check) as learnt:
        for each in missing:
            folder = context.folder(f"prepare/suites-{each.suite.name}")
            with row_reports.about(f"spec.evaluation.suites[{each.suite.name}]"):
                facts = _make(context, each, learnt, choice, how, folder)
            made[each.suite.name] = replace(each, facts=facts)
    return made


def _make(
    context: StageContext,
    each: PreparedSuite,
    learnt: Requests,
    choice: Choice,
    how: ReadOptions,
    folder: Path,
) -> SuiteDataFacts:
    suite, spec, output = each.suite, context.spec, folder / "output"
    # Chat is judged as it is in the data, without the tools of spec.tools.
    contract = how.contract if suite.judge is Judge.CALLS else ()
    options = replace(how, format=suite.format, contract=contract, keep_unsupervised=False)
    encoder = RowEncoder(choice, spec.training.max_length)
    try:
        dataset = data.read_others(options, each.data, folder / "rows.jsonl", learnt)
        with PreparedWriter(output) as writer:
            allowed = float(spec.dataset.max_invalid_fraction)
            written = examples.write_usable(
                dataset, encoder, writer, allowed, workers=cpus.available(), tick=lambda _done: context.stop.check()
            )
            writer.write_report(
                row_reports.of(dataset)
                | {
                    "evaluation": written.held_out.to_json() | {"cases": written.cases},
                    "findings": dataset.findings.to_json(),
                }
            )
    except data.TooManyInvalidError as error:
        raise row_reports.with_report(context, SUITES, each.facts.key, error) from error
    _refuse_unusable(suite, dataset, written)
    if suite.judge is Judge.PATTERN:
        pattern = SuitePattern(suite)
        for case in Prepared(output).cases():
            pattern.is_in(case.gold.content)  # a pattern that needs too much time is refused before the training
    facts = each.facts.model_copy(
        update={
            "rows": written.held_out.rows,
            "trained_rows": dataset.leaked,
            "invalid_rows": dataset.invalid,
            "overlong_rows": written.held_out.overlong,
        }
    )
    context.workspace.commit(SUITES, facts.key, output, facts)
    return facts


def _refuse_unusable(suite: Suite, dataset: Dataset, written: Examples) -> None:
    if not written.held_out.rows:
        raise StageError(
            Reason.DATASET_TOO_SMALL,
            f"expected rows that can be judged in {suite.uri}, found none in {dataset.rows}: {dataset.leaked} have the "
            f"prompt of a training row, {written.held_out.overlong} are longer than spec.training.maxLength, "
            f"{dataset.unsupervised} have no assistant turn, {dataset.invalid} are invalid",
        )
    if suite.judge is Judge.CALLS and not dataset.offers:
        raise StageError(
            Reason.DATASET_TOO_SMALL,
            f"expected rows with tools in {suite.uri} for the judge Calls, found none in {dataset.rows}",
            f"Add rows with tools, or set the judge of the suite {suite.name} to Likelihood or Pattern.",
        )
