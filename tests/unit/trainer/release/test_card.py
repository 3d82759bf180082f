"""The model card, and the folder that is published."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models
from tunemill_api.evaluation import Judge
from tunemill_api.finetune import Quantization
from tunemill_api.publish import ServingTarget
from tunemill_api.run_spec import RunSpec
from tunemill_api.status import (
    DatasetFacts,
    EvaluationFacts,
    GateFacts,
    MetricFacts,
    PreferenceFacts,
    PreparedFacts,
    SuiteFacts,
    TrainedFacts,
)
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.report import MetricReport, Report, Right, Settings, Share
from tunemill_trainer.prepared import BaseModel, NewToken, Tokens
from tunemill_trainer.release.artifacts import Artifacts
from tunemill_trainer.release.card import ReleaseFacts, hub_dataset, model_card
from tunemill_trainer.release.contract import Contract
from tunemill_trainer.release.folder import assemble
from tunemill_trainer.release.servability import Verdict

SECRETS = ("s3://secret-bucket", "s3.internal.example", "team-a", "hf-write", "hf-read")


ADAPTER = BaseModel("acme/week-1", "abcdef0123" * 4, {"adapter_model.safetensors": "ad" * 32})
"""An adapter to start from."""


def facts(
    *added: str,
    publish: dict | None = None,
    dataset: dict | None = None,
    training: dict | None = None,
    whole: bool = False,
    adapter_from: BaseModel | None = None,
) -> ReleaseFacts:
    """The content of a card, for a run whose spec has locations that a card must not contain."""
    start = {"adapter": {"id": adapter_from.id}} if adapter_from else {}
    base = BaseModel("google/gemma-2-2b-it", "0123456789abcdef" * 2 + "01234567")
    adapter, merged = "acme/support-tools", "acme/support-tools-merged"
    places = Artifacts(adapter, merged if added else "", report=False) if not whole else Artifacts("", adapter, False)
    verdict = Verdict(("it contains rows for added tokens",) if added else (), 32)
    contract = Contract(ServingTarget.VLLM, base, places, verdict, ReplyFormat.HERMES)
    revisions = {adapter: "main", merged: "decade"}
    spec = {
        "baseModel": {"id": "google/gemma-2-2b-it", "tokenSecretRef": {"name": "hf-read"}, **start},
        "dataset": dataset or {"uri": "s3://secret-bucket/calls.jsonl", "endpoint": "https://s3.internal.example"},
        "publish": {"repository": "acme/support-tools", **(publish or {})},
        **({"training": training} if training else {}),
    }
    data = DatasetFacts(
        format="OpenAI",
        rows=120,
        train_rows=100,
        evaluation_rows=20,
        tools=4,
        longest_row_tokens=300,
        supervised_token_percent="31.2",
    )
    shares = {
        "base": Share(hits=2, share=0.1, low=0.0279, high=0.301),
        "tuned": Share(hits=16, share=0.8, low=0.584, high=0.9193),
    }
    return ReleaseFacts(
        run=RunSpec(namespace="team-a", name="tools", run_id="7f3a9c", spec=spec),
        base=base,
        tokens=Tokens(
            mode="Extend" if added else "Reuse",
            added=tuple(NewToken(1000 + at, token) for at, token in enumerate(added)),
            stop_token_ids=(107, 1),
            pad_token_id=0,
            vocabulary=1000 + len(added),
        ),
        prepared=PreparedFacts(
            key="0" * 16, base_model_revision="0" * 40, dataset_digest="ab" * 32, tokenizer_mode="Reuse", dataset=data
        ),
        trained=TrainedFacts(
            steps=13,
            loss="0.1",
            first_loss="2.3",
            train_seconds=60,
            device="NVIDIA H200",
            adapter="s3://secret-bucket/tunemill/train/0/adapter",
        ),
        evaluation=EvaluationFacts(
            rows=20,
            metrics=[
                MetricFacts(name="exact_match", base="0.1000", tuned="0.8000", cases=20),
                MetricFacts(name="abstention_accuracy"),
            ],
            report="s3://secret-bucket/tunemill/evaluate/0/report.json",
        ),
        report=Report(
            rows=20,
            cases=22,
            settings=Settings(max_rows=500, max_new_tokens=96, precision="bfloat16", device="NVIDIA H200"),
            metrics={
                "exact_match": MetricReport(cases=20, **shares),
                "abstention_accuracy": MetricReport(cases=0, base=None, tuned=None),
            },
            right=Right(base=2, tuned=16, p_value=0.0001),
            tools={},
            base_confusion={},
            tuned_confusion={},
        ),
        gates=(GateFacts(gate="exact_match >= 0.5", passed=True, message="base 0.1000, tuned 0.8000, 20 cases"),),
        repository=adapter,
        whole=whole,
        serving=contract.serving(revisions),
        launch=contract.launch(revisions[contract.served]),
        license={"license": "gemma"},
        adapter=adapter_from,
    )


def model(folder: Path) -> Path:
    """Write the files from which a release starts: weights, tokenizer, chat template."""
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{% if add_generation_prompt %}<model>{% endif %}")
    Tokenizer(models.WordLevel({"<end>": 107, "<eos>": 1}, unk_token="<eos>")).save(str(folder / "tokenizer.json"))
    return folder


def outputs(folder: Path) -> tuple[Path, Path]:
    """Write the outputs of train and evaluate."""
    trained, evaluation = folder / "trained", folder / "evaluation"
    trained.mkdir()
    evaluation.mkdir()
    (trained / "training.jsonl").write_text('{"step": 1, "epoch": 1.0, "loss": 0.5}\n')
    (evaluation / "report.html").write_text("<html>")
    return trained, evaluation


def metadata(card: str) -> dict:
    """Return the YAML metadata of a card."""
    return yaml.safe_load(card.split("---")[1])


def test_the_metadata_is_complete():
    """The fields by which the Hub classifies an adapter, and the metrics for its leaderboards."""
    found = metadata(model_card(facts()))
    assert found["base_model"] == "google/gemma-2-2b-it"
    assert found["base_model_relation"] == "adapter"
    assert found["library_name"] == "peft"
    assert found["pipeline_tag"] == "text-generation"
    (result,) = found["model-index"][0]["results"]
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("exact_match", 0.8)]


def with_suite(about: ReleaseFacts) -> ReleaseFacts:
    """Return the facts with the result of a suite that was read from a private place."""
    suite = SuiteFacts(
        name="chat", judge=Judge.LIKELIHOOD, base="2.5000", tuned="2.6000", difference="+0.1000", rows=7, cases=9
    )
    private = {"name": "chat", "uri": "hf://team-a/secret-rows", "judge": "Likelihood"}
    run = about.run.model_dump(mode="json", by_alias=True)
    run["spec"]["evaluation"]["suites"] = [private]
    evaluation = about.evaluation.model_copy(update={"suites": [suite]})
    return replace(about, run=RunSpec.model_validate(run), evaluation=evaluation)


def test_a_suite_is_in_the_card_without_its_location():
    """The card of a run without suites does not mention them."""
    card = model_card(with_suite(facts()))
    row = (
        "| chat | Loss of the expected answers, nats per token (lower is better) | 2.5000 | **2.6000** | +0.1000 | 9 |"
    )
    assert row in card
    assert "secret-rows" not in card
    assert card.replace(card[card.index("Other data sets") : card.index("Gates of this")], "") == model_card(facts())


def test_general_rows_are_in_the_card():
    """Their number, and not where they are."""
    data = facts().prepared.dataset.model_copy(update={"replay_rows": 11})
    card = model_card(replace(facts(), prepared=facts().prepared.model_copy(update={"dataset": data})))
    assert "100 and 11 general ones for training, 20 held out" in card


def test_preference_training_is_in_the_card():
    """With its pairs, both results and what was kept, or why nothing was trained."""
    found = PreferenceFacts(prompts=90, pairs=31, cases=40, exact_before="0.5000", loss_before="0.2", note="too few")
    texts = []
    for result in (
        found,
        found.model_copy(
            update={"steps": 4, "learning_rate": "1e-05", "exact_after": "0.6", "loss_after": "0.3", "kept": True}
        ),
    ):
        about = facts(training={"preference": {}})
        card = model_card(replace(about, trained=about.trained.model_copy(update={"preference": result})))
        texts.append(next(line for line in card.splitlines() if line.startswith("| Preference training")))
    assert texts[0] == "| Preference training | DPO, 31 wrong answers to 90 training prompts; too few |"
    assert texts[1].endswith("0.5000 before and 0.6 after, loss 0.2 and 0.3; kept |")


def test_a_draft_is_marked_in_the_introduction():
    """With the gates that failed."""
    missed = GateFacts(gate="exact_match >= 0.9", passed=False, message="base 0.1000, tuned 0.8000, 20 cases")
    card = model_card(replace(facts(), gates=(*facts().gates, missed)))
    introduction = card.split("## Evaluation")[0]
    assert "This is a draft, not a release" in introduction
    assert "> - `exact_match >= 0.9` (base 0.1000, tuned 0.8000, 20 cases)" in introduction
    assert "exact_match >= 0.5" not in introduction
    assert "draft" in metadata(card)["tags"]
    assert "draft" not in model_card(facts())


def test_the_card_can_be_parsed():
    """huggingface_hub parses it without warnings, including the evaluation results."""
    card = ModelCard(model_card(facts()))
    assert [result.metric_value for result in card.data.eval_results or []] == [0.8]


def test_the_quantization_of_the_base_model_is_shown():
    """The metrics are those of the quantized weights."""
    run = facts().run
    spec = run.spec.model_copy(
        update={"base_model": run.spec.base_model.model_copy(update={"quantization": Quantization.NF4})}
    )
    quantised = replace(facts(), run=run.model_copy(update={"spec": spec}))
    assert ", quantized to NF4 in training and evaluation |" in model_card(quantised)
    assert "quantized to" not in model_card(facts())


def test_the_augmentation_of_the_training_rows_is_shown():
    """Its settings, and how many rows it added; nothing without it."""
    augmented = facts(dataset={"uri": "hf://acme/calls", "augmentation": {"maskedNames": "0.5", "shuffleTools": False}})
    row = "| Augmentation | up to 3 tools of other rows, masked names in 50 % of the rows, seed 42; 0 rows added |"
    assert row in model_card(augmented)
    assert "Augmentation" not in model_card(facts())


def test_the_start_adapter_is_named_with_its_commit_and_metrics():
    """In the introduction, the training settings and the table; without one, the card does not change."""
    plain, card = model_card(facts()), model_card(facts(adapter_from=ADAPTER))
    assert f"[acme/week-1](https://huggingface.co/acme/week-1) (commit `{ADAPTER.revision[:12]}`)" in card
    assert f"| Continued from | acme/week-1 at `{ADAPTER.revision}` |" in card
    assert "| | base | adapter | tuned | 95 % interval | cases |\n|---|---:|---:|---:|---:|---:|" in card
    assert "| | base | tuned | 95 % interval | cases |\n|---|---:|---:|---:|---:|" in plain
    assert "Continued from" not in plain


def test_metrics_are_shown_with_base_and_interval():
    """With the confidence interval and the number of cases."""
    card = model_card(facts())
    assert "| Exact match (`exact_match`) | 0.1000 | **0.8000** | 0.584 to 0.919 | 20 |" in card
    assert "`abstention_accuracy`" not in card
    assert "`exact_match >= 0.5`: passed" in card
    assert "NVIDIA H200" in card


def test_the_card_has_no_private_locations():
    """No bucket, server, namespace or Secret, because the repository may be public."""
    card = model_card(facts("<tool_call>"))
    assert not [secret for secret in SECRETS if secret in card]


@pytest.mark.parametrize(
    "name", ["mit\n---\n# Buy", "x: {y", "- &a *a", "!!python/object/apply:os.system [id]", "<script>"]
)
def test_a_license_cannot_break_the_metadata(name):
    """The base model's card is untrusted: it cannot add fields, end the block or add text."""
    card = model_card(replace(facts(), license={"license": "other", "license_name": name}))
    begin, block, text = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    assert yaml.safe_load(block) == metadata(model_card(facts())) | {"license": "other", "license_name": name}
    assert begin == ""
    assert text.startswith("\n\n# ")


