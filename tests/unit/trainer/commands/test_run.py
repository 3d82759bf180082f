"""The manifest of `kubectl apply` is what `tunemill run` takes, with its mistakes named."""

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
    """Proves that a manifest needs nothing for one machine that it does not need for the cluster."""
    run = manifests.load(manifest(tmp_path, SMALLEST)).run
    assert (run.namespace, run.name, run.prepared) == ("team-a", "support-tools", None)
    assert run.spec.training.learning_rate == "Auto"


def test_other_objects_in_the_file_are_passed_over(tmp_path: Path) -> None:
    """A file with a Secret and the object works."""
    both = "kind: Secret\napiVersion: v1\n---\n" + SMALLEST + "\n---\n"
    assert manifests.load(manifest(tmp_path, both)).run.name == "support-tools"


def test_the_outputs_go_where_the_cluster_puts_those_of_the_namespace(tmp_path: Path) -> None:
    """Proves that a laptop and a cluster with one manifest find each other's outputs."""
    run = manifests.load(manifest(tmp_path, SMALLEST)).run
    assert run.spec.workspace.uri == "s3://team-a-data/tunemill/team-a/"


def test_config_maps_of_the_file_are_what_a_pod_has_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that a manifest with its ConfigMaps needs no cluster; one that is not there is left to prepare to tell."""
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


def test_suites_and_general_rows_may_be_files_of_this_machine(tmp_path: Path) -> None:
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


def test_data_on_the_hub_needs_a_workspace_of_its_own(tmp_path: Path) -> None:
    """Proves that the rule of the CRD holds without an API server."""
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
def test_a_mistake_is_named_by_its_path(tmp_path: Path, change: dict, named: str) -> None:
    """Proves that unknown fields and wrong values end in InvalidSpec with the field."""
    value = yaml.safe_load(SMALLEST)
    for key, part in change.items():
        value[key] = {**value[key], **part} if isinstance(part, dict) else part
    with pytest.raises(StageError) as error:
        manifests.load(manifest(tmp_path, yaml.safe_dump(value)))
    assert error.value.reason == Reason.INVALID_SPEC
    assert named in error.value.message


@pytest.mark.parametrize("text", ["", "{", "- a\n- b\n"])
def test_what_is_no_manifest_gives_a_sentence(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves that the command line prints what is wrong and exits with 64."""
    assert one_machine.run(manifest(tmp_path, text), tmp_path / "work") == 64
    assert "InvalidSpec" in capsys.readouterr().err


def test_a_manifest_that_is_not_there_gives_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Proves that a mistyped path gives no traceback."""
    assert one_machine.run(tmp_path / "typo.yaml", tmp_path / "work") == 64
    assert "typo.yaml" in capsys.readouterr().err


def test_the_summary_says_what_was_done_how_good_it_is_and_where_it_lies() -> None:
    """Proves what a user sees at the end."""
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
    """Let all stages end at once: well, but for publish when it is given a failure."""
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


def test_a_draft_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Proves that a pipeline stops at a draft as at any gate that is not passed, and that the summary calls it one."""
    draft = PublishedFacts(repository="acme/tools", revision="abc", branch="tunemill-draft-1234", draft=True)
    ends_with(monkeypatch, draft)
    assert one_machine.run(manifest(tmp_path, SMALLEST), tmp_path / "work") == 64
    assert "draft, because a gate is not passed: acme/tools@abc" in capsys.readouterr().out


def test_who_misses_a_gate_sees_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Proves that the summary comes also when the last stage fails, with the exit code of the failure."""
    ends_with(monkeypatch, failure_of(Reason.GATE_NOT_PASSED, "not passed"))
    assert one_machine.run(manifest(tmp_path, SMALLEST), tmp_path / "work") == 64
    assert "0.9300" in capsys.readouterr().out


def test_paths_start_at_the_manifest(tmp_path: Path) -> None:
    """Proves that paths become absolute, blanks and patterns included, and that outputs have a place of their own."""
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


def test_a_pod_reads_no_files_of_its_own(tmp_path: Path) -> None:
    """Proves that the spec of an object that says file:// ends in InvalidSpec: there are credentials in a pod."""
    run = manifests.load(manifest(tmp_path, SMALLEST.replace("s3://team-a-data/calls.jsonl", "/var/run/secrets/"))).run
    path = tmp_path / "run.json"
    path.write_text(run.model_copy(update={"local": False}).model_dump_json(by_alias=True))
    assert runner.main(Stage.PREPARE, path, tmp_path / "work", tmp_path / "report.json") == 64
    failure = StageReport.model_validate_json((tmp_path / "report.json").read_text()).failure
    assert failure.reason == Reason.INVALID_SPEC
    assert "spec.dataset.uri" in failure.message
