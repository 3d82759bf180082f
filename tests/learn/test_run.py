"""All four stages through the command line: outputs are reused, and an edit reruns only dependent stages."""

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
        spec["evaluation"] |= {"maxNewTokens": 20, "gates": []}  # learned metrics are tested elsewhere
        manifest = {"apiVersion": "tunemill.dev/v1alpha1", "kind": "FunctionCallFineTune"}
        yield Machine(world, folder, [{**manifest, "metadata": {"name": "tools"}, "spec": spec}])


def test_each_edit_reruns_only_dependent_stages(tmp_path: Path) -> None:
    """A stage with an existing output is never executed again."""
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


def test_a_failed_stage_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    """With its exit code and remedy."""
    with a_machine(tmp_path) as machine:
        machine.spec["dataset"]["uri"] = f"s3://{machine.world.bucket}/no-such-file.jsonl"
        ended, executed = machine.run()
    assert (ended.code, executed) == (66, [])
    assert "ObjectNotFound" in ended.log
    assert "spec.dataset" in ended.log
