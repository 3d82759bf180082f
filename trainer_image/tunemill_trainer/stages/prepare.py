"""Prepare: checks permissions, downloads and validates the data, and tokenizes it, before a GPU is requested.

It does not import torch: the stage runs in small CPU pods, and should report a wrong field within seconds.
"""

import hashlib
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tunemill_api import keys
from tunemill_api.constants import CHAT_TEMPLATE_PATH, TOOLS_PATH
from tunemill_api.data import Replay, Think, TokenizerMode
from tunemill_api.evaluation import Suite
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.publish import Artifact
from tunemill_api.stage_report import Stage
from tunemill_api.status import DatasetFacts, PreparedFacts, StartAdapterFacts
from tunemill_api.training import LossOn, Turns

from tunemill_trainer.bases import architectures, catalogue
from tunemill_trainer.bases.found import FoundModel, describe
from tunemill_trainer.chat import examples, templates, tokenizer
from tunemill_trainer.chat.examples import Examples, RowEncoder
from tunemill_trainer.chat.templates import Choice, Origin
from tunemill_trainer.chat.tokenizer import Tokenizer, Vocabulary
from tunemill_trainer.data import dataset as data
from tunemill_trainer.data.augmentation import Augmenter, Change, training_rows
from tunemill_trainer.data.dataset import Dataset, ReadOptions, Requests, Split
from tunemill_trainer.data.files import Data
from tunemill_trainer.data.rows import JsonObject, Tool
from tunemill_trainer.data.sources import DataFetcher
from tunemill_trainer.data.tools import given_tools
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import memory_plan
from tunemill_trainer.learn.memory_plan import UnknownMemoryError
from tunemill_trainer.prepared import BaseModel, NewToken, PreparedWriter, Tokens
from tunemill_trainer.process import cpus, tracing
from tunemill_trainer.release import artifacts, servability
from tunemill_trainer.stages import combinations, config_maps, row_reports, start_adapter, suites
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.continued import continued_spec
from tunemill_trainer.stages.start_adapter import StartAdapter
from tunemill_trainer.storage import base_files, references, s3
from tunemill_trainer.storage.hub import READ_FIELD, Hub
from tunemill_trainer.storage.models import ModelCommit

_log = logging.getLogger(__name__)

_FETCHED, _READ, _ENCODED = 10, 30, 95
"""The progress in percent after each part of the stage."""


def run(context: StageContext) -> tuple[PreparedFacts, bool]:
    """Prepare the run's data.

    Returns:
        The facts, and whether anything was done: not if the workspace has the output already.

    Raises:
        StageError: for all errors that a user or the platform can fix.
    """
    combinations.refuse_impossible(context.spec)
    folder = _empty_folder(context.work / "prepare")
    hub, base, adapter = _check_permissions(context)
    fetched = _fetch(context, hub, folder)
    files = _user_files(context)
    base_folder = _download_tokenizer(hub, base)
    digests = base_files.digests(hub.model(base.id), base, base_folder, tokenizer.FILES)
    base_model = BaseModel(base.id, base.commit, digests)
    start = start_adapter.read(context.spec, hub, adapter, base_model, fetched.train.digest) if adapter else None
    key = keys.prepare_key(context.spec, _resolved(context.spec, base_model, start, fetched, files))
    wanted = suites.find(context, key, fetched.suites)
    references.refer(context.workspace, context.run, key, [suite.facts for suite in wanted])
    facts = _existing(context, key, base_model, start, fetched.train)
    missing = [suite for suite in wanted if not suite.exists]
    if facts is not None:
        context = _continued(context, start, facts.adapter)
        _check_artifacts(context, facts, base_folder)
        facts = _with_gpu_memory(context, facts, base_folder)
        if not missing:
            return facts.model_copy(update={"suites": [suite.facts for suite in wanted]}), False

    models = _Models(base_model, base_folder, start, _load_tokenizers(base_folder, start))
    adapter_facts = None
    if facts is None and start is not None:
        adapter_facts = start_adapter.fitted(start, context.spec, base_folder, models.tokenizers.added)
        context = _continued(context, start, adapter_facts)
    dataset = _read(context, key, files, fetched, folder / "rows.jsonl")
    chosen = _choose(context, dataset, models, files.template)
    if facts is None:
        facts = _prepare(context, key, dataset, chosen, fetched, models, adapter_facts, folder / "output")
    made = suites.make(context, missing, dataset, chosen.choice, _read_options(context, files)) if missing else {}
    context.progress.report(100)
    return facts.model_copy(update={"suites": [made.get(each.suite.name, each).facts for each in wanted]}), True


