"""The recipes among the samples, run by `tunemill run` on small base models of the same architectures.

Each sample is read from its file, so that what users copy is what is tested. Only where things lie is changed, and what
a million parameters on one core need: a higher learning rate, and steps for minutes instead of hours. Each sample runs
for a few steps in `make test`, and until the model can do it in `make test-long`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
from tunemill_api.stage_report import Stage
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
    """Return a measured share."""
    assert figure is not None
    return figure.share


def files_of(world: World, repository: str) -> set[str]:
    """Return the published files."""
    found = HfApi(endpoint=world.hub_url, token=(world.secrets / "hub-write" / "token").read_text())
    return {file.rfilename for file in found.model_info(repository).siblings or ()}


@contextmanager
def the_agents_course(folder: Path, rows: int, **training: object) -> Iterator[Machine]:
    """Serve a Gemma 2 that never saw a tag, and rows that think, act, observe and answer."""
    with a_world(folder, cached_base("gemma2")) as world:
        lines = json_lines(thinking_rows(rows, seed=21)).encode()
        world.s3().put_object(Bucket=world.bucket, Key="thinking/rows.jsonl", Body=lines)
        yield a_sample("agents-course", world, folder, {"uri": f"s3://{world.bucket}/thinking/"}, **training)


@contextmanager
def plain_instructions(folder: Path, rows: int, **training: object) -> Iterator[Machine]:
    """Serve a Gemma 2, and rows without tools as files for training and for evaluation."""
    with a_world(folder, cached_base("gemma2")) as world:
        place = "data/everyday-conversations"
        parts = {"train": instruction_rows(rows, seed=23), "test": instruction_rows(60, seed=24)}
        tables = {name: pa.BufferOutputStream() for name in parts}
        for name, drawn in parts.items():
            pq.write_table(pa.Table.from_pylist(drawn), tables[name])
        files = {f"{place}/{name}-00000-of-00001.parquet": bytes(tables[name].getvalue()) for name in parts}
        uri = a_dataset(world, "smoltalk", files)
        dataset = {"uri": f"{uri}/{place}/train-*.parquet", "evaluation": {"uri": f"{uri}/{place}/test-*.parquet"}}
        yield a_sample("instructions", world, folder, dataset, **training)


def test_the_agents_course_recipe_runs(tmp_path: Path) -> None:
    """Its rows, tags as new tokens, and both repositories. The learned metrics are in the long test."""
    with the_agents_course(tmp_path, 60, maxSteps=2) as machine:
        machine.spec["evaluation"] = {"maxRows": 4, "maxNewTokens": 8, "gates": []}
        ended, executed = machine.run()
        assert (ended.code, executed) == (0, list(Stage)), ended.log
        gold = [line["gold"] for line in machine.lines("evaluation/cases.jsonl")]
        assert any(answer.get("calls") for answer in gold)
        name = machine.spec["publish"]["repository"]
        assert {"adapter_model.safetensors", "README.md"} <= files_of(machine.world, name)
        assert "model.safetensors" in files_of(machine.world, f"{name}-merged")


@pytest.mark.long
@pytest.mark.learns
def test_the_agents_course_recipe_learns_its_task(tmp_path: Path, seed: int) -> None:
    """Reasoning, calls and replies, with tags as new tokens."""
    with the_agents_course(tmp_path, 900, learningRate="5e-3", seed=seed) as machine:
        ended, _ = machine.run()
        assert ended.code == 0, ended.log
        metrics = machine.report().metrics
        assert share(metrics["exact_match"].base) == 0
        at_least("exact match", share(metrics["exact_match"].tuned), 0.4)
        at_least("abstention", share(metrics["abstention_accuracy"].tuned), 0.8)
        thoughtful = [line["tuned"]["text"].startswith("<think>") for line in machine.lines("evaluation/cases.jsonl")]
        at_least("replies with a thought", sum(thoughtful) / len(thoughtful), 0.8)


@contextmanager
def the_functiongemma_guide(folder: Path, rows: int, **training: object) -> Iterator[Machine]:
    """Serve a Gemma 3 with FunctionGemma's tags and template, and requests for one of two searches."""
    with a_world(folder, function_gemma(folder / "base")) as world:
        files = {"train.jsonl": json_lines(search_rows(rows, seed=22)).encode()}
        dataset = {"uri": a_dataset(world, "simple-tool-calling", files)}
        yield a_sample("functiongemma", world, folder, dataset, **training)


def test_the_functiongemma_recipe_runs(tmp_path: Path) -> None:
    """Tools of a ConfigMap, the base model's call format, a held-out loss for each epoch, and a full model."""
    with the_functiongemma_guide(tmp_path, 24, epochs=2) as machine:
        machine.spec["evaluation"] = {"maxRows": 4, "maxNewTokens": 8, "gates": []}
        ended, executed = machine.run()
        assert (ended.code, executed) == (0, list(Stage)), ended.log
        assert machine.report().settings.reply_format == "functiongemma"
        assert len(machine.lines("trained/held-out.jsonl")) == 2
        assert {"model.safetensors", "serving.json"} <= files_of(machine.world, machine.spec["publish"]["repository"])


@pytest.mark.long
@pytest.mark.learns
def test_the_functiongemma_recipe_learns_its_task(tmp_path: Path, seed: int) -> None:
    """The model learns which search to call, and each epoch is measured."""
    with the_functiongemma_guide(tmp_path, 240, learningRate="1e-3", seed=seed) as machine:
        ended, _ = machine.run()
        assert ended.code == 0, ended.log
        report = machine.report()
        assert share(report.metrics["tool_name_accuracy"].base) == 0
        at_least("correct tool", share(report.metrics["tool_name_accuracy"].tuned), 0.75)
        at_least("exact match", share(report.metrics["exact_match"].tuned), 0.5)
        losses = [line["held_out_loss"] for line in machine.lines("trained/held-out.jsonl")]
        assert len(losses) == EPOCHS
        at_most("share of the first epoch's loss", losses[-1] / losses[0], 0.5)


def test_the_plain_instructions_recipe_runs(tmp_path: Path) -> None:
    """Parquet files of the Hub by pattern, a user template, and a full model that is published."""
    with plain_instructions(tmp_path, 60, maxSteps=2) as machine:
        machine.spec["evaluation"] |= {"maxRows": 4, "maxNewTokens": 8}
        ended, executed = machine.run()
        assert (ended.code, executed) == (0, list(Stage)), ended.log
        answers = {row["messages"][1]["content"] for row in instruction_rows(60, seed=24)}
        lines = machine.lines("evaluation/cases.jsonl")
        assert len(lines) == 4
        assert {line["gold"]["content"] for line in lines} <= answers
        published = files_of(machine.world, machine.spec["publish"]["repository"])
        assert {"model.safetensors", "chat_template.jinja"} <= published


@pytest.mark.long
@pytest.mark.learns
def test_the_plain_instructions_recipe_learns_its_task(tmp_path: Path, seed: int) -> None:
    """Rows without tools teach exact answers, in the turns of a user template."""
    with plain_instructions(tmp_path, 700, learningRate="2e-3", maxSteps=200, seed=seed) as machine:
        ended, _ = machine.run()
        assert ended.code == 0, ended.log
        lines = machine.lines("evaluation/cases.jsonl")
        right = {side: [line[side]["text"] == line["gold"]["content"] for line in lines] for side in ("base", "tuned")}
        assert sum(right["base"]) == 0
        at_least("answers to the letter", sum(right["tuned"]) / len(lines), 0.5)
