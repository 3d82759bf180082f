"""Several ranks train and evaluate like one: gloo on the CPU, one process per rank."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from learn.group import Group, in_ranks
from learn.machines import Machine
from learn.rank_tasks import train_all, train_with_a_small_device, wait_for_a_rank_that_hangs
from learn.tasks import Task, a_task
from learn.training import World, a_world, run_spec, run_stage
from safetensors.torch import load_file
from tunemill_api import keys
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, reports_in
from tunemill_dev.cluster.ports import free_ports
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.learn.memory_settings import Checkpointing
from tunemill_trainer.process.ranks import ENV_PEER_TIMEOUT, Ranks


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A base with random weights whose vocabulary is extended by the tags."""
    return a_task(cached_base("qwen3", steps=0), tmp_path_factory.mktemp("raw"))


@pytest.mark.parametrize(("count", "batch"), [(2, 16), (3, 2)], ids=["two ranks", "a rank without a row"])
def test_several_ranks_train_like_one(raw: Task, tmp_path: Path, count: int, batch: int) -> None:
    """Losses, gradient norms, metrics and weights do not depend on the number of ranks, for each method."""
    alone = train_all(Ranks(), raw, tmp_path / "alone", batch)
    together = in_ranks(count, train_all, raw, tmp_path / "together", batch)
    for name, expected in alone.items():
        for trained in (each[name] for each in together):
            for one, other in zip(trained.figures, expected.figures, strict=True):
                assert one == pytest.approx(other, rel=1e-5), name
            assert trained.held_out == pytest.approx(expected.held_out, rel=1e-5), name
            assert trained.weights.keys() == expected.weights.keys()
            for parameter, tensor in trained.weights.items():
                torch.testing.assert_close(tensor, expected.weights[parameter], rtol=1e-5, atol=1e-5, msg=name)
        for parameter, tensor in together[0][name].weights.items():
            assert all(torch.equal(tensor, each[name].weights[parameter]) for each in together), "the ranks drift apart"


def test_only_the_rank_with_an_oom_repeats_its_passes(raw: Task, tmp_path: Path) -> None:
    """All ranks then continue with its settings, which are in the checkpoint."""
    alone, _, _ = train_with_a_small_device(Ranks(), raw, tmp_path / "alone")
    together = in_ranks(2, train_with_a_small_device, raw, tmp_path / "together")
    assert [failed for _, _, failed in together] == [0, 1]
    for losses, checkpointing, _ in together:
        assert losses == pytest.approx(alone, rel=1e-5)
        assert checkpointing is Checkpointing.SELECTIVE


@dataclass(frozen=True)
class Prepared:
    """A run after prepare, and the services around it."""

    world: World
    run: RunSpec

    def trained(self, into: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
        """Return the log of the training and its adapter."""
        self.world.workspace().fetch(Stage.TRAIN, self.train_key, into)
        log = [json.loads(line) for line in (into / "training.jsonl").read_text().splitlines()]
        return log, load_file(into / "adapter" / "adapter_model.safetensors")

    def replies(self, into: Path) -> list[tuple[str, str]]:
        """Return the replies of both models to each case."""
        key = keys.evaluate_key(self.train_key, self.run.spec)
        self.world.workspace().fetch(Stage.EVALUATE, key, into)
        lines = [json.loads(line) for line in (into / "cases.jsonl").read_text().splitlines()]
        return [(line["base"]["text"], line["tuned"]["text"]) for line in lines]

    def checkpoints(self) -> list[str]:
        """Return the steps of the checkpoints in the workspace."""
        prefix = f"tunemill/train/{self.train_key}/checkpoints/"
        listed = self.world.s3().list_objects_v2(Bucket=self.world.bucket, Prefix=prefix).get("Contents", [])
        return sorted({item["Key"].removeprefix(prefix).split("-")[0].lstrip("0") for item in listed})

    @property
    def train_key(self) -> str:
        """The key of the adapter."""
        assert self.run.prepared is not None
        return keys.train_key(self.run.prepared.key, self.run.spec)


ALL_STEPS = 10


@contextmanager
def served_rows(folder: Path) -> Iterator[tuple[World, FineTuneSpec]]:
    """Serve a few rows, and return the spec of ten steps with a checkpoint after every fourth."""
    with a_world(folder, cached_base("gemma2", steps=0)) as world:
        lines = "".join(json.dumps(row) + "\n" for row in rows(60, seed=5, offered=2, talk=0.15))
        world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=lines.encode())
        spec = world.spec(maxSteps=ALL_STEPS, checkpoint={"everySteps": 4}, lora={"dropout": "0"})
        changed = {"max_new_tokens": 12, "gates": []}
        yield world, spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update=changed)})


