"""The adapter of spec.baseModel.adapter: resolved, checked and described before a GPU is requested, without torch.

It may be a stranger's. Only its numbers are used: PEFT never reads its configuration, whose patterns are regular
expressions and whose options change the model. Its weights are read from safetensors only, and must fit the base model
tensor by tensor. Every setting that Tunemill would not train with is refused.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import JsonValue
from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.local_files import is_local, local_path
from tunemill_api.status import StartAdapterFacts
from tunemill_api.training import Adapter, AdapterMethod

from tunemill_trainer.chat import tokenizer
from tunemill_trainer.chat.tokenizer import Tokenizer, Vocabulary
from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import BaseModel, NewToken
from tunemill_trainer.process import child
from tunemill_trainer.process.child import ChildError
from tunemill_trainer.release import provenance
from tunemill_trainer.stages.continued import continued_spec
from tunemill_trainer.storage import base_files
from tunemill_trainer.storage.base_files import ADAPTER_WEIGHTS
from tunemill_trainer.storage.hub import ADAPTER_FIELD, Hub
from tunemill_trainer.storage.models import ModelCommit, ModelReader

CONFIG: Final = "adapter_config.json"
_FILES = [CONFIG, "tokenizer.json", *tokenizer.CONFIGS, "*.jinja", "additional_chat_templates/*.jinja"]
"""Patterns of the files that prepare reads."""
_MOST_FILES, _MOST_TENSORS, _MOST_ROWS, _MOST_MODULES = 32, 100_000, 256, 64
_METHODS = {"LORA": AdapterMethod.LORA, "IA3": AdapterMethod.IA3}
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "trainable_token_indices",
    "feedforward_modules",
    "base_model_name_or_path",
    "revision",
}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "exclude_modules",
    "inference_mode",
    "init_ia3_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "target_modules",
    "task_type",
}
"""Settings that do not change what given weights compute. The modules are those that have weights."""
_EMPTY: tuple[JsonValue, ...] = (None, False, 0, "", "none", [], {})
_INITIAL_WEIGHTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Those that leave the weights of the base model as they are."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*")
_MODULE = re.compile(r"base_model\.model\.(.+)\.(lora_A\.weight|ia3_l)")
_FIT_SECONDS = 300

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartAdapter:
    """An adapter from which training starts.

    Attributes:
        source: repository, commit and the digests of its files.
        folder: has the files that prepare reads.
        method: LoRA or IA3.
        config: adapter_config.json.
        shapes: the shape of each tensor by name.
        rows: the ids of the tokens whose embeddings it has trained.
    """

    source: BaseModel
    folder: Path
    method: AdapterMethod
    config: JsonObject
    shapes: Mapping[str, tuple[int, ...]]
    rows: tuple[int, ...]

    @property
    def has_tokenizer(self) -> bool:
        """Whether its repository has a tokenizer. Otherwise that of the base model is used."""
        return "tokenizer.json" in self.source.files

    @property
    def modules(self) -> list[str]:
        """The last parts of the names of the modules that have an adapter."""
        found = {match[1].rpartition(".")[2] for name in self.shapes if (match := _MODULE.fullmatch(name))}
        return sorted(found)

    def facts(self, target_modules: list[str]) -> StartAdapterFacts:
        """Return the facts for status, with spec.adapter's form of the target modules."""
        common = {"revision": self.source.revision, "digest": self.source.digest, "method": self.method.value}
        if self.method is AdapterMethod.IA3:
            names = [str(name).rpartition(".")[2] for name in _list(self.config, "feedforward_modules")]
            feedforward = sorted(set(names) & set(self.modules))
            return StartAdapterFacts(**common, target_modules=target_modules, feedforward_modules=feedforward)
        return StartAdapterFacts(
            **common,
            rank=_integer(self.config, "r", 512),
            alpha=_integer(self.config, "lora_alpha", 2048),
            rs_lora=self.config.get("use_rslora") is True,
            target_modules=target_modules,
        )


def resolve(spec: FineTuneSpec, hub: Hub) -> ModelCommit | None:
    """Return the commit of spec.baseModel.adapter, and check that it has the files of an adapter; None without one.

    Raises:
        StageError: BaseModelNotFound, BaseModelUnsupported, and the other reasons of `hub.hub_errors`.
    """
    wanted = spec.base_model.adapter
    if wanted is None:
        return None
    found = hub.model(wanted.id, ADAPTER_FIELD).resolve(wanted.revision)
    missing = [name for name in (CONFIG, ADAPTER_WEIGHTS) if name not in found.files]
    if missing:
        pickled = sorted(name for name in found.files if name.startswith("adapter_model.") and name != ADAPTER_WEIGHTS)
        also = f", only {', '.join(pickled)}, which may contain code" if pickled else ""
        raise _unusable(found.id, found.commit, f"has no {' and no '.join(missing)}{also}")
    return found