def _existing(
    context: StageContext, key: str, base_model: BaseModel, start: StartAdapter | None, train: Data
) -> PreparedFacts | None:
    """Return the facts of the output in the workspace, or None if there is none. One of other inputs is removed."""
    manifest = context.workspace.manifest(Stage.PREPARE, key)
    if manifest is None:
        return None
    facts = PreparedFacts.model_validate(manifest.facts)
    found = (facts.key, facts.base_model_revision, facts.base_model_digest, facts.dataset_digest)
    same_start = (facts.adapter.digest if facts.adapter else "") == (start.source.digest if start else "")
    if found == (key, base_model.revision, base_model.digest, train.digest) and same_start:
        return facts
    _log.warning("removing the manifest of prepare/%s: it names other models or other data", key)
    context.workspace.remove_manifest(Stage.PREPARE, key)
    return None


def _prepare(
    context: StageContext,
    key: str,
    dataset: Dataset,
    chosen: "_Chosen",
    fetched: "_Fetched",
    models: "_Models",
    adapter: StartAdapterFacts | None,
    output: Path,
) -> PreparedFacts:
    """Encode the rows, and commit the output."""
    base_model, base_folder = models.base, models.base_folder
    try:
        tokens, written = _encode(context, dataset, chosen, models, output)
    except data.TooManyInvalidError as error:
        raise row_reports.with_report(context, Stage.PREPARE, key, error) from error
    known = chosen.found
    facts = PreparedFacts(
        key=key,
        base_model_revision=base_model.revision,
        base_model_digest=base_model.digest,
        adapter=adapter,
        dataset_digest=fetched.train.digest,
        tokenizer_mode=tokens.mode,
        added_tokens=len(tokens.added),
        base_model_family=known.family.name if known.family else "",
        base_model_assumptions=list(known.assumed),
        dataset=_dataset_facts(dataset, written),
    )
    _check_artifacts(context, facts, base_folder)
    # Not in the manifest, because runs with other training settings use the same output.
    memory = _with_gpu_memory(context, facts, base_folder).gpu_memory
    committed = context.workspace.commit(Stage.PREPARE, key, output, facts)
    return PreparedFacts.model_validate(committed.facts).model_copy(update={"gpu_memory": memory})


@tracing.step("check permissions")
def _check_permissions(context: StageContext) -> tuple[Hub, ModelCommit, ModelCommit | None]:
    """Check the permissions that later stages need, cheapest first.

    Returns:
        The Hub for reading, the base model, and the adapter of spec.baseModel.adapter or None.
    """
    spec = context.spec
    context.workspace.check_writable()
    Hub(spec.hub.endpoint, context.credentials.hub_token("hub-write")).check_writable(spec.publish.repository)
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-read"))
    hub.check_token(READ_FIELD)
    base = hub.model(spec.base_model.id).resolve(spec.base_model.revision)
    required = {
        "config.json": "config.json" in base.files,
        "tokenizer.json (a fast tokenizer)": "tokenizer.json" in base.files,
        "*.safetensors": any(name.endswith(".safetensors") for name in base.files),
    }
    missing = [name for name, exists in required.items() if not exists]
    if missing:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED,
            f"spec.baseModel is {base.id}@{base.commit}, which has no {', '.join(missing)}",
        )
    return hub, base, start_adapter.resolve(spec, hub)


def _continued(context: StageContext, start: StartAdapter | None, facts: StartAdapterFacts | None) -> StageContext:
    """Return the context with the settings of the adapter in its spec; unchanged without one."""
    if start is None or facts is None:
        return context
    start_adapter.refuse_contradictions(context.spec, facts, start.modules, adds_tokens=bool(start.rows))
    spec = continued_spec(context.spec, facts)
    return replace(context, run=context.run.model_copy(update={"spec": spec}))


