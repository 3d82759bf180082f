"""A run that is prepared and trained by the real stages: what evaluate and publish start from."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from learn.training import Ended, World, a_world, run_spec, run_stage
from tunemill_api import keys
from tunemill_api.data import Tokenizer, TokenizerMode
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base

STEPS = 140
"""With these settings a tiny base makes most calls exactly right."""


@dataclass(frozen=True)
class TrainedRun:
    """A run after train, with the services around it."""

    world: World
    run: RunSpec
    folder: Path

    @property
    def api(self) -> HfApi:
        """The Hub as its owner sees it."""
        token = (self.world.secrets / "hub-write" / "token").read_text()
        return HfApi(endpoint=self.world.hub_url, token=token)

    @property
    def train_key(self) -> str:
        """Of the adapter."""
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
        """Run a stage as a new pod does; `watch` as in run_stage."""
        number = len(list(self.folder.glob("pod-*")))
        return run_stage(stage, self.world, self.run, self.folder / f"pod-{number}", watch=watch)


@contextmanager
def a_trained_run(folder: Path, kind: str, *, tags: tuple[str, ...] = (), mode: str = "Auto") -> Iterator[TrainedRun]:
    """Make a base, prepare 600 rows of two tools each, and train on them; with Auto, a base without tags gets them."""
    base = cached_base(kind, tags)
    with a_world(folder / "world", base) as world:
        lines = "".join(json.dumps(row) + "\n" for row in rows(600, seed=11, offered=2, talk=0.15))
        world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=lines.encode())
        spec = world.spec(
            lora={"rank": 16, "dropout": "0"}, maxSteps=STEPS, batchSize=16, learningRate="1e-2", maxLength=512
        )
        spec = spec.model_copy(update={"tokenizer": Tokenizer(mode=TokenizerMode(mode))})
        prepared = run_stage(Stage.PREPARE, world, run_spec(spec, None), folder / "prepare")
        assert prepared.code == 0, prepared.log
        assert prepared.report is not None
        run = TrainedRun(world, run_spec(spec, prepared.report.prepared), folder)
        trained = run_stage(Stage.TRAIN, world, run.run, folder / "train")
        assert trained.code == 0, trained.log
        yield run
