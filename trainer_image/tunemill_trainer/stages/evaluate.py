"""Evaluate: lets the base model and the tuned one answer the same held-out cases, and counts what they get right.

The published model answers them too, where the new one is to be better. All decode greedily with the same limits. Each
reads the same text through its own tokenizer: a base whose vocabulary was extended would otherwise meet tokens that it
has never seen, and look worse than it is.
"""

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tunemill_api import keys
from tunemill_api.failures import Reason
from tunemill_api.finetune import Quantization
from tunemill_api.stage_report import Stage
from tunemill_api.status import EvaluationFacts, TrainedFacts

from tunemill_trainer.chat.tokenizer import Tokenizer, load
from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.comparison import Comparison, compare, sample
from tunemill_trainer.judge.generate import Decoding, answer_limit, generate, usual_answer
from tunemill_trainer.judge.metrics import Reply
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.report import CASES_FILE, REPORT_FILE, Settings
from tunemill_trainer.learn import curve, devices, merging, models
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.models import OneModel
from tunemill_trainer.prepared import TRAIN_FILE, Case, Prepared, Tokens
from tunemill_trainer.process import tracing
from tunemill_trainer.release.page import PAGE_FILE, PageFacts, page
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.stage_inputs import fetch_prepared
from tunemill_trainer.storage.hub import Hub
from tunemill_trainer.storage.references import BASE_REPLIES

_log = logging.getLogger(__name__)


def run(context: StageContext) -> EvaluationFacts:
    """Judge the adapter of `context.train_key` and commit the judgement.

    Raises:
        StageError: StageOutputMissing, CudaUnavailable, CudaOutOfMemory, Interrupted; what Hub and workspace raise.
    """
    spec = context.spec
    device = devices.choose(spec.compute.gpus)
    devices.dtype(spec.training.precision, device)
    prepared = fetch_prepared(context, without={TRAIN_FILE})
    trained = context.workspace.fetch(Stage.TRAIN, context.train_key, context.folder("trained"))
    tokens, cases = prepared.tokens(), sample(prepared.cases(), spec.evaluation.max_rows)
    wanted = [case.answer_tokens for case in cases]
    limit = spec.evaluation.max_new_tokens or answer_limit(wanted)
    decoding = Decoding(
        tokens.stop_token_ids,
        tokens.pad_token_id,
        limit,
        min(limit, usual_answer(wanted)),
        0.5**context.run.memory_kills,
    )

    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-read"))
    base_folder = models.fetch_base(hub, prepared.base_model(), context.model_cache)
    dtype = devices.dtype(spec.training.precision, device, models.model_type(base_folder))
    tokenizer = load(prepared.tokenizer_path)
    base_replies = _kept_base_replies(context)
    models_asked = 1 + (base_replies is None) + _has_rival(context)
    meter = _Meter(context, models_asked * len(cases))
    prompts = [case.prompt_ids for case in cases]
    with devices.device_errors(device, "evaluating", devices.smaller(spec)):
        model = OneModel(base_folder, device, dtype, spec.base_model.quantization)
        if base_replies is None:
            base_tokenizer, base_prompts = _as_base_reads(prompts, tokens, tokenizer, base_folder)
            base_replies = _ask(model.base(), base_tokenizer, base_prompts, decoding, meter)
            _keep_base_replies(context, cases, base_replies)
        samples = [(*case.prompt_ids, *case.answer_ids) for case in cases]
        folder = context.folder("trained") / "adapter"
        tuned, merged = _tuned(model, tokens, folder, samples, spec.base_model.quantization)
        tuned_replies = _ask(tuned, tokenizer, prompts, decoding, meter)
        del tuned
        model.release()  # there may not be room for another one
        published = _ask_published(context, hub, _texts(tokenizer, prompts), device, dtype, decoding, meter)

    reply_format = ReplyFormat(tokens.call_format)
    comparison = compare(cases, base_replies, tuned_replies, reply_format)
    report = comparison.report(
        Settings(
            max_rows=spec.evaluation.max_rows,
            max_new_tokens=limit,
            precision=str(dtype).removeprefix("torch."),
            device=device.name,
            adapter=merged,
            reply_format=reply_format.value,
        ),
        prepared.trained_tools(),
    )
    shown = PageFacts(
        run=context.run,
        base=prepared.base_model(),
        tokens=tokens,
        prepared=context.prepared,
        trained=TrainedFacts.model_validate(trained.facts),
        history=curve.read_record(context.folder("trained")),
        report=report,
    )
    facts = comparison.facts(f"{context.workspace.uri(Stage.EVALUATE, context.evaluate_key)}/{REPORT_FILE}")
    if published is not None:
        facts = _with_published(facts, compare(cases, base_replies, *published).facts(""))
    return _commit(context, comparison, shown, facts)


def _commit(context: StageContext, comparison: Comparison, shown: PageFacts, facts: EvaluationFacts) -> EvaluationFacts:
    folder = context.folder("evaluation")
    report = shown.report.model_dump_json(by_alias=True, indent=2)
    (folder / REPORT_FILE).write_text(report + "\n", encoding="utf-8")
    _write_lines(folder / CASES_FILE, comparison.lines())
    (folder / PAGE_FILE).write_text(page(shown), encoding="utf-8")
    manifest = context.workspace.commit(Stage.EVALUATE, context.evaluate_key, folder, facts)
    return EvaluationFacts.model_validate(manifest.facts)


