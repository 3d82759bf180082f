"""Runs prepared and trained by the real stages, for tests of evaluate and publish."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from learn.training import Ended, World, a_world, run_spec, run_stage
from tunemill_api import keys
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import PreparedFacts
from tunemill_dev.cluster.home import locked
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base

SEED = 42
"""Of every training, unless `--training-seed` says another: with each one it must learn as well."""


@dataclass(frozen=True)
class Recipe:
    """What a trained run is made of.

    Attributes:
        kind: the base model's architecture.
        tags: what its vocabulary has from the start.
        mode: spec.tokenizer.mode; with Extend, a base without tags gets them.
        training: fields of spec.training. With these, a small base model makes nearly all calls exactly right.
    """

    kind: str
    tags: tuple[str, ...] = ()
    mode: str = "Auto"
    training: dict[str, Any] = field(default_factory=lambda: {"maxSteps": 140, "learningRate": "1e-2", "seed": SEED})

    def with_seed(self, seed: int) -> "Recipe":
        """The same training with another seed."""
        return Recipe(self.kind, self.tags, self.mode, self.training | {"seed": seed})

    @property
    def key(self) -> str:
        """A folder name that is unique for the recipe."""
        return f"{self.kind}-{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]}"

    def spec(self, world: World) -> FineTuneSpec:
        """The run's spec. A quarter of the rows is held out: 144 calls, and 27 requests that expect none."""
        spec = world.spec(
            lora={"rank": 16, "dropout": "0"}, **{"batchSize": 16, "maxLength": 512, **self.training}
        ).model_dump(mode="json", by_alias=True)
        spec["tokenizer"]["mode"] = self.mode
        spec["dataset"]["evaluation"]["fraction"] = "0.25"
        return FineTuneSpec.model_validate(spec)


@dataclass(frozen=True)
class TrainedRun:
    """A run after train, with its services."""

    world: World
    run: RunSpec
    folder: Path

    @property
    def api(self) -> HfApi:
        """The Hub's API with the token of the repository's owner."""
        token = (self.world.secrets / "hub-write" / "token").read_text()
        return HfApi(endpoint=self.world.hub_url, token=token)

    @property
    def train_key(self) -> str:
        """The key of the adapter."""
        assert self.run.prepared is not None
        return keys.train_key(self.run.prepared.key, self.run.spec)

    def changed(self, **parts: dict) -> "TrainedRun":
        """The same run with fields of spec.publish, spec.evaluation and so on changed."""
        spec = self.run.spec.model_dump(mode="json", by_alias=True)
        for part, fields in parts.items():
            spec[part] |= fields
        run = RunSpec.model_validate(self.run.model_dump(mode="json", by_alias=True) | {"spec": spec})
        return TrainedRun(self.world, run, self.folder)

    def stage(self, stage: Stage, watch: Callable[[str], int | None] = lambda _line: None) -> Ended:
        """Run a stage like a new pod; `watch` as in run_stage."""
        number = len(list(self.folder.glob("pod-*")))
        return run_stage(stage, self.world, self.run, self.folder / f"pod-{number}", watch=watch)


@contextmanager
def a_trained_run(folder: Path, recipe: Recipe) -> Iterator[TrainedRun]:
    """Prepare 720 rows of two tools each, and train on them."""
    with a_world(folder / "world", cached_base(recipe.kind, recipe.tags)) as world:
        lines = "".join(json.dumps(row) + "\n" for row in rows(720, seed=11, offered=2, talk=0.2))
        world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=lines.encode())
        spec = recipe.spec(world)
        prepared = run_stage(Stage.PREPARE, world, run_spec(spec, None), folder / "prepare")
        assert prepared.code == 0, prepared.log
        assert prepared.report is not None
        run = TrainedRun(world, run_spec(spec, prepared.report.prepared), folder)
        trained = run_stage(Stage.TRAIN, world, run.run, folder / "train")
        assert trained.code == 0, trained.log
        yield run


@contextmanager
def a_shared_run(folder: Path, shared: Path, recipe: Recipe) -> Iterator[TrainedRun]:
    """Return a copy of a trained and evaluated run, which the first caller of this test run makes for all.

    Args:
        folder: for the copy of this caller.
        shared: a folder that all processes of the test run have in common.
        recipe: what it is made of.
    """
    saved = shared / recipe.key
    with locked(saved.with_suffix(".lock")):
        if not saved.exists():
            unfinished = saved.with_suffix(".unfinished")
            with a_trained_run(folder / "original", recipe) as run:
                judged = run.stage(Stage.EVALUATE)
                assert judged.code == 0, judged.log
                _save(run, unfinished)
            unfinished.rename(saved)
    shutil.copytree(saved / "hub", folder / "world" / "hub")
    with a_world(folder / "world", None, bucket=(saved / "bucket").read_text()) as world:
        for path in (path for path in (saved / "objects").rglob("*") if path.is_file()):
            key = str(path.relative_to(saved / "objects"))
            world.s3().put_object(Bucket=world.bucket, Key=key, Body=path.read_bytes())
        prepared = PreparedFacts.model_validate_json((saved / "prepared.json").read_text())
        yield TrainedRun(world, run_spec(recipe.spec(world), prepared), folder)


def _save(run: TrainedRun, folder: Path) -> None:
    """Save the services' content of a run."""
    shutil.copytree(run.folder / "world" / "hub", folder / "hub")
    s3, bucket = run.world.s3(), run.world.bucket
    (folder / "bucket").write_text(bucket)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page["Contents"]:
            path = folder / "objects" / item["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
    assert run.run.prepared is not None
    (folder / "prepared.json").write_text(run.run.prepared.model_dump_json(by_alias=True))