def test_the_license_is_the_base_models():
    """It is inherited if the base model has one."""
    assert metadata(model_card(facts()))["license"] == "gemma"
    assert "license" not in metadata(model_card(replace(facts(), license={})))


@pytest.mark.parametrize("uri", ["s3://hospital-hiv/calls.jsonl", "hf://acme/hospital-hiv@v2/calls-hiv.jsonl"])
def test_the_name_of_private_data_is_not_in_the_repository(tmp_path, uri):
    """Neither a bucket nor a private data set: a name can reveal too much."""
    of_private = facts(dataset={"uri": uri})
    assert "datasets" not in metadata(model_card(of_private))
    folder = model(tmp_path / "release")
    assemble(folder, of_private, *outputs(tmp_path))
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert (folder / "README.md").read_bytes() in texts
    assert not any(word in text for text in texts for word in (b"hiv", b"hospital"))


def test_a_public_data_set_of_the_hub_is_linked():
    """Public names are shown."""
    assert metadata(model_card(replace(facts(), public_dataset="acme/calls")))["datasets"] == ["acme/calls"]


def test_the_data_set_of_a_uri():
    """With or without revision and path. A bucket is not a data set."""
    assert hub_dataset("hf://acme/calls") == "acme/calls"
    assert hub_dataset("hf://datasets/acme/calls@v2/data/*.parquet") == "acme/calls"
    assert hub_dataset("s3://bucket/calls.jsonl") == ""


