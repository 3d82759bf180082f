"""What rows say is in the workspace and nowhere else: canaries are in rows, and what prepare's pod says is searched.

In every place of rows, see `trainer.data.canaries`. What the readers of all formats say is held in
`unit/trainer/data/test_private_rows.py`.
"""

import json
from itertools import islice
from pathlib import Path

import pytest
from learn.training import World, a_world, run_spec, run_stage
from trainer.data.canaries import CANARY, GOOD, rows
from tunemill_api.data import DatasetFormat
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_dev.testbed import json_lines
from tunemill_dev.tiny.cached import cached_base


def good(form: DatasetFormat) -> list[dict]:
    """Return valid rows with different requests."""
    text = json.dumps(GOOD[form])
    return [json.loads(text.replace("Weather?", f"Weather in town {number}?")) for number in range(20)]


def run_prepare(world: World, form: DatasetFormat, data: list[dict], allowed: str, work: Path):
    """Run prepare like a pod; return its exit code, and its output outside of the workspace."""
    world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=json_lines(data).encode())
    fields = world.spec().model_dump(mode="json", by_alias=True)
    fields["dataset"] |= {"format": form.value, "maxInvalidFraction": allowed}
    ended = run_stage(Stage.PREPARE, world, run_spec(FineTuneSpec.model_validate(fields), None), work)
    return ended, ended.log + (work / "report.json").read_text()


@pytest.mark.parametrize("form", [DatasetFormat.OPENAI, DatasetFormat.HERMES, DatasetFormat.ANTHROPIC])
def test_no_text_of_a_row_leaves_the_workspace(tmp_path: Path, form: DatasetFormat) -> None:
    """Neither for skipped rows nor for a failed run; the report in the workspace has the full text."""
    wrong = [row for number, row in enumerate(rows(form)) if number % 5 == 0]
    with a_world(tmp_path / "world", cached_base("gemma2", steps=0)) as world:
        ended, said = run_prepare(world, form, [*good(form), *wrong], "0.99", tmp_path / "allowed")
        assert ended.code == 0, ended.log
        assert ended.report.prepared.dataset.invalid_rows > 5
        assert CANARY not in said
        key = ended.report.prepared.key
        report = world.s3().get_object(Bucket=world.bucket, Key=report_of(world, key))["Body"].read().decode()
        assert CANARY in report

        ended, said = run_prepare(world, form, [*islice(wrong, 1, None), *good(form)], "0", tmp_path / "refused")
        assert ended.report.failure.reason is Reason.DATASET_INVALID_ROWS
        assert "calls.jsonl line " in ended.report.failure.message
        assert CANARY not in said
        uri = ended.report.failure.message.rpartition("All findings are in ")[2]
        failed = world.s3().get_object(Bucket=world.bucket, Key=uri.removeprefix(f"s3://{world.bucket}/"))
        report = json.load(failed["Body"])
        assert report["invalidRows"] > 0
        assert CANARY in json.dumps(report)


def report_of(world: World, key: str) -> str:
    """Return the key of the object that is the data report of an output."""
    listed = world.s3().list_objects_v2(Bucket=world.bucket)["Contents"]
    (found,) = (item["Key"] for item in listed if key in item["Key"] and item["Key"].endswith("report.json"))
    return found
