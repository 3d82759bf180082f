"""`tunemill run` takes the manifest of `kubectl apply`, and reports its mistakes."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tunemill_api.constants import CHAT_TEMPLATE_PATH, TOOLS_PATH
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage, StageFailure, StageReport, failure_of
from tunemill_api.status import EvaluationFacts, MetricFacts, PublishedFacts, ServingFacts, SuiteFacts, TrainedFacts
from tunemill_trainer.commands import manifest as manifests
from tunemill_trainer.commands import run as one_machine
from tunemill_trainer.errors import StageError
from tunemill_trainer.stages import config_maps, runner

SMALLEST = """
apiVersion: tunemill.dev/v1alpha1
kind: FunctionCallFineTune
metadata: {name: support-tools, namespace: team-a}
spec:
  baseModel: {id: google/gemma-2-2b-it}
  dataset: {uri: "s3://team-a-data/calls.jsonl"}
  publish: {repository: acme/support-tools}
"""


def manifest(folder: Path, text: str) -> Path:
    """Write a manifest."""
    path = folder / "finetune.yaml"
    path.write_text(text)
    return path


def test_the_smallest_manifest_gets_all_defaults(tmp_path: Path) -> None:
    """A minimal manifest for the cluster is enough for one machine."""
    run = manifests.load(manifest(tmp_path, SMALLEST)).run
    assert (run.namespace, run.name, run.prepared) == ("team-a", "support-tools", None)
    assert run.spec.training.learning_rate == "Auto"


def test_other_objects_in_the_file_are_ignored(tmp_path: Path) -> None:
    """For example a Secret."""
    both = "kind: Secret\napiVersion: v1\n---\n" + SMALLEST + "\n---\n"
    assert manifests.load(manifest(tmp_path, both)).run.name == "support-tools"


def test_outputs_are_stored_in_the_same_namespace_folder_as_by_the_cluster(tmp_path: Path) -> None:
    """A laptop and a cluster with the same manifest reuse each other's outputs."""
    run = manifests.load(manifest(tmp_path, SMALLEST)).run
    assert run.spec.workspace.uri == "s3://team-a-data/tunemill/team-a/"


def test_config_maps_of_the_file_are_used_like_mounted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare reports a missing one."""
    monkeypatch.setenv(config_maps.ENV_CONFIG_DIRECTORY, str(tmp_path / "config"))
    config_map = 'kind: ConfigMap\nmetadata: {name: support}\ndata: {schema: \'[{"name": "f"}]\'}\n---\n'
    tools = "  tools: {configMapKeyRef: {name: support, key: schema}}\n"
    template = "  tokenizer: {chatTemplate: {configMapKeyRef: {name: absent, key: x}}}\n"
    path = manifest(tmp_path, config_map + SMALLEST + tools + template)
    manifests.load(path).write_config(tmp_path / "config")
    assert config_maps.read(TOOLS_PATH, "spec.tools", Reason.INVALID_SPEC) == '[{"name": "f"}]'
    with pytest.raises(StageError) as raised:
        config_maps.read(CHAT_TEMPLATE_PATH, "spec.tokenizer.chatTemplate", Reason.INVALID_CHAT_TEMPLATE)
    assert raised.value.reason is Reason.CONFIG_MAP_NOT_FOUND
    assert "spec.tokenizer.chatTemplate" in raised.value.message


def test_suites_and_general_rows_can_be_local_files(tmp_path: Path) -> None:
    """Relative paths start at the folder of the manifest, also within lists."""
    data = "dataset: {uri: ./calls.jsonl, replay: {uri: ./chat.jsonl}}"
    suites = (
        "  evaluation: {suites: [{name: chat, uri: ./test.jsonl, judge: Likelihood}, "
        "{name: own, uri: 's3://team-a-data/own.jsonl', judge: Calls}]}\n"
    )
    text = SMALLEST.replace('dataset: {uri: "s3://team-a-data/calls.jsonl"}', data) + suites
    spec = manifests.load(manifest(tmp_path, text)).run.spec
    assert spec.dataset.replay is not None
    assert spec.dataset.replay.uri == (tmp_path / "chat.jsonl").as_uri()
    assert [suite.uri for suite in spec.evaluation.suites] == [
        (tmp_path / "test.jsonl").as_uri(),
        "s3://team-a-data/own.jsonl",
    ]


def test_data_on_the_hub_requires_a_workspace(tmp_path: Path) -> None:
    """The rule of the CRD applies without an API server."""
    with pytest.raises(StageError) as raised:
        manifests.load(manifest(tmp_path, SMALLEST.replace("s3://team-a-data/calls.jsonl", "hf://acme/calls")))
    assert "spec.workspace.uri is needed" in raised.value.message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spec": {"training": {"learningrate": "1"}}}, "spec.training.learningrate"),
        ({"spec": {"adapter": {"lora": {"rank": 0}}}}, "spec.adapter.lora.rank"),
        ({"spec": {"training": {"batchSize": "many"}}}, "spec.training.batchSize"),
        ({"spec": {"publish": None}}, "spec.publish"),
        ({"metadata": {"name": None}}, "metadata.name"),
        ({"kind": "Deployment"}, "FunctionCallFineTune"),
        ({"apiVersion": "tunemill.dev/v9"}, "tunemill.dev/v1alpha1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_invalid_field_is_reported_with_its_path(tmp_path: Path, change: dict, named: str) -> None:
    """Unknown fields and invalid values are InvalidSpec."""
    value = yaml.safe_load(SMALLEST)
    for key, part in change.items():
        value[key] = {**value[key], **part} if isinstance(part, dict) else part
    with pytest.raises(StageError) as error:
        manifests.load(manifest(tmp_path, yaml.safe_dump(value)))
    assert error.value.reason == Reason.INVALID_SPEC
    assert named in error.value.message


@pytest.mark.parametrize("text", ["", "{", "- a\n- b\n"])
def test_an_invalid_manifest_is_reported_in_one_sentence(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 64."""
    assert one_machine.run(manifest(tmp_path, text), tmp_path / "work") == 64
    assert "InvalidSpec" in capsys.readouterr().err


