"""All four stages through the command line: nothing is done twice, and an edit redoes what depends on it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from learn.machines import Machine
from learn.training import a_world
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base


@contextmanager
def a_machine(folder: Path) -> Iterator[Machine]:
    """Serve a bucket of rows and a Hub with a tiny base of random weights, and write a manifest."""
    with a_world(folder, cached_base("gemma2", steps=0)) as world:
        lines = "".join(json.dumps(row) + "\n" for row in rows(200, seed=5, offered=2, talk=0.15))
        world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=lines.encode())
        spec = world.spec(maxSteps=4).model_dump(mode="json", by_alias=True)
        spec["evaluation"] |= {"maxNewTokens": 20, "gates": []}  # what is learnt is looked at elsewhere
        manifest = {"apiVersion": "tunemill.dev/v1alpha1", "kind": "FunctionCallFineTune"}
        yield Machine(world, folder, [{**manifest, "metadata": {"name": "tools"}, "spec": spec}])


def test_each_edit_redoes_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    """Proves the one idea of the architecture, end to end: a stage whose output is there is never done again."""
    with a_machine(tmp_path) as machine:
        edit_and_run(machine)


def edit_and_run(machine: Machine) -> None:
    """Run everything, then run again after each of several edits."""
    ended, executed = machine.run(cold=True)
    assert ended.code == 0, ended.log
    assert executed == list(Stage)
    assert "exact_match" in ended.log
    pushed = HfApi(endpoint=machine.world.hub_url, token="a-token-of-alice").model_info("acme/tuned")
    assert {"README.md", "adapter_model.safetensors", "chat_template.jinja"} <= {
        file.rfilename for file in pushed.siblings
    }

    ended, executed = machine.run()
    assert (ended.code, executed) == (0, []), ended.log

    machine.spec["publish"]["repository"] = "acme/elsewhere"
    ended, executed = machine.run()
    assert (ended.code, executed) == (0, ["publish"]), ended.log

    machine.spec["training"]["learningRate"] = "4e-3"
    ended, executed = machine.run()
    assert (ended.code, executed) == (0, ["train", "evaluate", "publish"]), ended.log


def test_a_stage_that_fails_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    """Proves that the exit code and the remedy of the stage are what the user gets."""
    with a_machine(tmp_path) as machine:
        machine.spec["dataset"]["uri"] = f"s3://{machine.world.bucket}/no-such-file.jsonl"
        ended, executed = machine.run()
    assert (ended.code, executed) == (66, [])
    assert "ObjectNotFound" in ended.log
    assert "spec.dataset" in ended.log
