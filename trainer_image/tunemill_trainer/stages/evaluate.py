"""Evaluate: base and tuned model reply to the same held-out cases and suites, and the replies are scored.

The published model replies, too, if a gate compares the new model with it, and so does the adapter from which training
started. All models decode greedily with the same limits. With several ranks, each one generates the replies to its
share of the prompts. The base model gets the same text through its own tokenizer: with the extended vocabulary, it
would see token ids that it was not trained on, and score worse than it is.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tunemill_api import keys
from tunemill_api.evaluation import Judge, Suite
from tunemill_api.failures import Reason
from tunemill_api.finetune import Quantization
from tunemill_api.stage_report import Stage
from tunemill_api.status import EvaluationFacts, Rival, TrainedFacts

from tunemill_trainer.chat.tokenizer import Tokenizer, load
from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.comparison import compare, sample
from tunemill_trainer.judge.generate import Decoding
from tunemill_trainer.judge.metrics import Reply
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.report import CASES_FILE, REPORT_FILE, SUITE_CASES_FILE, Settings
from tunemill_trainer.judge.suites import Outcome, SuiteComparison
from tunemill_trainer.learn import curve, devices, merging, models
from tunemill_trainer.learn.answer_loss import summed_loss
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.models import ModelLoader
from tunemill_trainer.learn.passes import answer_row
from tunemill_trainer.prepared import TRAIN_FILE, Case, Prepared, Tokens
from tunemill_trainer.process import tracing
from tunemill_trainer.release.page import PAGE_FILE, PageFacts, page
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.replies import ReplyProgress, as_replies, decoding_of, reply_ids, texts
from tunemill_trainer.stages.stage_inputs import committed_by_first, fetch_prepared
from tunemill_trainer.storage.hub import Hub
from tunemill_trainer.storage.references import BASE_REPLIES, SUITES
from tunemill_trainer.tracking.chosen import trackers_of
from tunemill_trainer.tracking.trackers import Trackers

_PUBLISHED_PREPARED, _PUBLISHED_TRAINED = "published-prepared", "published-trained"
"""Folders with the outputs of the published model."""
_REPLIES_FILE, _LOSS_FILE = "replies.jsonl", "loss.json"
"""The base model's stored results: one of the two files."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _CaseSet:
    """Cases on which the models are compared.

    Attributes:
        key: the key of their rows in the workspace.
        cases: the cases.
        decoding: the settings of generation.
        suite: the suite; None for the held-out rows.
    """

    key: str
    cases: list[Case]
    decoding: Decoding
    suite: Suite | None = None

    @property
    def prompts(self) -> list[Sequence[int]]:
        """The prompt of each case in the tuned model's tokens."""
        return [case.prompt_ids for case in self.cases]


@dataclass(frozen=True)
class _Inputs:
    """What all models are evaluated with.

    Attributes:
        context: of the stage.
        hub: the Hub with the token for reading.
        device: where the models run.
        dtype: the number format of their weights and activations.
        prepared: the output of prepare.
        trained: the facts that train reports.
        base_folder: the folder of the base model.
        tokens: the changes of the vocabulary.
        tokenizer: the tokenizer of the tuned model.
        held_out: the held-out cases.
        suites: the cases of the suites.
        start: the weights of the adapter from which training started; None for the base model.
    """

    context: StageContext
    hub: Hub
    device: Device
    dtype: torch.dtype
    prepared: Prepared
    trained: TrainedFacts
    base_folder: Path
    tokens: Tokens
    tokenizer: Tokenizer
    held_out: _CaseSet
    suites: list[_CaseSet]
    start: Path | None

    @property
    def quantization(self) -> Quantization:
        """The quantization of the base model."""
        return self.context.spec.base_model.quantization

    @property
    def reply_format(self) -> ReplyFormat:
        """The format in which the tuned model writes calls."""
        return ReplyFormat(self.tokens.call_format)


@dataclass(frozen=True)
class _Outcomes:
    """The results of all models.

    Attributes:
        base: the results of the base model on the held-out cases, and on those of each suite.
        tuned: the same of the tuned model.
        adapter: whether the adapter was merged for decoding, and why or why not.
        published: the replies of the published model to the held-out cases, with its call format; None when there is
            none to compare with.
        start: of the adapter from which training started; None when it started from the base model.
    """

    base: list[Outcome]
    tuned: list[Outcome]
    adapter: str
    published: tuple[list[Reply], ReplyFormat] | None
    start: list[Reply] | None