def _check_artifacts(context: StageContext, facts: PreparedFacts, base_folder: Path) -> None:
    """Check that all artifacts can be made and pushed."""
    # Imported here, because most runs need neither.
    from tunemill_trainer.release import gguf_file
    from tunemill_trainer.stages import registries

    spec = context.spec
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-write"))
    for name in artifacts.more_repositories(spec, facts.added_tokens):
        hub.check_writable(name)
    if Artifact.GGUF in spec.publish.artifacts:
        gguf_file.refuse_inconvertible(base_folder, added_tokens=facts.added_tokens)
    if (registry := registries.open_registry(context)) is not None:
        registry.check_writable()


@tracing.step("estimate GPU memory")
def _with_gpu_memory(context: StageContext, facts: PreparedFacts, base_folder: Path) -> PreparedFacts:
    """Estimate the memory of train and evaluate, and refuse a run that does not fit into spec.compute.gpuMemory."""
    spec = context.spec
    if not spec.compute.gpus:
        return facts
    lengths = memory_plan.lengths_of(spec, facts.dataset)
    try:
        found = memory_plan.estimate_in_child(base_folder, spec, facts.added_tokens, lengths)
    except UnknownMemoryError as error:
        _log.warning("cannot estimate the GPU memory of the run: %s", error)
        return facts.model_copy(update={"gpu_memory": None})
    memory_plan.refuse_too_large(spec, found)
    return facts.model_copy(update={"gpu_memory": found.facts})


@dataclass(frozen=True)
class _Fetched:
    """The data: training rows, and other rows for which the spec names files: of single splits, replay and suites."""

    train: Data
    separate: dict[Split, Data]
    replay: Data | None
    suites: list[tuple[Suite, Data]]


@tracing.step("fetch data")
def _fetch(context: StageContext, hub: Hub, folder: Path) -> _Fetched:
    spec = context.spec.dataset
    places = DataFetcher(
        lambda: s3.client(spec.endpoint, spec.region, context.credentials.s3("dataset")), hub, context.stop
    )
    train = places.fetch(spec.uri, "spec.dataset", folder / "train")
    separate = {}
    if spec.evaluation.uri:
        separate[Split.HELD_OUT] = places.fetch(spec.evaluation.uri, "spec.dataset.evaluation", folder / "evaluation")
    if spec.validation is not None and spec.validation.uri:
        separate[Split.VALIDATION] = places.fetch(spec.validation.uri, "spec.dataset.validation", folder / "validation")
    replay = None
    if spec.replay is not None:
        replay = places.fetch(spec.replay.uri, "spec.dataset.replay", folder / "replay")
    of_suites = [
        (suite, places.fetch(suite.uri, f"spec.evaluation.suites[{suite.name}]", folder / "suites" / suite.name))
        for suite in context.spec.evaluation.suites
    ]
    context.progress.report(_FETCHED)
    return _Fetched(train, separate, replay, of_suites)


@dataclass(frozen=True)
class _UserFiles:
    """The files of the user's ConfigMaps: the chat template (None without one) and the tools (empty without)."""

    template: str | None
    tools_text: str
    tools: tuple[Tool, ...]


def _user_files(context: StageContext) -> _UserFiles:
    spec = context.spec
    template, tools = None, ""
    if spec.tokenizer.chat_template is not None:
        template = config_maps.read(CHAT_TEMPLATE_PATH, "spec.tokenizer.chatTemplate", Reason.INVALID_CHAT_TEMPLATE)
    if spec.tools is not None:
        tools = config_maps.read(TOOLS_PATH, "spec.tools", Reason.INVALID_SPEC)
    return _UserFiles(template, tools, given_tools(tools, "spec.tools") if spec.tools is not None else ())


