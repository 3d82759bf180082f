"""Which adapters training can continue from, and which fields of the spec may be set together with one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api.builders import a_spec
from safetensors.numpy import save_file
from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_trainer.chat.tokenizer import LARGEST_CONFIG, Vocabulary
from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import BaseModel, NewToken
from tunemill_trainer.release import provenance
from tunemill_trainer.stages import start_adapter
from tunemill_trainer.stages.continued import continued_spec
from tunemill_trainer.storage.hub import Hub
from tunemill_trainer.storage.local_model import LocalModel
from tunemill_trainer.storage.models import ModelCommit

BASE = BaseModel("google/gemma-2-2b-it", "b" * 40)
LORA: JsonObject = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": BASE.id,
    "revision": BASE.revision,
    "bias": "none",
    "init_lora_weights": True,
    "alpha_pattern": {},
    "modules_to_save": None,
    "megatron_core": "megatron.core",
}
IA3: JsonObject = {
    "peft_type": "IA3",
    "target_modules": ["k_proj", "down_proj"],
    "feedforward_modules": ["down_proj"],
    "base_model_name_or_path": BASE.id,
}
LAYER = "base_model.model.model.layers.0"
LORA_TENSORS = {
    f"{LAYER}.self_attn.{module}.lora_{side}.weight": shape
    for module in ("q_proj", "v_proj")
    for side, shape in (("A", (8, 16)), ("B", (16, 8)))
}
IA3_TENSORS = {f"{LAYER}.self_attn.k_proj.ia3_l": (16, 1), f"{LAYER}.mlp.down_proj.ia3_l": (1, 32)}


class Repository:
    """The folder of an adapter, and a spec that continues from it."""

    def __init__(self, folder: Path, config: JsonObject, tensors: dict[str, tuple[int, ...]]) -> None:
        self.folder = folder
        self.write("adapter_config.json", config)
        save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, self.weights)

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.folder / "adapter_model.safetensors"

    def write(self, name: str, value: JsonObject) -> None:
        """Write a JSON file."""
        (self.folder / name).write_text(json.dumps(value))

    def spec(self, **changes: Any) -> FineTuneSpec:
        """Return a spec that continues from the folder."""
        model = {"id": BASE.id, "adapter": {"id": self.folder.as_uri()}}
        return a_spec(baseModel=model, **changes)

    def read(self) -> start_adapter.StartAdapter:
        """Resolve and read the adapter."""
        spec, hub = self.spec(), Hub("", None)
        found = start_adapter.resolve(spec, hub)
        assert found is not None
        return start_adapter.read(spec, hub, found, BASE, "0" * 64)

    def failure(self) -> StageError:
        """Return why the adapter is refused."""
        with pytest.raises(StageError) as raised:
            self.read()
        return raised.value


@pytest.fixture
def lora(tmp_path: Path) -> Repository:
    """A LoRA adapter of two modules with rank 8."""
    return Repository(tmp_path, LORA, LORA_TENSORS)


@pytest.fixture
def ia3(tmp_path: Path) -> Repository:
    """An IA3 adapter of two modules."""
    return Repository(tmp_path, IA3, IA3_TENSORS)


def test_the_settings_are_those_of_the_adapter(lora: Repository):
    """Given a spec without settings, rank, alpha and modules come from the adapter, and dropout from the spec."""
    facts = lora.read().facts(["q_proj", "v_proj"])
    used = continued_spec(lora.spec(adapter={"lora": {"dropout": "0.2"}}), facts).adapter.lora
    assert (used.rank, used.alpha, used.target_modules, used.dropout) == (8, 32, ["q_proj", "v_proj"], "0.2")
    assert lora.read().modules == ["q_proj", "v_proj"]


def test_an_ia3_adapter_is_continued_as_one(ia3: Repository):
    """The method of the CRD's default is not a user's choice."""
    start = ia3.read()
    facts = start.facts(start.modules)
    start_adapter.refuse_contradictions(ia3.spec(), facts, start.modules, adds_tokens=False)
    used = continued_spec(ia3.spec(), facts).adapter
    assert (used.method, used.ia3.target_modules) == ("IA3", ["down_proj", "k_proj"])
    assert used.ia3.feedforward_modules == ["down_proj"]


@pytest.mark.parametrize(
    ("adapter", "named"),
    [
        ({"lora": {"rank": 32}}, "spec.adapter.lora.rank is 32, but the adapter of spec.baseModel.adapter has 8"),
        ({"lora": {"alpha": 8}}, "spec.adapter.lora.alpha is 8"),
        ({"lora": {"rsLora": True}}, "spec.adapter.lora.rsLora is True"),
        ({"lora": {"targetModules": ["q_proj"]}}, "has ['q_proj', 'v_proj']"),
        ({"method": "IA3"}, "spec.adapter.method is IA3, but the adapter of spec.baseModel.adapter has LoRA"),
    ],
)
def test_a_field_that_contradicts_the_adapter_is_named(lora: Repository, adapter: JsonObject, named: str):
    """With the value of the adapter; a value that is the default or equals the adapter's is accepted."""
    start = lora.read()
    facts = start.facts(["q_proj", "v_proj"])
    with pytest.raises(StageError) as raised:
        start_adapter.refuse_contradictions(lora.spec(adapter=adapter), facts, start.modules, adds_tokens=False)
    assert raised.value.reason is Reason.INVALID_SPEC
    assert named in raised.value.message
    for accepted in ({}, {"lora": {"rank": 8, "alpha": 32, "targetModules": ["v_proj", "q_proj"]}}):
        start_adapter.refuse_contradictions(lora.spec(adapter=accepted), facts, start.modules, adds_tokens=False)


