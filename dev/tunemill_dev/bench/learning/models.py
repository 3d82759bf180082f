"""Fine-tunes and evaluates one model of the benchmark, with the stages that users run."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, StageReport

from tunemill_dev.bench.learning import data
from tunemill_dev.bench.learning.tools import Row

PLAIN, AUTO = "plain", "auto"
_OFF: Mapping[str, Any] = {"shuffleTools": False, "distractorTools": 0, "maskedNames": "0", "irrelevantRows": "0"}
VARIANTS: Mapping[str, Mapping[str, Any] | None] = {
    PLAIN: None,
    AUTO: {},
    "shuffleTools": {**_OFF, "shuffleTools": True},
    "distractorTools": {**_OFF, "distractorTools": 3},
    "maskedNames": {**_OFF, "maskedNames": "0.3"},
    "irrelevantRows": {**_OFF, "irrelevantRows": "0.1"},
}
"""Name → spec.dataset.augmentation."""
_TRAINING = {"epochs": 3, "batchSize": 16, "learningRate": "5e-3", "maxLength": 1024}

Rates = dict[str, float]
"""Set → fraction of right replies."""


def measured(folder: Path, base: Path, variant: str, seed: int) -> Rates:
    """Fine-tune and evaluate one model, in this process."""
    from tunemill_trainer.stages import runner

    work = folder / f"{variant}-{seed}"
    work.mkdir()
    spec: dict[str, Any] = {
        "baseModel": {"id": base.as_uri()},
        "dataset": {"uri": _written(work / "training.jsonl", data.training_rows(seed))},
        "workspace": {"uri": f"{work.as_uri()}/workspace/"},
        "adapter": {"lora": {"rank": 16, "alpha": 32, "dropout": "0"}},
        "training": {**_TRAINING, "seed": seed},
        "evaluation": {
            "maxNewTokens": 160,
            "suites": [
                {"name": name.replace("_", "-"), "uri": _written(work / f"{name}.jsonl", rows), "judge": "Calls"}
                for name, rows in data.questions(seed).items()
            ],
        },
        "publish": {"repository": (work / "result").as_uri()},
        "compute": {"gpus": 0},
    }
    if (augmentation := VARIANTS[variant]) is not None:
        spec["dataset"]["augmentation"] = {**augmentation, "seed": seed}
    run = RunSpec(namespace="bench", name="bench", run_id="bench", local=True, spec=FineTuneSpec.model_validate(spec))
    report = None
    with (work / "log").open("w") as log, redirect_stdout(log):
        for stage in (Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE):
            (work / "run.json").write_text(run.model_dump_json(by_alias=True))
            code = runner.main(stage, work / "run.json", work, work / "report.json")
            report = StageReport.model_validate_json((work / "report.json").read_text())
            if code:
                raise RuntimeError(f"{variant}, seed {seed}: {stage} failed: {report.failure}")
            if report.prepared is not None:
                run = run.model_copy(update={"prepared": report.prepared})
    assert report is not None
    assert report.evaluation is not None
    rates = {suite.name.replace("-", "_"): float(suite.tuned) for suite in report.evaluation.suites}
    shown = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
    print(f"seed {seed}, {variant}: {shown}", file=sys.stderr, flush=True)
    return rates


def _written(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.as_uri()