def _resolved(
    spec: FineTuneSpec, base: BaseModel, start: StartAdapter | None, fetched: _Fetched, files: _UserFiles
) -> dict[str, str]:
    """Return the inputs of the key that are known only at run time: commits and digests."""
    resolved = {"baseModel": base.revision, "baseModelFiles": base.digest, "dataset": fetched.train.digest}
    if spec.tokenizer.mode is TokenizerMode.AUTO:
        resolved["tags"] = _auto_mode(spec)[0].value
    if start is not None:
        resolved |= {"adapter": start.source.revision, "adapterFiles": start.source.digest}
    for split, name in ((Split.HELD_OUT, "evaluation"), (Split.VALIDATION, "validation")):
        if split in fetched.separate:
            resolved[name] = fetched.separate[split].digest
    if fetched.replay is not None:
        resolved["replay"] = fetched.replay.digest
    if files.template is not None:
        resolved["chatTemplate"] = hashlib.sha256(files.template.encode()).hexdigest()
    if files.tools:
        resolved["tools"] = hashlib.sha256(files.tools_text.encode()).hexdigest()
    return resolved


@tracing.step("read data")
def _read(context: StageContext, key: str, files: _UserFiles, fetched: _Fetched, spool: Path) -> Dataset:
    options, dataset = _read_options(context, files), context.spec.dataset
    try:
        found = data.read(dataset, options, fetched.train, fetched.separate, spool, context.stop.check)
    except data.TooManyInvalidError as error:
        raise row_reports.with_report(context, Stage.PREPARE, key, error) from error
    if dataset.replay is not None and fetched.replay is not None:
        with row_reports.about("spec.dataset.replay"):
            _add_replay(context, key, found, dataset.replay, options, fetched.replay)
    context.progress.report(_READ, metrics={"rows": found.rows, "invalid_rows": found.invalid})
    return found


def _add_replay(
    context: StageContext, key: str, dataset: Dataset, settings: Replay, how: ReadOptions, rows: Data
) -> None:
    """Read the rows of spec.dataset.replay, and add as many as its share to the data set.

    Raises:
        StageError: as `data.read`.
    """
    # General rows are trained on as they are, without the tools of spec.tools.
    options, spool = replace(how, format=settings.format, contract=()), dataset.spool.with_suffix(".replay")
    try:
        with Requests(dataset, set(Split), context.stop.check) as known:
            found = data.read_others(options, rows, spool, known)
        data.refuse_too_many_invalid(found, float(context.spec.dataset.max_invalid_fraction))
    except data.TooManyInvalidError as error:
        raise row_reports.with_report(context, Stage.PREPARE, key, error) from error
    share = float(settings.share)
    wanted = max(1, round(share / (1 - share) * known.train_rows))
    if found.kept < wanted:
        _log.warning("spec.dataset.replay has %d usable rows, fewer than the share of %s needs", found.kept, share)
    dataset.add_replay(found, wanted, how.seed)


def _read_options(context: StageContext, files: _UserFiles) -> ReadOptions:
    spec = context.spec
    return ReadOptions(
        format=spec.dataset.format,
        contract=files.tools,
        drop_reasoning=spec.tokenizer.think is Think.DROP,
        last_turn_only=spec.training.turns is Turns.LAST,
        keep_unsupervised=spec.training.loss_on is LossOn.ALL,
        seed=spec.dataset.evaluation.seed,
        split_by=spec.dataset.evaluation.split_by,
        workers=cpus.available(),
    )


def _download_tokenizer(hub: Hub, base: ModelCommit) -> Path:
    folder = hub.model(base.id).download(base.commit, tokenizer.FILES)
    try:
        config = tokenizer.read_json(folder / "config.json")
    except ValueError as error:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED, f"cannot parse the config.json of {base.id}: {error}"
        ) from error
    if not architectures.is_trainable(config):
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED,
            "expected a causal language model, or a multimodal model with one, in spec.baseModel, found "
            f"{base.id} with the architecture {', '.join(architectures.architectures(config)) or '(none)'}",
        )
    return folder


def _auto_mode(spec: FineTuneSpec) -> tuple[TokenizerMode, str]:
    """Return what spec.tokenizer.mode Auto means for tags that the vocabulary lacks, and the reason."""
    if spec.base_model.adapter is not None:
        return TokenizerMode.TEXT, "spec.baseModel.adapter has no embeddings for more tokens"
    return servability.auto_mode(spec)