def run(context: StageContext) -> EvaluationFacts:
    """Evaluate the model of `context.train_key` and commit the report.

    With several ranks, only rank 0 commits, and the others return when it has.

    Raises:
        StageError: StageOutputMissing, CudaUnavailable, CudaOutOfMemory, Interrupted, PeerLost; what Hub and workspace
            raise.
    """
    with trackers_of(context, last=True) as trackers:
        inputs = _load(context)
        outcomes = _generate_all(inputs)
        return committed_by_first(
            context, Stage.EVALUATE, context.evaluate_key, EvaluationFacts, lambda: _commit(inputs, outcomes, trackers)
        )


def _load(context: StageContext) -> _Inputs:
    """Choose the device, download what the models need, once per node, and meet the other ranks."""
    spec, ranks = context.spec, context.ranks
    device = devices.choose(spec.compute.gpus, ranks.place.local_index)
    devices.dtype(spec.training.precision, device)  # fails before anything is downloaded
    ranks.connect(f"{Stage.EVALUATE}/{context.evaluate_key}")
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-read"))
    downloaded = ranks.once_per_node("inputs", lambda: _download(context, hub))
    prepared = Prepared(context.folder("prepared"))
    tokens = prepared.tokens()
    base_folder = Path(str(downloaded["base"]))
    ranks.meet(device.kind)
    return _Inputs(
        context=context,
        hub=hub,
        device=device,
        dtype=devices.dtype(spec.training.precision, device, models.model_type(base_folder)),
        prepared=prepared,
        trained=TrainedFacts.model_validate(downloaded["trained"]),
        base_folder=base_folder,
        tokens=tokens,
        tokenizer=load(prepared.tokenizer_path),
        held_out=_case_set(context, context.prepared.key, prepared, tokens),
        suites=[
            _case_set(context, key, Prepared(context.folder(_folder_of(suite))), tokens, suite)
            for suite, key in _suites(context)
        ],
        start=Path(str(downloaded["start"])) if downloaded["start"] else None,
    )


def _case_set(context: StageContext, key: str, rows: Prepared, tokens: Tokens, suite: Suite | None = None) -> _CaseSet:
    """Return the cases that are evaluated. The longest answer limits the replies."""
    settings = context.spec.evaluation
    cases = sample(rows.cases(), settings.max_rows)
    answers = [case.answer_tokens for case in cases]
    return _CaseSet(key, cases, decoding_of(answers, tokens, context.run.memory_kills, settings.max_new_tokens), suite)


def _suites(context: StageContext) -> list[tuple[Suite, str]]:
    """Return the suites of the spec with the keys of their rows.

    Raises:
        StageError: StageOutputMissing, when prepare was run without one of them.
    """
    known = {facts.name: facts.key for facts in context.prepared.suites}
    for suite in context.spec.evaluation.suites:
        if suite.name not in known:
            raise StageError(
                Reason.STAGE_OUTPUT_MISSING, f"expected the suite {suite.name} in the results of prepare, found none"
            )
    return [(suite, known[suite.name]) for suite in context.spec.evaluation.suites]


def _folder_of(suite: Suite) -> str:
    return f"suites-{suite.name}"


def _download(context: StageContext, hub: Hub) -> dict[str, Any]:
    """Download the outputs of the earlier stages and the base model.

    Returns:
        The folder of the base model, the file of the start adapter's weights or None, and the facts of train.
    """
    prepared = fetch_prepared(context, without={TRAIN_FILE})
    trained = context.workspace.fetch(Stage.TRAIN, context.train_key, context.folder("trained"))
    for suite, key in _suites(context):
        context.workspace.fetch(SUITES, key, context.folder(_folder_of(suite)))
    base_folder = models.fetch_base(hub, prepared.base_model(), context.model_cache)
    start = models.fetch_adapter(hub, prepared.adapter(), context.model_cache)
    return {"base": str(base_folder), "start": start and str(start), "trained": trained.facts}