def test_a_servable_adapter_has_its_command():
    """The server loads it with its base model, and with the smallest rank that is large enough."""
    card = model_card(facts())
    assert "--max-lora-rank 32" in card
    assert "--lora-modules support-tools=./support-tools" in card


def test_an_unservable_adapter_refers_to_the_merged_model():
    """With the reason, the repository and the command."""
    card = model_card(facts("<tool_call>", "</tool_call>"))
    assert "it contains rows for added tokens" in card
    assert "vllm serve acme/support-tools-merged" in card
    assert "--revision decade" in card
    assert "--enable-lora" not in card


def test_a_full_model_is_loaded_without_peft():
    """The card has other code, and the metadata a different relation."""
    card = model_card(facts(whole=True))
    assert metadata(card)["base_model_relation"] == "finetune"
    assert metadata(card)["library_name"] == "transformers"
    assert "model = AutoModelForCausalLM.from_pretrained(repository" in card
    assert "peft" not in card


def test_the_code_loads_the_published_revision():
    """The tag if there is one, otherwise the branch."""
    assert 'revision = "acme/support-tools", "v1"' in model_card(facts(publish={"tag": "v1"}))
    assert 'revision = "acme/support-tools", "trial"' in model_card(facts(publish={"branch": "trial"}))


def test_the_same_facts_give_the_same_folder(tmp_path: Path):
    """Byte for byte, including pictures: otherwise a repeated push would be a new commit."""
    trained, evaluation = outputs(tmp_path)
    folders = [model(tmp_path / "one"), model(tmp_path / "two")]
    for folder in folders:
        assemble(folder, facts(), trained, evaluation)
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert {"README.md", "loss.png", "scores.png", "serving.json", "serving.yaml", "tunemill.json"} <= one.keys()
    assert "report.html" not in one