def read(spec: FineTuneSpec, hub: Hub, resolved: ModelCommit, base: BaseModel, data_digest: str) -> StartAdapter:
    """Download and check the small files of an adapter, and the header of its weights.

    A branch that has the model that this fine-tune made from the same rows stands for the adapter from which that one
    was trained: a scheduled run does not train the same rows twice.

    Args:
        spec: the spec of the fine-tune.
        hub: the Hub.
        resolved: the result of `resolve`.
        base: the base model.
        data_digest: the sha256 of the training rows.

    Raises:
        StageError: BaseModelUnsupported, when it cannot be continued; InvalidSpec, when it is an adapter of another
            base model; what `resolve` raises.
    """
    reader = hub.model(resolved.id, ADAPTER_FIELD)
    earlier = _continued_from(spec, reader, resolved, data_digest)
    if earlier:
        _log.info("%s@%s was trained on these rows, from %s", resolved.id, resolved.commit, earlier)
        resolved = reader.resolve(earlier)
    id_, commit = resolved.id, resolved.commit
    folder = _download(reader, resolved, _FILES)
    try:
        config = tokenizer.read_json(folder / CONFIG)
        shapes = reader.shapes(commit, ADAPTER_WEIGHTS)
    except ValueError as error:
        raise _unusable(id_, commit, f"cannot be read: {error}") from error
    if len(shapes) > _MOST_TENSORS:
        raise _unusable(id_, commit, f"has {len(shapes)} tensors, more than {_MOST_TENSORS}")
    method = _method(config, id_, commit)
    _refuse_other_settings(config, id_, commit)
    _refuse_other_base(config, base)
    try:
        start = StartAdapter(
            source=BaseModel(id_, commit, base_files.digests(reader, resolved, folder, _FILES, ADAPTER_WEIGHTS)),
            folder=folder,
            method=method,
            config=config,
            shapes=shapes,
            rows=_rows(config),
        )
        start.facts([])
    except ValueError as error:
        raise _unusable(id_, commit, str(error)) from error
    if len(start.modules) > _MOST_MODULES:
        raise _unusable(id_, commit, f"adapts {len(start.modules)} kinds of modules, more than {_MOST_MODULES}")
    return start


def planned(
    spec: FineTuneSpec, hub: Hub, resolved: ModelCommit, base: BaseModel, base_folder: Path
) -> tuple[FineTuneSpec, int]:
    """Return the spec with the settings of the adapter, and the number of tokens that it adds, for an estimate.

    Args:
        spec: the spec of the fine-tune.
        hub: the Hub.
        resolved: the result of `resolve`.
        base: the base model; its revision may be empty.
        base_folder: has config.json of the base model.

    Raises:
        StageError: the reasons of `read`, `fitted` and `refuse_contradictions`.
    """
    start = read(spec, hub, resolved, base, "")
    facts = fitted(start, spec, base_folder, tuple(NewToken(number, "") for number in start.rows))
    refuse_contradictions(spec, facts, start.modules, adds_tokens=bool(start.rows))
    return continued_spec(spec, facts), len(start.rows)


def load_tokenizer(start: StartAdapter, base: Tokenizer) -> tuple[Tokenizer, tuple[NewToken, ...]]:
    """Return the tokenizer of an adapter, and the tokens that it has in addition to the base model.

    Args:
        start: the adapter.
        base: the tokenizer of the base model, which is returned if the adapter has none.

    Raises:
        StageError: BaseModelUnsupported, when it is not the tokenizer of the base model with tokens whose embeddings
            the adapter has trained.
    """
    source = start.source
    found = tokenizer.load_base(start.folder, ADAPTER_FIELD) if start.has_tokenizer else base
    try:
        added = tokenizer.tokens_added_to(base, found)
    except ValueError as error:
        raise _unusable(source.id, source.revision, f"has another vocabulary than the base model: {error}") from error
    if {token.id for token in added} != set(start.rows):
        names = ", ".join(repr(token.token) for token in added) or "none"
        rows = ", ".join(map(str, start.rows)) or "none"
        raise _unusable(
            source.id,
            source.revision,
            f"has trained embeddings for the token ids {rows}, but its tokenizer adds {names}",
        )
    return found, added