def _tuned(
    model: OneModel, tokens: Tokens, folder: Path, samples: Sequence[Sequence[int]], quantization: Quantization
) -> tuple[Any, str]:
    """Return the tuned model as it decodes best, and whether its adapter is merged.

    Args:
        model: the base model.
        tokens: what was added to the vocabulary.
        folder: what train left.
        samples: conversations in the tuned model's tokens.
        quantization: of the base model.
    """
    quantised = quantization is not Quantization.NONE
    return merging.for_decoding(partial(model.tuned, folder, tokens), samples, quantised=quantised)


def _has_rival(context: StageContext) -> bool:
    return context.run.rival is not None and context.run.rival.train != ""


def _ask_published(
    context: StageContext,
    hub: Hub,
    prompts: list[str],
    device: Device,
    dtype: torch.dtype,
    decoding: Decoding,
    meter: "_Meter",
) -> tuple[list[Reply], ReplyFormat] | None:
    """Return the replies of the published model to the same prompts; None when there is none, or it is gone."""
    rival, workspace = context.run.rival, context.workspace
    if rival is None or not rival.train:
        return None
    prepared = Prepared(context.folder("published-prepared"))
    try:
        workspace.fetch(Stage.PREPARE, rival.prepare, context.folder("published-prepared"), without={TRAIN_FILE})
        workspace.fetch(Stage.TRAIN, rival.train, context.folder("published-trained"))
    except StageError as error:
        if error.reason is not Reason.STAGE_OUTPUT_MISSING:
            raise
        _log.warning("the new model is compared with the base model alone: %s", error)
        return None
    tokens, tokenizer = prepared.tokens(), load(prepared.tokenizer_path)
    base_folder = models.fetch_base(hub, prepared.base_model(), context.model_cache)
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    quantization = context.spec.base_model.quantization
    model = OneModel(base_folder, device, dtype, quantization)
    published = context.folder("published-trained") / "adapter"
    tuned, _ = _tuned(model, tokens, published, prompt_ids, quantization)
    decoding = replace(decoding, stop_token_ids=tokens.stop_token_ids, pad_token_id=tokens.pad_token_id)
    return _ask(tuned, tokenizer, prompt_ids, decoding, meter), ReplyFormat(tokens.call_format)


def _with_published(facts: EvaluationFacts, published: EvaluationFacts) -> EvaluationFacts:
    figures = {metric.name: metric.tuned for metric in published.metrics}
    metrics = [metric.model_copy(update={"published": figures.get(metric.name, "")}) for metric in facts.metrics]
    return facts.model_copy(update={"metrics": metrics})


class _Meter:
    """Reports how many of all replies are there, base and tuned together."""

    def __init__(self, context: StageContext, total: int) -> None:
        self.check_stop = context.stop.check
        self._progress = context.progress
        self._total = total
        self._before = 0
        self._started = time.monotonic()

    def answered(self, count: int) -> None:
        """Take note of the replies of the present model."""
        done = self._before + count
        left = (time.monotonic() - self._started) / done * (self._total - done)
        self._progress.report(100 * done / self._total, left, {"replies": done, "total_replies": self._total})

    def next_model(self, count: int) -> None:
        """Go on with another model after so many replies."""
        self._before += count


def _as_base_reads(
    prompts: Sequence[Sequence[int]],
    tokens: Tokens,
    tokenizer: Tokenizer,
    base_folder: Path,
) -> tuple[Tokenizer, Sequence[Sequence[int]]]:
    """Return the base model's tokenizer, and the prompts in its tokens."""
    if not tokens.added:
        return tokenizer, prompts
    own = load(base_folder)
    return own, own(_texts(tokenizer, prompts), add_special_tokens=False)["input_ids"]


@tracing.step("generate")
def _ask(
    model: Any,  # noqa: ANN401 - transformers ships no types
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    meter: _Meter,
) -> list[Reply]:
    stops = set(decoding.stop_token_ids)
    answers = generate(model, prompts, decoding, check_stop=meter.check_stop, on_progress=meter.answered)
    meter.next_model(len(prompts))
    finished = [ids[-1] in stops for ids in answers]
    said = [ids[:-1] if ended else ids for ids, ended in zip(answers, finished, strict=True)]
    return [Reply(text, ended) for text, ended in zip(_texts(tokenizer, said), finished, strict=True)]


def _texts(tokenizer: Tokenizer, sequences: Sequence[Sequence[int]]) -> list[str]:
    # With special tokens: a server that is offered tools keeps them too, and some bases mark calls with them.
    ids = [list(sequence) for sequence in sequences]
    return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _kept_base_replies(context: StageContext) -> list[Reply] | None:
    key = keys.base_evaluation_key(context.prepared.key, context.spec)
    if context.workspace.manifest(BASE_REPLIES, key) is None:
        return None
    folder = context.folder("base-replies")
    context.workspace.fetch(BASE_REPLIES, key, folder)
    with (folder / "replies.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [Reply(line["text"], line["finished"]) for line in lines]


def _keep_base_replies(context: StageContext, cases: Sequence[Case], replies: Sequence[Reply]) -> None:
    folder = context.folder("base-replies")
    lines = ({"id": case.id, **asdict(reply)} for case, reply in zip(cases, replies, strict=True))
    _write_lines(folder / "replies.jsonl", lines)
    facts = EvaluationFacts(rows=len({case.row for case in cases}), metrics=[])
    context.workspace.commit(BASE_REPLIES, keys.base_evaluation_key(context.prepared.key, context.spec), folder, facts)


def _write_lines(path: Path, lines: Iterable[JsonObject]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
