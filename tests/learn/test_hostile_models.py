"""Malicious model repositories: code next to the weights, pickled weights, commits with path characters."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tunemill_api.failures import Reason
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.chat import tokenizer
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import models
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.storage.hub import Hub

CPU = Device("cpu", "cpu")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny base model with code in its folder that creates the folder `mark` when it runs."""
    folder = tmp_path / "base"
    shutil.copytree(cached_base("gemma2", steps=0), folder)
    code = f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nclass Evil: pass\n"
    for name in ("modeling_evil.py", "tokenization_evil.py", "configuration_evil.py"):
        (folder / name).write_text(code)
    return folder


def change(path: Path, **fields: object) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_code_in_a_model_repository_is_never_executed(base: Path, tmp_path: Path) -> None:
    """The library's classes are used, whatever the configuration says."""
    change(base / "config.json", auto_map=dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling_evil.Evil"))
    change(
        base / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_evil.Evil"] * 2},
        tokenizer_class="Evil",
    )
    assert type(models.load_base(base, CPU, torch.float32)).__name__ == "Gemma2ForCausalLM"
    assert tokenizer.load(base).get_vocab()
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["evil", "custom"])
def test_a_model_that_requires_custom_code_is_refused(base: Path, tmp_path: Path, kind: str) -> None:
    """No field of the spec allows it."""
    change(base / "config.json", model_type=kind, auto_map={"AutoConfig": "configuration_evil.Evil"})
    with pytest.raises(StageError) as error:
        models.load_base(base, CPU, torch.float32)
    assert error.value.reason is Reason.BASE_MODEL_UNSUPPORTED
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_never_loaded(base: Path, tmp_path: Path, name: str) -> None:
    """Nor under another name: only safetensors are loaded."""
    (base / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "mark"), base / name)
    with pytest.raises(StageError) as error:
        models.load_base(base, CPU, torch.float32)
    assert error.value.reason is Reason.BASE_MODEL_UNSUPPORTED
    assert not (tmp_path / "mark").exists()


def test_an_attention_kernel_from_the_hub_is_not_downloaded(base: Path) -> None:
    """A configuration may name a repository of kernels, which are programs."""
    change(base / "config.json", attn_implementation="evil/attention", _attn_implementation="evil/attention")
    with pytest.raises(StageError) as error:
        models.load_base(base, CPU, torch.float32)
    assert error.value.reason is Reason.BASE_MODEL_UNSUPPORTED


def test_only_json_and_safetensors_are_downloaded() -> None:
    """Other files, such as code, are never on the disk."""
    asked: list[list[str]] = []
    reader = SimpleNamespace(download=lambda _commit, patterns: asked.append(patterns) or Path())
    hub = SimpleNamespace(model=lambda _id, _field: reader)
    models.fetch_base(hub, BaseModel("acme/tiny", "c0ffee"), None)
    assert asked == [["*.json", "model*.safetensors"]]
    assert tokenizer.FILES == ["*.json", "*.jinja", "additional_chat_templates/*"]


@pytest.mark.parametrize("commit", ["../../../../etc", "a/b", "", "..", "c0ffee\n", "\u202e1"])
def test_a_commit_that_is_a_path_is_refused(monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
    """It becomes a part of paths, and the server is untrusted."""
    hub = Hub("https://hub.example.com", None)
    info = SimpleNamespace(sha=commit, siblings=[])
    for name in ("model_info", "dataset_info"):
        monkeypatch.setattr(hub.api, name, lambda *_, **__: info)
    monkeypatch.setattr(hub.api, "auth_check", lambda *_, **__: None)
    with pytest.raises(StageError, match="has no commit"):
        hub.model("acme/tiny").resolve("main")
    with pytest.raises(StageError, match="has no commit"):
        hub.resolve_dataset("acme/tiny", "main")