def refuse_more_tokens(vocabulary: Vocabulary) -> None:
    """Raise InvalidSpec if prepare would add tokens for which the adapter has no trained embeddings.

    Raises:
        StageError: InvalidSpec.
    """
    if vocabulary.added:
        names = ", ".join(token.token for token in vocabulary.added)
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.tokenizer would add {names}, for which spec.baseModel.adapter has no embeddings",
            "Remove these tokens from spec.tokenizer.addTokens, set spec.tokenizer.mode to Auto or Text, or remove "
            "spec.baseModel.adapter to train from the base model.",
        )


def refuse_other_template(start: StartAdapter, own: str | dict[str, str] | None, of_user: str | None) -> None:
    """Raise InvalidSpec if the user's chat template is not that of the adapter.

    Args:
        start: the adapter.
        own: the template of its tokenizer; None if it has none.
        of_user: the content of spec.tokenizer.chatTemplate, or None.

    Raises:
        StageError: InvalidSpec.
    """
    if of_user is not None and start.has_tokenizer and own and own != of_user:
        raise _contradiction("tokenizer.chatTemplate", "another chat template", "a chat template of its own")


def fitted(
    start: StartAdapter, spec: FineTuneSpec, base_folder: Path, added: tuple[NewToken, ...]
) -> StartAdapterFacts:
    """Return the adapter's settings, with which PEFT builds exactly its tensors on the base model.

    Args:
        start: the adapter.
        spec: the spec of the fine-tune.
        base_folder: has config.json of the base model.
        added: the tokens that the adapter adds.

    Raises:
        StageError: BaseModelUnsupported, when its tensors do not fit the base model.
    """
    choices = [start.facts(names) for names in (["all-linear"], start.modules)]
    request = {
        "folder": str(base_folder),
        "specs": [continued_spec(spec, facts).adapter.model_dump(mode="json", by_alias=True) for facts in choices],
        "added": [asdict(token) for token in added],
        "shapes": {name: list(shape) for name, shape in start.shapes.items()},
    }
    try:
        answer = child.ask("tunemill_trainer.learn.adapter_fit", request, _FIT_SECONDS)
    except ChildError as error:
        # Train compares the tensors again, with the real model.
        _log.warning("cannot compare the adapter with the base model before training: %s", error)
        return choices[-1]
    if "problem" in answer:
        raise _unusable(start.source.id, start.source.revision, f"does not fit the base model: {answer['problem']}")
    return choices[int(answer["fits"])]


def refuse_contradictions(
    spec: FineTuneSpec, start: StartAdapterFacts, modules: list[str], *, adds_tokens: bool
) -> None:
    """Raise InvalidSpec if a field of spec.adapter or spec.tokenizer differs from its default and from the adapter.

    The API server stores defaults like values of the user, so a value that equals the default counts as absent.

    Args:
        spec: the spec of the fine-tune.
        start: the settings of the adapter.
        modules: the last parts of the names of the modules that have an adapter.
        adds_tokens: whether the adapter has trained embeddings of added tokens.

    Raises:
        StageError: InvalidSpec, with the field and the value of the adapter.
    """
    given = spec.adapter
    if given.method.value not in {start.method, Adapter().method.value}:
        raise _contradiction("adapter.method", given.method.value, start.method)
    own, other = ("lora", "ia3") if start.method == AdapterMethod.LORA else ("ia3", "lora")
    if getattr(given, other) != getattr(Adapter(), other):
        raise _contradiction(f"adapter.{other}", "set", f"the method {start.method}")
    settings = (getattr(adapter, own) for adapter in (given, Adapter(), continued_spec(spec, start).adapter))
    used, unset, of_adapter = (settings_of.model_dump(by_alias=True) for settings_of in settings)
    of_adapter["targetModules"] = modules
    for name, value in used.items():
        if _comparable(value) not in (_comparable(unset[name]), _comparable(of_adapter[name])):
            raise _contradiction(f"adapter.{own}.{name}", value, of_adapter[name])
    if adds_tokens and spec.tokenizer.mode is TokenizerMode.TEXT:
        raise _contradiction("tokenizer.mode", spec.tokenizer.mode.value, TokenizerMode.EXTEND.value)


def _continued_from(spec: FineTuneSpec, reader: ModelReader, resolved: ModelCommit, data_digest: str) -> str:
    """Return the commit from which the branch's adapter was trained, if it is this fine-tune's from the same rows.

    The statement need not be signed: whoever can write it can push any adapter to this repository.
    """
    wanted = spec.base_model.adapter
    if wanted is None or wanted.id != spec.publish.repository or is_local(wanted.id):
        return ""
    if wanted.revision == resolved.commit or provenance.PROVENANCE not in resolved.files:
        return ""
    if reader.size(resolved.commit, provenance.PROVENANCE) > provenance.LARGEST_BYTES:
        return ""
    folder = reader.download(resolved.commit, [provenance.PROVENANCE])
    made = provenance.origin_of((folder / provenance.PROVENANCE).read_bytes(), resolved.id)
    return made.adapter if made is not None and made.data == data_digest else ""


