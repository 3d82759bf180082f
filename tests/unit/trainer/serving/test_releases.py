"""An engine gets the flags of the contract in the release's folder."""

import json
from pathlib import Path

import pytest
from tunemill_api.failures import ExitCode
from tunemill_api.publish import ServingTarget
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.release.artifacts import Artifacts
from tunemill_trainer.release.contract import Contract
from tunemill_trainer.release.servability import Verdict
from tunemill_trainer.serving.errors import ServingError
from tunemill_trainer.serving.releases import launch_of

BASE = BaseModel("google/gemma-2-2b-it", "ab" * 20)
SERVABLE = Verdict((), 16)
REFUSED = Verdict(("it contains rows for added tokens",), 16)


def a_release(folder: Path, contract: Contract, revision: str = "c0ffee", *, adapter: bool) -> Path:
    """Write the files of a release that say how to serve it."""
    folder.mkdir(parents=True)
    served = contract.serving({contract.served: revision})
    assert served is not None
    value = served.model_dump(mode="json", by_alias=True) | {"callFormat": contract.call_format.value}
    (folder / "serving.json").write_text(json.dumps(value))
    if adapter:
        config = {"base_model_name_or_path": BASE.place, "revision": BASE.revision, "r": 16, "peft_type": "LORA"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def contract_of(adapter: str, whole: str, verdict: Verdict = SERVABLE, target: str = "vLLM") -> Contract:
    """The contract of a release."""
    return Contract(ServingTarget(target), BASE, Artifacts(adapter, whole, False), verdict, ReplyFormat.HERMES)


def test_an_adapter_is_served_with_the_command_of_the_contract(tmp_path):
    """The command is identical."""
    contract = contract_of((tmp_path / "tools").as_uri(), "")
    folder = a_release(tmp_path / "tools" / "releases" / "c0ffee", contract, adapter=True)
    assert launch_of(folder).command() == contract.launch("c0ffee").command()


def test_a_full_model_has_no_adapter_flags(tmp_path):
    """From the folder that it was downloaded to."""
    contract = contract_of("", "acme/tools")
    folder = a_release(tmp_path / "downloaded", contract, adapter=False)
    launch = launch_of(folder)
    assert (launch.model, launch.revision, launch.served_name) == (str(folder), "", "tools")
    assert "--enable-lora" not in launch.command()


def test_a_full_model_can_be_started_with_the_other_engine(tmp_path):
    """The name of vLLM's parser follows from the call format."""
    folder = a_release(tmp_path / "release", contract_of("", "acme/tools", target="Transformers"), adapter=False)
    assert launch_of(folder).command() == f"transformers serve {folder}"
    assert "--tool-call-parser hermes" in launch_of(folder, ServingTarget.VLLM).command()


@pytest.mark.parametrize(
    ("whole", "verdict", "engine", "remedy"),
    [
        ("acme/tools-merged", REFUSED, None, "added tokens; serve the merged model acme/tools-merged@c0ffee"),
        ("", SERVABLE, ServingTarget.TRANSFORMERS, "full models only; add Merged"),
    ],
)
def test_an_adapter_that_the_engine_cannot_load_is_reported(tmp_path, whole, verdict, engine, remedy):
    """The message has the remedy."""
    folder = a_release(tmp_path / "release", contract_of("acme/tools", whole, verdict), adapter=True)
    with pytest.raises(ServingError, match=remedy) as raised:
        launch_of(folder, engine)
    assert raised.value.code == ExitCode.SPEC_WRONG


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no serving.json"), ("{", "cannot be read"), ("[]", "must be a JSON object"), ("{}", "lacks adapterS")],
)
def test_a_folder_without_a_valid_contract_is_reported(tmp_path, content, message):
    """Another folder, or an invalid file."""
    if content is not None:
        (tmp_path / "serving.json").write_text(content)
    with pytest.raises(ServingError, match=message):
        launch_of(tmp_path)