def _generate_all(inputs: _Inputs) -> _Outcomes:
    """Generate the replies of all models and measure losses, one model in memory after the other."""
    context, sets = inputs.context, [inputs.held_out, *inputs.suites]
    stored = context.ranks.decided_by_first(lambda: [_stored_of_base(context, each.key) for each in sets])
    waiting = [each for each, outcome in zip(sets, stored, strict=True) if outcome is None]
    others = _has_published(context) + (inputs.start is not None)
    total = sum(len(each.cases) for each in (*waiting, *sets)) + others * len(inputs.held_out.cases)
    progress = ReplyProgress(context, total)
    with devices.device_errors(inputs.device, "evaluating", devices.memory_remedy(context.spec)):
        model = ModelLoader(inputs.base_folder, inputs.device, inputs.dtype, inputs.quantization)
        computed = _outcomes_of_base(inputs, waiting, model, progress) if waiting else {}
        load_tuned = partial(model.tuned, context.folder("trained") / "adapter", inputs.tokens)
        tuned, adapter = _outcomes_of(inputs, load_tuned, sets, progress)
        start = None
        if inputs.start is not None:
            load_start = partial(model.continued, inputs.start, context.spec.adapter, inputs.tokens)
            (outcome,), _ = _outcomes_of(inputs, load_start, [inputs.held_out], progress)
            start = [*outcome.replies]
        model.release()  # there may be no memory for a second model
        published = _published_replies(inputs, progress)
    base = [outcome or computed[each.key] for each, outcome in zip(sets, stored, strict=True)]
    return _Outcomes(base, tuned, adapter, published, start)


