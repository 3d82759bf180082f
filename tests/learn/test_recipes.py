"""The recipes among the samples, run by `tunemill-trainer run` on small base models of the same architectures.

Each sample is read from its file, so that what users copy is what is tested. Only where things lie is changed, and what
a million parameters on one core need: a higher learning rate, and steps for minutes instead of hours.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import HfApi
from learn.figures import at_least, at_most
from learn.machines import Machine
from learn.training import BASE, World, a_world
from tunemill_api.constants import KIND
from tunemill_dev.testbed import SAMPLES, json_lines
from tunemill_dev.tiny.cached import cached_base
from tunemill_dev.tiny.recipes import function_gemma, instruction_rows, search_rows, thinking_rows
from tunemill_trainer.judge.report import Share

EPOCHS = 8


def a_sample(name: str, world: World, folder: Path, dataset: dict[str, Any], **training: object) -> Machine:
    """Return a machine with a sample whose data and base model lie in this world.

    Args:
        name: the sample's file.
        world: where everything is.
        folder: to work in.
        dataset: where the rows are.
        training: what is changed in spec.training for a small model.
    """
    objects = list(yaml.safe_load_all((SAMPLES / f"{name}.yaml").read_text()))
    assert objects[0]["kind"] == KIND
    spec = objects[0]["spec"]
    server = {"endpoint": world.s3_url, "region": "us-east-1"}
    spec["hub"] = {"endpoint": world.hub_url}
    spec["baseModel"]["id"] = BASE
    spec["dataset"] |= {**server, **dataset}
    spec["workspace"] = {**server, "uri": f"s3://{world.bucket}/tunemill/"}
    spec["training"] |= {"precision": "Auto", **training}
    spec["compute"] = {"gpus": 0}
    return Machine(world, folder, objects)


def a_dataset(world: World, name: str, files: dict[str, bytes]) -> str:
    """Put a data set on the Hub and return its uri."""
    api = HfApi(endpoint=world.hub_url, token=(world.secrets / "hub-write" / "token").read_text())
    api.create_repo(f"acme/{name}", repo_type="dataset")
    for path, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=f"acme/{name}", repo_type="dataset")
    return f"hf://acme/{name}"


def share(figure: Share | None) -> float:
    """Return what was measured."""
    assert figure is not None
    return figure.share


def files_of(world: World, repository: str) -> set[str]:
    """Return what was published."""
    found = HfApi(endpoint=world.hub_url, token=(world.secrets / "hub-write" / "token").read_text())
    return {file.rfilename for file in found.model_info(repository).siblings or ()}


@pytest.mark.learns
def test_the_agents_course_is_learnt(tmp_path: Path, seed: int) -> None:
    """A Gemma 2 that never saw a tag thinks, acts, observes and answers, with tags as new tokens."""
    with a_world(tmp_path, cached_base("gemma2")) as world:
        rows = json_lines(thinking_rows(900, seed=21)).encode()
        world.s3().put_object(Bucket=world.bucket, Key="thinking/rows.jsonl", Body=rows)
        uri = f"s3://{world.bucket}/thinking/"
        machine = a_sample("agents-course", world, tmp_path, {"uri": uri}, learningRate="5e-3", seed=seed)
        ended, _ = machine.run()
        assert ended.returncode == 0, ended.stdout
        metrics = machine.report().metrics
        assert share(metrics["exact_match"].base) == 0
        at_least("exact match", share(metrics["exact_match"].tuned), 0.4)
        at_least("abstention", share(metrics["abstention_accuracy"].tuned), 0.8)
        thoughtful = [line["tuned"]["text"].startswith("<think>") for line in machine.lines("evaluation/cases.jsonl")]
        at_least("replies with a thought", sum(thoughtful) / len(thoughtful), 0.8)
        name = machine.spec["publish"]["repository"]
        assert {"adapter_model.safetensors", "README.md"} <= files_of(world, name)
        assert "model.safetensors" in files_of(world, f"{name}-merged")


@pytest.mark.learns
def test_the_functiongemma_guide_is_learnt(tmp_path: Path, seed: int) -> None:
    """A Gemma 3 with FunctionGemma's tags and template learns which search to call, and each epoch is measured."""
    with a_world(tmp_path, function_gemma(tmp_path / "base")) as world:
        rows = {"train.jsonl": json_lines(search_rows(240, seed=22)).encode()}
        dataset = {"uri": a_dataset(world, "simple-tool-calling", rows)}
        machine = a_sample("functiongemma", world, tmp_path, dataset, learningRate="1e-3", seed=seed)
        ended, _ = machine.run()
        assert ended.returncode == 0, ended.stdout
        report = machine.report()
        assert report.settings.reply_format == "functiongemma"
        assert share(report.metrics["tool_name_accuracy"].base) == 0
        at_least("correct tool", share(report.metrics["tool_name_accuracy"].tuned), 0.75)
        at_least("exact match", share(report.metrics["exact_match"].tuned), 0.5)
        losses = [line["held_out_loss"] for line in machine.lines("trained/held-out.jsonl")]
        assert len(losses) == EPOCHS
        at_most("share of the first epoch's loss", losses[-1] / losses[0], 0.5)
        assert {"model.safetensors", "serving.json"} <= files_of(world, machine.spec["publish"]["repository"])


@pytest.mark.learns
def test_plain_instructions_are_learnt(tmp_path: Path, seed: int) -> None:
    """Rows without a tool teach answers to the letter, in the turns of a template of the user's own."""
    with a_world(tmp_path, cached_base("gemma2")) as world:
        folder = "data/everyday-conversations"
        parts = {"train": instruction_rows(700, seed=23), "test": instruction_rows(60, seed=24)}
        tables = {name: pa.BufferOutputStream() for name in parts}
        for name, drawn in parts.items():
            pq.write_table(pa.Table.from_pylist(drawn), tables[name])
        files = {f"{folder}/{name}-00000-of-00001.parquet": bytes(tables[name].getvalue()) for name in parts}
        uri = a_dataset(world, "smoltalk", files)
        dataset = {"uri": f"{uri}/{folder}/train-*.parquet", "evaluation": {"uri": f"{uri}/{folder}/test-*.parquet"}}
        machine = a_sample("instructions", world, tmp_path, dataset, learningRate="2e-3", maxSteps=200, seed=seed)
        ended, _ = machine.run()
        assert ended.returncode == 0, ended.stdout
        lines = machine.lines("evaluation/cases.jsonl")
        right = {side: [line[side]["text"] == line["gold"]["content"] for line in lines] for side in ("base", "tuned")}
        assert sum(right["base"]) == 0
        at_least("answers to the letter", sum(right["tuned"]) / len(lines), 0.5)
        published = files_of(world, machine.spec["publish"]["repository"])
        assert {"model.safetensors", "chat_template.jinja"} <= published
