"""A machine without a cluster: a manifest, and `tunemill run` with it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from learn.training import Ended, World, executed, run_command
from tunemill_trainer.judge.report import Report


@dataclass
class Machine:
    """A machine, its services, and the objects of the manifest, the FunctionCallFineTune first."""

    world: World
    folder: Path
    objects: list[dict[str, Any]]

    @property
    def spec(self) -> dict[str, Any]:
        """The spec, which can be changed."""
        return self.objects[0]["spec"]

    def run(self, *, cold: bool = False) -> tuple[Ended, list[str]]:
        """Run `tunemill run`, `cold` as in run_command; return its result and the executed stages."""
        path = self.folder / "finetune.yaml"
        path.write_text(yaml.safe_dump_all(self.objects))
        arguments = ["run", str(path), "--work", str(self.folder / "work")]
        ended = run_command(arguments, {"TUNEMILL_SECRETS_DIR": str(self.world.secrets)}, cold=cold)
        return ended, executed(ended.log)

    def report(self) -> Report:
        """Return the report of the last run's evaluate."""
        return Report.model_validate_json((self._work / "evaluation" / "report.json").read_text())

    def lines(self, file: str) -> list[dict[str, Any]]:
        """Return the lines of a file written by the last run's stages."""
        return [json.loads(line) for line in (self._work / file).read_text().splitlines()]

    @property
    def _work(self) -> Path:
        return self.folder / "work" / self.objects[0]["metadata"]["name"]