def test_tags_that_are_tokens_cannot_become_text(lora: Repository):
    """An adapter with embeddings of added tokens contradicts the mode Text, and one without any takes no new ones."""
    facts = lora.read().facts(["q_proj"])
    with pytest.raises(StageError, match=r"spec\.tokenizer\.mode is Text"):
        start_adapter.refuse_contradictions(lora.spec(tokenizer={"mode": "Text"}), facts, ["q_proj"], adds_tokens=True)
    with pytest.raises(StageError, match=r"spec\.tokenizer would add <a>"):
        start_adapter.refuse_more_tokens(Vocabulary(TokenizerMode.EXTEND, (NewToken(9, "<a>"),)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "ADALORA"}, "has the method ADALORA, whose ranks are final"),
        ({"peft_type": "LOHA"}, "has the method LOHA"),
        ({"use_dora": True}, "has the setting use_dora"),
        ({"modules_to_save": ["lm_head"]}, "has the setting modules_to_save"),
        ({"rank_pattern": {"(a+)+$": 4}}, "has the setting rank_pattern"),
        ({"init_lora_weights": "pissa"}, "has the setting init_lora_weights"),
        ({"some_later_option": [1]}, "has the setting some_later_option"),
        ({"r": 100_000}, "has r 100000 in adapter_config.json"),
        ({"r": True}, "has r True"),
        ({"lora_alpha": None}, "has lora_alpha None"),
        ({"trainable_token_indices": {"embed_tokens": [7], "lm_head": [8]}}, "trainable_token_indices"),
        ({"trainable_token_indices": list(range(1000))}, "trainable_token_indices"),
    ],
)
def test_an_adapter_that_cannot_be_continued_is_refused(lora: Repository, changes: JsonObject, named: str):
    """Every setting that Tunemill does not train with, also one that is not known yet."""
    lora.write("adapter_config.json", LORA | changes)
    failure = lora.failure()
    assert failure.reason is Reason.BASE_MODEL_UNSUPPORTED
    assert named in failure.message


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"base_model_name_or_path": "acme/other"}, "Set spec.baseModel.id to acme/other"),
        ({"revision": "c" * 40}, f"Set spec.baseModel.revision to {'c' * 40}."),
    ],
)
def test_an_adapter_of_another_base_model_is_refused(lora: Repository, changes: JsonObject, remedy: str):
    """By the name, and by the commit if the adapter names one."""
    lora.write("adapter_config.json", LORA | changes)
    failure = lora.failure()
    assert failure.reason is Reason.INVALID_SPEC
    assert remedy in failure.failure.remedy