@dataclass(frozen=True)
class _Tokenizers:
    """The tokenizer of the base model, and the one that is used: the same, or that of the adapter to start from.

    Attributes:
        base: of the base model.
        used: the one that is used.
        added: the tokens that it has in addition to those of the base model.
    """

    base: Tokenizer
    used: Tokenizer
    added: tuple[NewToken, ...]


def _load_tokenizers(base_folder: Path, start: StartAdapter | None) -> _Tokenizers:
    base = tokenizer.load_base(base_folder)
    if start is None:
        return _Tokenizers(base, base, ())
    return _Tokenizers(base, *start_adapter.load_tokenizer(start, base))


@dataclass(frozen=True)
class _Models:
    """The base model with the folder of its small files, the adapter to start from or None, and their tokenizers."""

    base: BaseModel
    base_folder: Path
    start: StartAdapter | None
    tokenizers: _Tokenizers


@dataclass(frozen=True)
class _Chosen:
    """The chat template, the tokenizer and its vocabulary, and what is known about the base model."""

    tokenizer: Tokenizer
    choice: Choice
    vocabulary: Vocabulary
    found: FoundModel


@tracing.step("choose chat template")
def _choose(context: StageContext, dataset: Dataset, models: _Models, user_template: str | None) -> _Chosen:
    settings, start = context.spec.tokenizer, models.start
    auto, _ = _auto_mode(context.spec)
    used, own_template = models.tokenizers.used, models.tokenizers.base.chat_template
    if start is not None:
        start_adapter.refuse_other_template(start, used.chat_template, user_template)
    # `_download_tokenizer` has checked that it can be read.
    config = tokenizer.read_json(models.base_folder / "config.json")
    family = catalogue.family_of(config, own_template)
    choice, vocabulary = templates.choose_and_extend(
        used,
        settings.mode,
        dataset.rendered_features(),
        settings.add_tokens,
        user_template,
        auto,
        expected=family.calls if family else None,
        own=Origin.BASE if used.chat_template == own_template else Origin.ADAPTER,
    )
    if start is not None:
        start_adapter.refuse_more_tokens(vocabulary)
        vocabulary = vocabulary.then(Vocabulary(vocabulary.mode, models.tokenizers.added))
    stops = used.convert_ids_to_tokens(list(choice.ends_of_turns))
    found = describe(config, own_template, choice, stops)
    if found.assumed:
        types = ", ".join(found.model_types) or "none"
        _log.warning(
            "the base model is not in the catalogue (model_type %s). Assumed: %s", types, " ".join(found.assumed)
        )
    return _Chosen(used, choice, vocabulary, found)


@tracing.step("tokenise")
def _encode(
    context: StageContext, dataset: Dataset, chosen: _Chosen, models: _Models, output: Path
) -> tuple[Tokens, Examples]:
    """Write the output folder."""
    choice, family = chosen.choice, chosen.found.family
    with PreparedWriter(output) as writer:
        written = _write_examples(context, dataset, choice, writer)
        call_format = choice.encoder.call_format
        tokens = tokenizer.describe(
            chosen.tokenizer, chosen.vocabulary, choice.ends_of_turns, models.base_folder, call_format
        )
        combinations.refuse_untrainable_tokens(context.spec, tokens)
        chosen.tokenizer.chat_template = choice.encoder.template.source
        chosen.tokenizer.save_pretrained(writer.layout.tokenizer_path)
        report = _report(dataset, written, choice) | {
            "baseModelFamily": family.name if family else None,
            "baseModelAssumptions": list(chosen.found.assumed),
            "tokenizer": _tokenizer_report(context.spec, chosen.vocabulary),
        }
        writer.describe(tokens, models.base, report, models.start.source if models.start else None)
    return tokens, written