@contextmanager
def prepared_run(folder: Path) -> Iterator[Prepared]:
    """Run prepare on them."""
    with served_rows(folder) as (world, spec):
        ended = run_stage(Stage.PREPARE, world, run_spec(spec, None), folder / "prepare")
        assert ended.code == 0, ended.log
        assert ended.report is not None
        yield Prepared(world, run_spec(spec, ended.report.prepared))


@dataclass(frozen=True)
class Expected:
    """The results of one undisturbed pod."""

    log: list[dict]
    adapter: dict[str, torch.Tensor]
    replies: list[tuple[str, str]]

    def check(self, prepared: Prepared, folder: Path) -> None:
        """Fail unless the training in the workspace is the same."""
        log, adapter_weights = prepared.trained(folder)
        assert len(log) == len(self.log)
        for one, other in zip(log, self.log, strict=True):
            figures = ("step", "loss", "grad_norm", "mean_token_accuracy", "learning_rate")
            assert [one[name] for name in figures] == pytest.approx([other[name] for name in figures], rel=1e-5)
        for name, tensor in adapter_weights.items():
            torch.testing.assert_close(tensor, self.adapter[name], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """One pod trains and evaluates."""
    folder = tmp_path_factory.mktemp("alone")
    with prepared_run(folder) as prepared:
        for stage in (Stage.TRAIN, Stage.EVALUATE):
            ended = run_stage(stage, prepared.world, prepared.run, folder / stage)
            assert ended.code == 0, ended.log
        log, weights = prepared.trained(folder / "trained")
        return Expected(log, weights, prepared.replies(folder / "replies"))


def test_several_pods_train_and_evaluate_like_one(tmp_path: Path, alone: Expected) -> None:
    """Log, adapter and replies are those of one pod, and only rank 0 reports."""
    with prepared_run(tmp_path) as prepared:
        group = Group(prepared.world, prepared.run, tmp_path)
        for stage in (Stage.TRAIN, Stage.EVALUATE):
            ended = group.stage(stage, 2)
            assert [each.code for each in ended] == [0, 0], "".join(each.log for each in ended)
            assert all(each.report and each.report.failure is None for each in ended)
        assert "INFO" not in ended[1].log
        alone.check(prepared, tmp_path / "trained")
        assert prepared.replies(tmp_path / "replies") == alone.replies
        assert prepared.checkpoints() == []


def test_a_stop_request_to_one_rank_stops_all_after_the_same_step(tmp_path: Path, alone: Expected) -> None:
    """SIGTERM to rank 1 leaves one checkpoint, from which another number of ranks can resume."""
    with prepared_run(tmp_path) as prepared:
        group = Group(prepared.world, prepared.run, tmp_path)
        ended = group.stage(Stage.TRAIN, 2, at_checkpoint(4, 1, signal.SIGTERM))
        assert [each.code for each in ended] == [ExitCode.INTERRUPTED] * 2, "".join(each.log for each in ended)
        steps = [int(step) for step in prepared.checkpoints()]
        assert len(steps) == 2
        assert steps[0] == 4
        assert all(f"stopped after step {steps[1]} of {ALL_STEPS}" in each.report.failure.message for each in ended)
        resumed = group.stage(Stage.TRAIN, 3)
        assert [each.code for each in resumed] == [0] * 3, "".join(each.log for each in resumed)
        assert resumed[0].report.trained.resumed_from_step == steps[1]
        alone.check(prepared, tmp_path / "trained")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_others_at_once(tmp_path: Path, alone: Expected, killed: int) -> None:
    """They exit with PeerLost, and one pod resumes from the checkpoint of the group."""
    with prepared_run(tmp_path) as prepared:
        group = Group(prepared.world, prepared.run, tmp_path)
        ended = group.stage(Stage.TRAIN, 2, at_checkpoint(4, killed, signal.SIGKILL))
        other = ended[1 - killed]
        assert ended[killed].code == -signal.SIGKILL
        assert other.code == ExitCode.PEER_LOST, other.log
        assert other.report.failure.reason is Reason.PEER_LOST
        resumed = run_stage(Stage.TRAIN, prepared.world, prepared.run, tmp_path / "resumed")
        assert resumed.code == 0, resumed.log
        assert resumed.report.trained.resumed_from_step >= 4
        alone.check(prepared, tmp_path / "trained")


def at_checkpoint(step: int, rank: int, number: int):
    """Return a watch that sends a signal to a rank when the checkpoint of a step is in the workspace."""
    return lambda line: (rank, number) if f"the checkpoint of step {step} to" in line else None


def test_one_machine_trains_with_the_ranks_of_all_nodes(tmp_path: Path, alone: Expected) -> None:
    """`tunemill run` starts the ranks of the manifest, which share one download."""
    with served_rows(tmp_path) as (world, spec):
        fields = spec.model_dump(mode="json", by_alias=True)
        fields["compute"]["nodes"] = 2
        manifest = {"apiVersion": "tunemill.dev/v1alpha1", "kind": "FunctionCallFineTune"}
        machine = Machine(world, tmp_path, [{**manifest, "metadata": {"name": "tools"}, "spec": fields}])
        ended, _ = machine.run()
        assert ended.code == 0, ended.log
        assert ended.log.count("2 ranks, 2 on each node") == 2
        losses = [entry["loss"] for entry in machine.lines("trained/training.jsonl")]
        assert losses == pytest.approx([entry["loss"] for entry in alone.log], rel=1e-5)
        cases = machine.lines("evaluation/cases.jsonl")
        assert [(case["base"]["text"], case["tuned"]["text"]) for case in cases] == alone.replies


@pytest.mark.long
def test_pods_start_their_ranks_with_the_command_of_the_operator(tmp_path: Path, alone: Expected) -> None:
    """In new Python processes: the program of the container, a process per rank, both stages."""
    with prepared_run(tmp_path) as prepared:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        pods = []
        for rank in range(2):
            work = tmp_path / f"pod-{rank}"
            work.mkdir()
            (work / "run.json").write_text(prepared.run.model_dump_json(by_alias=True))
            options = ["--run-spec", str(work / "run.json"), "--work", str(work), "--report", str(work / "report")]
            variables = {
                "TUNEMILL_NODES": "2",
                "TUNEMILL_NODE_RANK": str(rank),
                "TUNEMILL_COORDINATOR": address,
                "TUNEMILL_SECRETS_DIR": str(prepared.world.secrets),
            }
            command = [sys.executable, "-m", "tunemill_trainer", "stages", "train", "evaluate", *options]
            with (work / "log").open("w") as log:
                pods.append(subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=subprocess.STDOUT))
        codes = [pod.wait(180) for pod in pods]
        logs = [(tmp_path / f"pod-{rank}" / "log").read_text() for rank in range(2)]
        assert codes == [0, 0], "\n".join(logs)
        assert "2 ranks, 1 on each node" in logs[0]
        for rank in range(2):
            reports = list(reports_in((tmp_path / f"pod-{rank}" / "report").read_text()))
            assert [report.stage for report in reports] == [Stage.TRAIN, Stage.EVALUATE]
        alone.check(prepared, tmp_path / "trained")
        assert prepared.replies(tmp_path / "replies") == alone.replies


def test_a_hanging_rank_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do not wait forever."""
    monkeypatch.setattr("learn.group.ENVIRONMENT", {ENV_PEER_TIMEOUT: "5"})
    assert "rank 0 lost another rank while adding gradients" in in_ranks(2, wait_for_a_rank_that_hangs, 12.0)[0]