def _outcomes_of_base(
    inputs: _Inputs, sets: Sequence[_CaseSet], model: ModelLoader, progress: ReplyProgress
) -> dict[str, Outcome]:
    """Return the base model's results by the keys of the rows, and store them for later evaluations."""
    tokenizer = load(inputs.base_folder) if inputs.tokens.added else inputs.tokenizer

    def in_own_tokens(sequences: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        if not inputs.tokens.added:
            return sequences
        own: Sequence[Sequence[int]] = tokenizer(texts(inputs.tokenizer, sequences), add_special_tokens=False)[
            "input_ids"
        ]
        return own

    found = {}
    for each in sets:
        prompts, answers = in_own_tokens(each.prompts), in_own_tokens([case.answer_ids for case in each.cases])
        found[each.key] = _outcome(model.base(), tokenizer, each, prompts, answers, progress)
        if inputs.context.ranks.first:
            _store_of_base(inputs.context, each, found[each.key])
    return found


def _outcomes_of(
    inputs: _Inputs, load: Callable[[], Any], sets: Sequence[_CaseSet], progress: ReplyProgress
) -> tuple[list[Outcome], str]:
    """Return the results of a model with the tuned model's vocabulary, and whether its adapter was merged."""
    samples = [(*case.prompt_ids, *case.answer_ids) for case in inputs.held_out.cases]
    loaded, adapter = _for_decoding(load, samples, inputs.quantization)
    outcomes = [
        _outcome(loaded, inputs.tokenizer, each, each.prompts, [case.answer_ids for case in each.cases], progress)
        for each in sets
    ]
    return outcomes, adapter


def _outcome(
    model: Any,  # noqa: ANN401 - transformers ships no types
    tokenizer: Tokenizer,
    cases: _CaseSet,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    progress: ReplyProgress,
) -> Outcome:
    """Return the replies of a model, or its loss on the expected answers.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        cases: the cases.
        prompts: their prompts in the model's tokens.
        answers: their expected answers in the model's tokens.
        progress: counts the cases.
    """
    if cases.suite is None or cases.suite.judge is not Judge.LIKELIHOOD:
        return Outcome(tuple(_generate(model, tokenizer, prompts, cases.decoding, progress)))
    rows = [answer_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    with tracing.step("measure loss"):
        loss = summed_loss(
            model,
            rows,
            progress.ranks,
            memory_kills=progress.memory_kills,
            check_stop=progress.check_stop,
            on_progress=progress.of_rank(len(rows)),
        )
    progress.next_model(len(rows))
    # The same number of tokens for both models, also if the base model splits the answers into others.
    return Outcome(loss=loss / sum(case.answer_tokens for case in cases.cases))


def _for_decoding(
    load: Callable[[], Any], samples: Sequence[Sequence[int]], quantization: Quantization
) -> tuple[Any, str]:
    """Load a tuned model, and merge its adapter if the merged model is accurate enough.

    Args:
        load: loads the model with its adapter.
        samples: conversations in the tuned model's tokens, to compare the merged model on.
        quantization: of the base model.

    Returns:
        The model, and whether the adapter was merged and why or why not.
    """
    return merging.for_decoding(load, samples, quantised=quantization is not Quantization.NONE)


def _has_published(context: StageContext) -> bool:
    return context.run.rival is not None and context.run.rival.train != ""


def _published_replies(inputs: _Inputs, progress: ReplyProgress) -> tuple[list[Reply], ReplyFormat] | None:
    """Return the published model's replies and its call format; None if there is none, or its output was deleted."""
    context = inputs.context
    rival = context.run.rival
    if rival is None or not rival.train:
        return None
    found = context.ranks.once_per_node("published", lambda: _download_published(inputs, rival))
    if "" in context.ranks.gather(found):
        return None
    base_folder, trained_folder = Path(found), context.folder(_PUBLISHED_TRAINED)
    prepared = Prepared(context.folder(_PUBLISHED_PREPARED))
    tokens, tokenizer = prepared.tokens(), load(prepared.tokenizer_path)
    prompts = tokenizer(texts(inputs.tokenizer, inputs.held_out.prompts), add_special_tokens=False)["input_ids"]
    model = ModelLoader(base_folder, inputs.device, inputs.dtype, inputs.quantization)
    load_published = partial(model.tuned, trained_folder / "adapter", tokens)
    tuned, _ = _for_decoding(load_published, prompts, inputs.quantization)
    decoding = replace(inputs.held_out.decoding, stop_token_ids=tokens.stop_token_ids, pad_token_id=tokens.pad_token_id)
    return _generate(tuned, tokenizer, prompts, decoding, progress), ReplyFormat(tokens.call_format)


def _download_published(inputs: _Inputs, rival: Rival) -> str:
    """Download the published model; return the folder of its base model, or an empty string if it was deleted."""
    context, workspace = inputs.context, inputs.context.workspace
    folder = context.folder(_PUBLISHED_PREPARED)
    try:
        workspace.fetch(Stage.PREPARE, rival.prepare, folder, without={TRAIN_FILE})
        workspace.fetch(Stage.TRAIN, rival.train, context.folder(_PUBLISHED_TRAINED))
    except StageError as error:
        if error.reason is not Reason.STAGE_OUTPUT_MISSING:
            raise
        _log.warning("comparing with the base model only, not with the published model: %s", error)
        return ""
    return str(models.fetch_base(inputs.hub, Prepared(folder).base_model(), context.model_cache))


def _commit(inputs: _Inputs, outcomes: _Outcomes, trackers: Trackers) -> EvaluationFacts:
    """Score the replies, write report.json, the cases and report.html, and commit and log them."""
    context, folder, cases = inputs.context, inputs.context.folder("evaluation"), inputs.held_out.cases
    base, tuned = [*outcomes.base[0].replies], [*outcomes.tuned[0].replies]
    comparison = compare(cases, base, tuned, inputs.reply_format)
    suites = [
        SuiteComparison(each.suite, tuple(each.cases), of_base, of_tuned, inputs.reply_format)
        for each, of_base, of_tuned in zip(inputs.suites, outcomes.base[1:], outcomes.tuned[1:], strict=True)
        if each.suite is not None
    ]
    facts_of_suites = [suite.facts() for suite in suites]
    settings = Settings(
        max_rows=context.spec.evaluation.max_rows,
        max_new_tokens=inputs.held_out.decoding.max_new_tokens,
        precision=str(inputs.dtype).removeprefix("torch."),
        device=inputs.device.name,
        adapter=outcomes.adapter,
        reply_format=inputs.reply_format.value,
    )
    report = comparison.report(settings, inputs.prepared.trained_tools()).model_copy(update={"suites": facts_of_suites})
    (folder / REPORT_FILE).write_text(report.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")
    _write_lines(folder / CASES_FILE, comparison.lines())
    if suites:
        _write_lines(folder / SUITE_CASES_FILE, chain.from_iterable(suite.lines() for suite in suites))
    shown = PageFacts(
        run=context.run,
        base=inputs.prepared.base_model(),
        tokens=inputs.tokens,
        prepared=context.prepared,
        trained=inputs.trained,
        history=curve.read_record(context.folder("trained")),
        report=report,
    )
    (folder / PAGE_FILE).write_text(page(shown), encoding="utf-8")
    facts = comparison.facts(f"{context.workspace.uri(Stage.EVALUATE, context.evaluate_key)}/{REPORT_FILE}")
    facts = facts.model_copy(update={"suites": facts_of_suites})
    if outcomes.published is not None:
        facts = _with_column(facts, "published", compare(cases, base, *outcomes.published).facts(""))
    if outcomes.start is not None:
        facts = _with_column(facts, "adapter", compare(cases, base, outcomes.start, inputs.reply_format).facts(""))
    manifest = context.workspace.commit(Stage.EVALUATE, context.evaluate_key, folder, facts)
    trackers.log(_figures(facts), inputs.trained.steps)
    for name in (REPORT_FILE, PAGE_FILE):
        trackers.add_file(folder / name)
    return EvaluationFacts.model_validate(manifest.facts)


def _figures(facts: EvaluationFacts) -> dict[str, float]:
    """Return the metrics of all models for the trackers, for example `tuned/exact_match` and `tuned/suite/chat`."""
    figures = [
        (f"{model}/{metric.name}", value)
        for metric in facts.metrics
        for model, value in (
            ("base", metric.base),
            ("tuned", metric.tuned),
            ("published", metric.published),
            ("adapter", metric.adapter),
        )
    ]
    for suite in facts.suites:
        figures += [(f"base/suite/{suite.name}", suite.base), (f"tuned/suite/{suite.name}", suite.tuned)]
    return {name: float(value) for name, value in figures if value}


def _with_column(facts: EvaluationFacts, column: str, other: EvaluationFacts) -> EvaluationFacts:
    """Add another model's figures to the metrics.

    Args:
        facts: of base and tuned model.
        column: the field of MetricFacts.
        other: of the base model and the other model.
    """
    figures = {metric.name: metric.tuned for metric in other.metrics}
    metrics = [metric.model_copy(update={column: figures.get(metric.name, "")}) for metric in facts.metrics]
    return facts.model_copy(update={"metrics": metrics})


def _generate(
    model: Any,  # noqa: ANN401 - transformers ships no types
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    progress: ReplyProgress,
) -> list[Reply]:
    return as_replies(tokenizer, reply_ids(model, prompts, decoding, progress), decoding)


def _stored_of_base(context: StageContext, rows: str) -> Outcome | None:
    """Return the base model's results of an earlier evaluation, or None; `rows` is the key of the rows."""
    key = keys.base_evaluation_key(rows, context.spec)
    if context.workspace.manifest(BASE_REPLIES, key) is None:
        return None
    folder = context.folder(f"base-replies-{key}")
    context.workspace.fetch(BASE_REPLIES, key, folder)
    if (folder / _LOSS_FILE).exists():
        return Outcome(loss=json.loads((folder / _LOSS_FILE).read_text())["loss"])
    with (folder / _REPLIES_FILE).open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return Outcome(tuple(Reply(line["text"], line["finished"]) for line in lines))


def _store_of_base(context: StageContext, of: _CaseSet, outcome: Outcome) -> None:
    """Commit the base model's results, for later evaluations on the same cases."""
    key = keys.base_evaluation_key(of.key, context.spec)
    folder = context.folder(f"base-replies-{key}")
    if outcome.replies:
        lines = ({"id": case.id, **asdict(reply)} for case, reply in zip(of.cases, outcome.replies, strict=True))
        _write_lines(folder / _REPLIES_FILE, lines)
    else:
        (folder / _LOSS_FILE).write_text(json.dumps({"loss": outcome.loss}), encoding="utf-8")
    facts = EvaluationFacts(rows=len({case.row for case in of.cases}), metrics=[])
    context.workspace.commit(BASE_REPLIES, key, folder, facts)


def _write_lines(path: Path, lines: Iterable[JsonObject]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