def test_a_missing_manifest_is_reported_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a traceback."""
    assert one_machine.run(tmp_path / "typo.yaml", tmp_path / "work") == 64
    assert "typo.yaml" in capsys.readouterr().err


def test_the_summary_has_stages_metrics_and_location() -> None:
    """It is the last output of a run."""
    now = datetime.now(UTC)
    metric = MetricFacts(name="exact_match", base="0.0000", tuned="0.9300", cases=40)
    common = {"key": "k", "started_at": now, "finished_at": now}
    serving = ServingFacts(target="vLLM", merged=False, adapter_servable=True, command="vllm serve a-base")
    suite = SuiteFacts(
        name="chat", judge="Likelihood", base="2.5000", tuned="2.6000", difference="+0.1000", rows=7, cases=9
    )
    text = one_machine.summary(
        [
            StageReport(stage=Stage.PREPARE, **common),
            StageReport(
                stage=Stage.TRAIN,
                executed=True,
                trained=TrainedFacts(steps=1, loss="0.1", train_seconds=1, device="cpu", adapter="s3://b/adapter"),
                **common,
            ),
            StageReport(
                stage=Stage.EVALUATE, evaluation=EvaluationFacts(rows=40, metrics=[metric], suites=[suite]), **common
            ),
            StageReport(
                stage=Stage.PUBLISH,
                published=PublishedFacts(repository="acme/tools", revision="abc", serving=serving),
                **common,
            ),
        ]
    )
    assert "prepare    nothing" in text
    assert "train      executed" in text
    assert "0.9300" in text
    assert re.search(r"chat +Likelihood +2.5000 +2.6000 +\+0.1000 +9", text)
    assert "s3://b/adapter" in text
    assert "acme/tools@abc" in text
    assert "vllm serve a-base" in text


def ends_with(monkeypatch: pytest.MonkeyPatch, published: PublishedFacts | StageFailure) -> None:
    """Let all stages succeed at once, or publish fail with the given failure."""
    now = datetime.now(UTC)
    facts: dict[Stage, dict[str, Any]] = {
        Stage.TRAIN: {
            "trained": TrainedFacts(steps=1, loss="0.1", train_seconds=1, device="cpu", adapter="s3://b/adapter")
        },
        Stage.EVALUATE: {
            "evaluation": EvaluationFacts(
                rows=40, metrics=[MetricFacts(name="exact_match", base="0.0000", tuned="0.9300", cases=40)]
            )
        },
        Stage.PUBLISH: {"failure" if isinstance(published, StageFailure) else "published": published},
    }

    def ended(stage: Stage, _run: object, _work: Path, *, log_to_stderr: bool) -> one_machine._Ended:
        report = StageReport(stage=stage, executed=True, started_at=now, finished_at=now, **facts.get(stage, {}))
        return one_machine._Ended(64 if report.failure else 0, report, interrupted=False)

    monkeypatch.setattr(one_machine, "_run_stage", ended)


def test_a_draft_is_not_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipeline stops at a draft as at a missed gate, and the summary names it a draft."""
    draft = PublishedFacts(repository="acme/tools", revision="abc", branch="tunemill-draft-1234", draft=True)
    ends_with(monkeypatch, draft)
    assert one_machine.run(manifest(tmp_path, SMALLEST), tmp_path / "work") == 64
    assert "draft, because a gate is not passed: acme/tools@abc" in capsys.readouterr().out


def test_a_missed_gate_is_reported_with_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary is printed when the last stage fails, with the exit code of the failure."""
    ends_with(monkeypatch, failure_of(Reason.GATE_NOT_PASSED, "not passed"))
    assert one_machine.run(manifest(tmp_path, SMALLEST), tmp_path / "work") == 64
    assert "0.9300" in capsys.readouterr().out


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    """They become absolute, also with spaces and patterns, and outputs have a separate folder."""
    value = yaml.safe_load(SMALLEST)
    value["spec"] |= {"baseModel": {"id": "../models/a b"}, "dataset": {"uri": "./rows/*.jsonl"}}
    value["spec"]["publish"]["repository"] = str(tmp_path / "result")
    (tmp_path / "team").mkdir()
    run = manifests.load(manifest(tmp_path / "team", yaml.safe_dump(value))).run
    base = tmp_path.as_uri()
    assert (run.local, run.spec.base_model.id) == (True, f"{base}/models/a%20b")
    assert run.spec.dataset.uri == f"{base}/team/rows/*.jsonl"
    assert run.spec.publish.repository == f"{base}/result"
    assert run.spec.workspace.uri == f"{base}/team/tunemill/team-a/"


def test_a_pod_rejects_file_uris(tmp_path: Path) -> None:
    """In a cluster file:// is InvalidSpec: a pod contains credentials."""
    run = manifests.load(manifest(tmp_path, SMALLEST.replace("s3://team-a-data/calls.jsonl", "/var/run/secrets/"))).run
    path = tmp_path / "run.json"
    path.write_text(run.model_copy(update={"local": False}).model_dump_json(by_alias=True))
    assert runner.main(Stage.PREPARE, path, tmp_path / "work", tmp_path / "report.json") == 64
    failure = StageReport.model_validate_json((tmp_path / "report.json").read_text()).failure
    assert failure.reason == Reason.INVALID_SPEC
    assert "spec.dataset.uri" in failure.message