def test_the_report_is_published_on_request(tmp_path: Path):
    """Only then, because it contains held-out rows."""
    folder = model(tmp_path / "release")
    assemble(folder, replace(facts(), with_page=True), *outputs(tmp_path))
    assert (folder / "report.html").read_text() == "<html>"
    assert "report.html" in (folder / "README.md").read_text()


def test_the_tokenizer_has_a_response_template(tmp_path: Path):
    """Transformers' server finds calls by it: the generation prompt, and the stop tokens."""
    folder = model(tmp_path / "release")
    assemble(folder, facts(), *outputs(tmp_path))
    template = json.loads((folder / "tokenizer_config.json").read_text())["response_template"]
    assert template["start_anchor"] == "<model>"
    assert template["fields"]["content"]["close"] == ["<end>", "<eos>"]


def test_the_stop_tokens_are_those_of_training(tmp_path: Path):
    """The base model may have other stop tokens than the chat template."""
    folder = model(tmp_path / "release")
    assemble(folder, facts(), *outputs(tmp_path))
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings == {"do_sample": False, "eos_token_id": [107, 1], "pad_token_id": 0}


def test_the_serving_contract_is_json(tmp_path: Path):
    """Command, parser, template and stop tokens in one file."""
    folder = model(tmp_path / "release")
    assemble(folder, facts(), *outputs(tmp_path))
    contract = json.loads((folder / "serving.json").read_text())
    assert contract["toolCallParser"] == "hermes"
    assert contract["chatTemplate"] == "chat_template.jinja"
    assert contract["stopTokenIds"] == [107, 1]
    assert contract["command"] in (folder / "README.md").read_text()


def test_the_record_lists_all_files_and_no_locations(tmp_path: Path):
    """tunemill.json has the files of the release and the hyperparameters."""
    folder = model(tmp_path / "release")
    assemble(folder, facts(), *outputs(tmp_path))
    text = (folder / "tunemill.json").read_text()
    assert json.loads(text)["files"] == sorted(path.name for path in folder.iterdir())
    assert json.loads(text)["dataset"]["digest"] == "ab" * 32
    assert not [secret for secret in SECRETS if secret in text]