def _download(reader: ModelReader, found: ModelCommit, patterns: list[str]) -> Path:
    """Download small files, after checking their number and sizes."""
    names = base_files.matching(found.files, patterns)
    if len(names) > _MOST_FILES:
        raise _unusable(found.id, found.commit, f"has {len(names)} files of configuration, more than {_MOST_FILES}")
    for name in names:
        most = tokenizer.LARGEST_TOKENIZER if name == "tokenizer.json" else tokenizer.LARGEST_CONFIG
        size = reader.size(found.commit, name)
        if size > most:
            raise _unusable(found.id, found.commit, f"has a {name} of {size >> 20} MiB, more than {most >> 20} MiB")
    return reader.download(found.commit, names)


def _method(config: JsonObject, repository: str, commit: str) -> AdapterMethod:
    kind = str(config.get("peft_type"))
    if kind not in _METHODS:
        why = ", whose ranks are final" if kind == "ADALORA" else ""
        raise _unusable(repository, commit, f"has the method {kind}{why}; LoRA and IA3 adapters can be continued")
    return _METHODS[kind]


def _refuse_other_settings(config: JsonObject, repository: str, commit: str) -> None:
    for name, value in config.items():
        if name in _READ | _WITHOUT_EFFECT:
            continue
        if value not in (_INITIAL_WEIGHTS if name == "init_lora_weights" else _EMPTY):
            raise _unusable(repository, commit, f"has the setting {name} in {CONFIG}, which Tunemill does not train")


def _refuse_other_base(config: JsonObject, base: BaseModel) -> None:
    """Refuse the adapter of another base model, as far as its configuration names one.

    A path names a folder of the machine on which the adapter was made. Then only the tensors are compared.
    """
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if isinstance(name, str) and _REPOSITORY.fullmatch(name) and not is_local(base.id) and name != base.id:
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.baseModel.adapter is an adapter of {name}, but spec.baseModel.id is {base.id}",
            f"Set spec.baseModel.id to {name}, or choose an adapter of {base.id}.",
        )
    same_place = name == base.id or (is_local(base.id) and name == str(local_path(base.id)))
    known = isinstance(revision, str) and _COMMIT.fullmatch(revision)
    if same_place and known and base.revision and revision != base.revision:
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.baseModel.adapter is an adapter of {name} at the commit {revision}, but spec.baseModel.revision is "
            f"{base.revision}",
            f"Set spec.baseModel.revision to {revision}.",
        )


def _rows(config: JsonObject) -> tuple[int, ...]:
    """Return the ids of the tokens whose embeddings were trained: the same ones in each layer.

    Raises:
        ValueError: they have another form.
    """
    value = config.get("trainable_token_indices") or []
    lists = list(value.values()) if isinstance(value, dict) else [value]
    ids = [[number for number in one if type(number) is int] for one in lists if isinstance(one, list)]
    if ids != lists or any(one != ids[0] for one in ids) or len(ids[0]) > _MOST_ROWS:
        raise ValueError(
            f"has trainable_token_indices other than one list of at most {_MOST_ROWS} token ids for each layer"
        )
    return tuple(sorted(ids[0]))


def _integer(config: JsonObject, name: str, most: int) -> int:
    value = config.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"has {name} {value!r} in {CONFIG}, expected a whole number from 1 to {most}")
    return value


def _list(config: JsonObject, name: str) -> Sequence[object]:
    value = config.get(name) or []
    if not isinstance(value, list):
        raise ValueError(f"has {name} {value!r} in {CONFIG}, expected a list")
    return value


def _comparable(value: object) -> object:
    """Return the value of a field, in which the order of modules does not count."""
    return set(value) if isinstance(value, list) else value


def _unusable(repository: str, commit: str, problem: str) -> StageError:
    return StageError(
        Reason.BASE_MODEL_UNSUPPORTED,
        f"the adapter of spec.baseModel.adapter, {repository}@{commit[:12]}, {problem}",
        "Choose a LoRA or IA3 adapter of spec.baseModel with safetensors weights, as Tunemill publishes it, or remove "
        "spec.baseModel.adapter to train from the base model.",
    )


def _contradiction(field: str, found: object, of_adapter: object) -> StageError:
    return StageError(
        Reason.INVALID_SPEC,
        f"spec.{field} is {found}, but the adapter of spec.baseModel.adapter has {of_adapter}",
        f"Remove spec.{field}: the settings of the adapter are used. To change them, remove spec.baseModel.adapter.",
    )