@pytest.mark.parametrize(
    "changes", [{"base_model_name_or_path": "/data/gemma"}, {"revision": None}, {"revision": "main"}]
)
def test_an_adapter_without_base_model_is_compared_by_its_tensors(lora: Repository, changes: JsonObject):
    """A local path or a branch identifies nothing."""
    lora.write("adapter_config.json", LORA | changes)
    assert lora.read().rows == ()


def test_pickled_weights_are_refused(lora: Repository):
    """They may contain code."""
    lora.weights.rename(lora.folder / "adapter_model.bin")
    failure = lora.failure()
    assert "has no adapter_model.safetensors, only adapter_model.bin, which may contain code" in failure.message


def test_an_invalid_safetensors_file_is_refused(lora: Repository):
    """Whatever its name says."""
    lora.weights.write_bytes(b"\x80\x04" + bytes(100))
    assert "adapter_model.safetensors is not a safetensors file" in lora.failure().message


def test_too_large_files_are_refused_before_they_are_read(lora: Repository):
    """A configuration of gigabytes would fill the memory of prepare."""
    with (lora.folder / "adapter_config.json").open("wb") as file:
        file.truncate(LARGEST_CONFIG + 1)
    assert "has a adapter_config.json of 8 MiB, more than 8 MiB" in lora.failure().message


def test_too_many_files_are_refused(lora: Repository):
    """Each is a request to the Hub."""
    for number in range(40):
        (lora.folder / f"{number}.jinja").touch()
    assert "files of configuration, more than" in lora.failure().message


@pytest.mark.parametrize(
    ("changes", "data", "expected"),
    [
        ({}, "d" * 64, "a" * 40),
        ({}, "e" * 64, "c" * 40),
        ({"publish": {"repository": "acme/other"}}, "d" * 64, "c" * 40),
        ({"baseModel": {"revision": "c" * 40}}, "d" * 64, "c" * 40),
    ],
    ids=["the same rows", "new rows", "another repository", "a pinned commit"],
)
def test_a_scheduled_run_does_not_continue_from_its_own_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: JsonObject, data: str, expected: str
):
    """If the branch has a model trained from the same rows, the adapter that it started from is used."""
    repository = Repository(tmp_path, LORA, LORA_TENSORS)
    (tmp_path / "provenance.json").write_text("{}")
    made = provenance.Origin("d" * 64, "a" * 40)
    monkeypatch.setattr(provenance, "origin_of", lambda _found, _repository: made)
    adapter = {"id": "acme/support-tools", **changes.get("baseModel", {})}
    spec = a_spec(
        baseModel={"id": BASE.id, "adapter": adapter},
        publish=changes.get("publish", {"repository": "acme/support-tools"}),
    )

    class OneFolder(LocalModel):
        """A repository whose commits all have the same files."""

        def resolve(self, revision: str) -> ModelCommit:
            return ModelCommit("acme/support-tools", "c" * 40 if revision == "main" else revision, self._files())

    hub = Hub("", None)
    monkeypatch.setattr(hub, "model", lambda _id, _field: OneFolder(repository.folder.as_uri()))
    found = start_adapter.resolve(spec, hub)
    assert found is not None
    assert start_adapter.read(spec, hub, found, BASE, data).source.revision == expected


def test_other_content_is_another_adapter(lora: Repository):
    """The digest, which is in prepare's key, changes with the weights and the configuration, and with nothing else."""
    first = lora.read().source.digest
    (lora.folder / "README.md").write_text("new")
    assert lora.read().source.digest == first
    lora.write("adapter_config.json", LORA | {"lora_alpha": 16})
    changed = lora.read().source.digest
    save_file({name: np.ones(shape, np.float32) for name, shape in LORA_TENSORS.items()}, lora.weights)
    assert len({first, changed, lora.read().source.digest}) == 3
