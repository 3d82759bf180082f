"""The container contract, implemented by a custom trainer as documented."""

import os
import re
import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi
from learn.training import a_world as serve
from learn.training import run_spec, run_stage
from tunemill_api import keys
from tunemill_api.constants import RUN_SPEC_PATH, TERMINATION_LOG
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage, reports_in
from tunemill_dev.testbed import json_lines
from tunemill_dev.tiny import make_base, rows

SCRIPT = Path(__file__).with_name("foreign_train.py")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-image.md"


def test_a_custom_trainer_replaces_train(tmp_path: Path) -> None:
    """It gets the RunSpec of its pod; evaluate judges its output, and publish pushes and verifies it."""
    with serve(tmp_path / "world", make_base(tmp_path / "base", "gemma2", steps=0)) as world:
        world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=json_lines(rows(60, seed=5)).encode())
        fields = world.spec().model_dump(mode="json", by_alias=True)
        fields["workspace"] = {"uri": f"s3://{world.bucket}/tunemill/", "endpoint": world.s3_url, "region": "us-east-1"}
        fields["tokenizer"]["mode"] = "Text"
        fields["evaluation"] |= {"maxNewTokens": 4, "maxRows": 4, "gates": []}
        spec = FineTuneSpec.model_validate(fields)
        prepared = run_stage(Stage.PREPARE, world, run_spec(spec, None), tmp_path / "prepare").report
        assert prepared is not None
        assert prepared.prepared is not None
        key = keys.train_key(prepared.prepared.key, spec)
        run = run_spec(spec, prepared.prepared).model_copy(update={"keys": {"train": key}})

        run_file, report = tmp_path / "run.json", tmp_path / "report.json"
        run_file.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
        program = wrapper(tmp_path / "bin", run_file, report)
        path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"TUNEMILL_SECRETS_DIR": str(world.secrets), "PATH": path, "OMP_NUM_THREADS": "1"}
        options = ["--run-spec", str(run_file), "--work", str(tmp_path / "work"), "--report", str(report)]
        subprocess.run([program, "stages", "train", "evaluate", *options], env=environment, check=True)
        first, second = reports_in(report.read_text())
        trained, judged = first.trained, second.evaluation
        assert trained is not None
        assert judged is not None, "evaluate is ours, a process of its own in the same container"
        assert (first.key, judged.rows) == (key, 4)
        assert trained.steps == prepared.prepared.dataset.train_rows
        assert trained.adapter == f"s3://{world.bucket}/tunemill/train/{key}/foreign/adapter"

        ours = run_stage(Stage.TRAIN, world, run, tmp_path / "train").report
        assert ours is not None
        assert not ours.executed, "its output counts as train's"
        assert ours.trained == trained
        ended = run_stage(Stage.PUBLISH, world, run, tmp_path / "publish")
        assert ended.code == 0, ended.log
        files = {
            file.rfilename
            for file in HfApi(endpoint=world.hub_url).model_info("acme/tuned", token=token(world.secrets)).siblings
        }
        assert {"adapter_model.safetensors", "tokenizer.json", "README.md", "loss.png"} <= files


def wrapper(folder: Path, run_spec: Path, report: Path) -> Path:
    """Write the program of the page about custom images, with paths of this machine, and return it."""
    (text,) = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for there, here in (
        ("/usr/local/own/train.py", SCRIPT),
        (RUN_SPEC_PATH, run_spec),
        (TERMINATION_LOG, report),
    ):
        assert there in text
        text = text.replace(there, str(here))
    folder.mkdir()
    program = folder / "tunemill-trainer"
    program.write_text(text)
    program.chmod(0o755)
    return program


def token(secrets: Path) -> str:
    """Return the token with read and write access."""
    return (secrets / "hub-write" / "token").read_text()


def test_the_custom_trainer_uses_no_code_of_tunemill() -> None:
    """It imports none of its packages."""
    assert not re.findall(r"^\s*(?:from|import)\s+tunemill", SCRIPT.read_text(), re.MULTILINE)
