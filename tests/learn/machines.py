"""One machine without a cluster: a manifest, and `tunemill-trainer run` with it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from learn.training import World
from tunemill_trainer.judge.report import Report


@dataclass
class Machine:
    """A machine, the services that it reaches, and the objects of the manifest, the FunctionCallFineTune first."""

    world: World
    folder: Path
    objects: list[dict[str, Any]]

    @property
    def spec(self) -> dict[str, Any]:
        """The wish, to be changed."""
        return self.objects[0]["spec"]

    def run(self) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run `tunemill-trainer run` and return how it ended, and which stages it executed."""
        path = self.folder / "finetune.yaml"
        path.write_text(yaml.safe_dump_all(self.objects))
        ended = subprocess.run(
            [sys.executable, "-m", "tunemill_trainer", "run", str(path), "--work", str(self.folder / "work")],
            env=os.environ | {"TUNEMILL_SECRETS_DIR": str(self.world.secrets), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        summary = ended.stdout.rpartition("STAGE ")[2].splitlines()
        return ended, [line.split()[0] for line in summary if "executed" in line]

    def report(self) -> Report:
        """Return what the last run's evaluate found."""
        return Report.model_validate_json((self._work / "evaluation" / "report.json").read_text())

    def lines(self, file: str) -> list[dict[str, Any]]:
        """Return the lines of a file that the last run's stages left."""
        return [json.loads(line) for line in (self._work / file).read_text().splitlines()]

    @property
    def _work(self) -> Path:
        return self.folder / "work" / self.objects[0]["metadata"]["name"]