def _write_examples(context: StageContext, dataset: Dataset, choice: Choice, writer: PreparedWriter) -> Examples:
    training, settings = context.spec.training, context.spec.dataset.augmentation
    augmenter = None if settings is None else Augmenter.of(settings, dataset.features, training_rows(dataset))
    encoder = RowEncoder(choice, training.max_length, training.loss_on is LossOn.ALL, augmenter)

    def tick(done: int) -> None:
        context.stop.check()
        share = done / max(dataset.kept, 1)
        context.progress.report(_READ + share * (_ENCODED - _READ), metrics={"rows": done})

    allowed = float(context.spec.dataset.max_invalid_fraction)
    written = examples.write_usable(dataset, encoder, writer, allowed, workers=cpus.available(), tick=tick)
    _refuse_empty_split(written, context.spec)
    return written


_REMEDIES = {
    Split.VALIDATION: "Raise spec.dataset.validation.fraction, or add rows to spec.dataset.validation.uri.",
    Split.REPLAY: "Add rows to spec.dataset.replay whose prompts are not in spec.dataset, or remove it.",
}
"""The remedies for empty splits that have settings of their own."""


def _refuse_empty_split(written: Examples, spec: FineTuneSpec) -> None:
    max_length = spec.training.max_length
    for split, side in written.splits.items():
        if (split is Split.VALIDATION and spec.dataset.validation is None) or (
            split is Split.REPLAY and spec.dataset.replay is None
        ):
            continue
        name = split.value
        if side.rows == 0 and side.overlong:
            raise StageError(
                Reason.ALL_ROWS_TOO_LONG,
                f"all {side.overlong} {name} rows are longer than spec.training.maxLength ({max_length} tokens); the "
                f"shortest has at least {side.shortest_overlong}",
            )
        if side.rows == 0:
            raise StageError(
                Reason.DATASET_TOO_SMALL,
                f"expected at least one usable {name} row, found none",
                _REMEDIES.get(split, ""),
            )


def _dataset_facts(dataset: Dataset, written: Examples) -> DatasetFacts:
    return DatasetFacts(
        format=dataset.format.value,
        rows=dataset.rows,
        train_rows=written.train.rows,
        replay_rows=written.splits[Split.REPLAY].rows,
        validation_rows=written.validation.rows,
        evaluation_rows=written.held_out.rows,
        invalid_rows=dataset.invalid,
        overlong_rows=sum(side.overlong for side in written.splits.values()),
        duplicate_rows=dataset.duplicates,
        leaked_rows=dataset.leaked,
        tools=len(dataset.offers),
        longest_row_tokens=max(max(side.lengths, default=0) for side in written.splits.values()),
        added_rows=written.changes[Change.ADDED],
        supervised_token_percent=f"{100 * written.supervised / written.tokens:.1f}",
    )


def _report(dataset: Dataset, written: Examples, choice: Choice) -> JsonObject:
    return row_reports.of(dataset) | {
        "train": written.train.to_json() | {"supervisedTokens": written.supervised, "allTokens": written.tokens},
        "replay": written.splits[Split.REPLAY].to_json(),
        "validation": written.validation.to_json(),
        "evaluation": written.held_out.to_json() | {"cases": written.cases},
        "chatTemplate": {
            "origin": choice.origin.value,
            "passedOver": choice.rejected_because,
            "callFormat": choice.encoder.call_format.value,
        },
        "augmentation": {change.value: written.changes[change] for change in Change},
        "findings": dataset.findings.to_json(),
    }


def _tokenizer_report(spec: FineTuneSpec, vocabulary: Vocabulary) -> JsonObject:
    """Return how the vocabulary was changed for tags and tokens, and why."""
    auto, why = _auto_mode(spec)
    if spec.base_model.adapter and vocabulary.added:
        why = "spec.baseModel.adapter has trained embeddings for these tokens"
    elif spec.tokenizer.mode is not TokenizerMode.AUTO:
        why = f"spec.tokenizer.mode is {spec.tokenizer.mode.value}"
    elif vocabulary.mode is TokenizerMode.REUSE:
        why = "the base model's vocabulary has all tags that the assistant writes"
    elif vocabulary.mode is not auto:
        why = "the base model's vocabulary lacks tokens of spec.tokenizer.addTokens"
    return {"mode": vocabulary.mode.value, "reason": why, "added": [token.token for token in vocabulary.added]}


def _empty_folder(path: Path) -> Path:
    """Create an empty folder, deleting what an earlier attempt in the same pod may have left."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
