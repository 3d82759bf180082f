"""Publish verifies a release with the real vLLM."""

import json
import shutil
from pathlib import Path

import pytest
from serving.conftest import ROOT
from tunemill_api.failures import Reason
from tunemill_api.publish import ServingTarget
from tunemill_dev.serving.cells import TUNED, questions
from tunemill_dev.serving.engines import environment
from tunemill_dev.serving.training import Trained, trained
from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import BaseModel, Case
from tunemill_trainer.release import servability
from tunemill_trainer.release.artifacts import Artifacts
from tunemill_trainer.release.contract import Contract
from tunemill_trainer.serving.served_proof import check_served

pytestmark = pytest.mark.timeout(900)


def a_release(family: Trained, folder: Path) -> Path:
    """Write the files of a release with the family's adapter."""
    verdict = servability.judge(
        servability.read_adapter(family.adapter, family.base, family.vocabulary), ServingTarget.VLLM
    )
    call_format = family.choice.encoder.call_format
    base = BaseModel(f"acme/{family.base.name}", "ab" * 20)
    contract = Contract(ServingTarget.VLLM, base, Artifacts(f"acme/{TUNED}", "", False), verdict, call_format)
    serving = contract.serving({f"acme/{TUNED}": "main"})
    assert serving is not None
    shutil.copytree(family.adapter, folder)
    content = serving.model_dump(mode="json", by_alias=True) | {"callFormat": call_format.value}
    (folder / "serving.json").write_text(json.dumps(content))
    return folder


def cases(family: Trained) -> list[Case]:
    """The cases as prepare writes them."""
    return [
        Case(
            f"rows:{question.row.source.line}#1",
            at,
            tuple(question.history),
            question.row.tools,
            tuple(family.choice.encoder.prompt_ids(question.history, question.row.tools)),
            question.turn,
            (),
        )
        for at, question in enumerate(questions(family))
    ]


def test_a_release_is_verified_and_one_with_another_template_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The served template is the file in the release. A change that keeps the calls still changes the prompt."""
    for name, value in environment(ROOT / "build" / "vllm").items():
        monkeypatch.setenv(name, value)
    family = trained("Qwen2.5")
    asked = cases(family)
    folder = a_release(family, tmp_path / "release")

    def prove() -> str:
        return check_served(folder, ServingTarget.VLLM, family.base, asked, max_tokens=96, check_stop=lambda: None)

    assert prove() == f"vLLM returned the judged calls for {len(asked)} of {len(asked)} prompts"
    template = folder / "chat_template.jinja"
    template.write_text("Be brief. " + template.read_text())
    with pytest.raises(StageError, match="renders another prompt than training") as raised:
        prove()
    assert raised.value.reason is Reason.PROOF_FAILED
