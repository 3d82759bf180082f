"""Prepare as a whole: from S3 and a Hub to the workspace, in this process and as in a pod."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from api.collector import a_collector
from huggingface_hub import HfApi
from learn.training import BASE, World, a_world, run_spec, run_stage
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny import rows
from tunemill_trainer.errors import Interrupted, StageError
from tunemill_trainer.judge.parse import parse_reply
from tunemill_trainer.prepared import IGNORED, Prepared
from tunemill_trainer.process import tracing
from tunemill_trainer.process.progress import Progress
from tunemill_trainer.process.ranks import Ranks
from tunemill_trainer.stages import config_maps, prepare, train
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.storage.credentials import Credentials

HUB_TOKEN = "a-token-of-alice"


@dataclass
class Site:
    """Services with data, and the runs of prepare in them."""

    world: World
    folder: Path
    runs: int = 0

    def put(self, content: str | list[dict[str, Any]], key: str = "calls.jsonl") -> None:
        """Upload data; a list becomes JSON lines."""
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        self.world.s3().put_object(Bucket=self.world.bucket, Key=key, Body=text.encode())

    def uri(self, key: str) -> str:
        """Return the uri of an object."""
        return f"s3://{self.world.bucket}/{key}"

    def put_on_hub(self, name: str, content: str, repository: str = BASE) -> None:
        """Replace a file of the base model."""
        api = HfApi(endpoint=self.world.hub_url, token=HUB_TOKEN)
        api.upload_file(path_or_fileobj=content.encode(), path_in_repo=name, repo_id=repository)

    def spec(self, **changes: Any) -> FineTuneSpec:
        """The usual spec with some fields changed."""
        here = {"endpoint": self.world.s3_url, "region": "us-east-1", "uri": self.uri("tunemill/")}
        usual = self.world.spec().model_dump(by_alias=True) | {"workspace": here}
        return FineTuneSpec.model_validate(merged(usual, changes))

    def context(self, **changes: Any) -> StageContext:
        """The context of one run, with a new work folder."""
        self.runs += 1
        return StageContext(
            run_spec(self.spec(**changes), None),
            self.world.workspace(),
            self.folder / f"work-{self.runs}",
            Credentials(self.world.secrets),
            Progress(Stage.PREPARE, None),
            Ranks(),
        )

    def prepare(self, **changes: Any):
        """Run prepare; return its facts, whether it was executed, and the output in the workspace."""
        context = self.context(**changes)
        facts, executed = prepare.run(context)
        output = self.folder / f"output-{self.runs}"
        context.workspace.fetch(Stage.PREPARE, facts.key, output)
        return facts, executed, Prepared(output)

    def failure(self, **changes: Any) -> StageError:
        """Run prepare, which must fail, and return its error."""
        with pytest.raises(StageError) as raised:
            prepare.run(self.context(**changes))
        return raised.value


def merged(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a tree with some leaves changed."""
    return value | {
        name: merged(value.get(name) or {}, change) if isinstance(change, dict) else change
        for name, change in changes.items()
    }


@pytest.fixture
def site(tmp_path, base, monkeypatch) -> Iterator[Site]:
    """A world with 60 valid rows."""
    with a_world(tmp_path, base) as world:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        found = Site(world, tmp_path)
        found.put(rows(60))
        yield found


def test_the_supervised_tokens_of_a_row_decode_to_its_answer(site):
    """Decoded, and parsed like by a server."""
    from transformers import AutoTokenizer

    facts, executed, prepared = site.prepare()
    assert executed
    assert (facts.tokenizer_mode, facts.added_tokens, facts.dataset.format) == ("Text", 0, "OpenAI")
    assert prepared.report()["tokenizer"] == {
        "mode": "Text",
        "reason": "vLLM loads the adapter without merging only if it has no rows for added tokens",
        "added": [],
    }
    assert facts.dataset.train_rows + facts.dataset.evaluation_rows == facts.dataset.rows == 60
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_path)
    taught = set()
    for example in pq.read_table(prepared.train_path).to_pylist():
        labels = [label for label in example["labels"] if label != IGNORED]
        assert labels[-1] == prepared.tokens().stop_token_ids[0]
        assert example["input_ids"][-len(labels) - 1 : -1] == labels
        reply = parse_reply(tokenizer.decode(labels[:-1]))
        taught |= {json.dumps(call.to_json(), sort_keys=True) for call in reply.calls}
    wanted = {
        json.dumps(
            {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}, sort_keys=True
        )
        for row in rows(60)
        for call in row["messages"][2].get("tool_calls", [])
    }
    held_out = {json.dumps(call.to_json(), sort_keys=True) for case in prepared.cases() for call in case.gold.calls}
    assert taught | held_out == wanted


def test_validation_rows_are_used_to_select_the_epoch(site):
    """Train measures the loss on them, and no other stage reads them."""
    without, _, before = site.prepare()
    facts, _, prepared = site.prepare(dataset={"validation": {"fraction": "0.2"}})
    assert facts.key != without.key
    assert facts.dataset.evaluation_rows == without.dataset.evaluation_rows
    assert facts.dataset.train_rows + facts.dataset.validation_rows == without.dataset.train_rows
    assert prepared.report()["validation"]["rows"] == facts.dataset.validation_rows > 0
    assert [case.id for case in prepared.cases()] == [case.id for case in before.cases()]
    answers = {case.prompt_ids + case.answer_ids for case in prepared.validation_cases()}
    assert {tuple(row["input_ids"]) for row in train.rows_that_choose(prepared, 512)} == answers
    held_out = {case.prompt_ids + case.answer_ids for case in before.cases()}
    assert {tuple(row["input_ids"]) for row in train.rows_that_choose(before, 512)} == held_out
    few = site.failure(dataset={"validation": {"fraction": "0.0001"}})
    assert few.reason is Reason.DATASET_TOO_SMALL
    assert "at least one usable validation row, found none" in few.message
    assert "spec.dataset.validation.fraction" in few.remedy


def test_validation_rows_of_a_separate_file_are_in_the_key_by_their_content(site):
    """No row of dataset.uri becomes a validation row."""
    plain, _, before = site.prepare()
    validation = {"validation": {"uri": site.uri("validation.jsonl")}}
    site.put(rows(8, seed=3), "validation.jsonl")
    facts, _, prepared = site.prepare(dataset=validation)
    assert facts.dataset.validation_rows == 8
    assert facts.dataset.train_rows == plain.dataset.train_rows
    assert [case.id for case in prepared.cases()] == [case.id for case in before.cases()]
    site.put(rows(8, seed=4), "validation.jsonl")
    other, executed, _ = site.prepare(dataset=validation)
    assert executed
    assert len({plain.key, facts.key, other.key}) == 3


def test_the_prompt_of_a_case_equals_that_of_a_server(site):
    """With the saved tokenizer, used as by servers."""
    from transformers import AutoTokenizer

    *_, prepared = site.prepare()
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_path)
    by_question = {row["messages"][1]["content"]: row for row in rows(60)}
    for case in prepared.cases():
        row = by_question[case.messages[-1].content]
        rendered = tokenizer.apply_chat_template(
            row["messages"][:2], tools=row["tools"], add_generation_prompt=True, return_dict=False
        )
        assert tuple(rendered) == case.prompt_ids


def test_the_same_data_is_not_prepared_again(site):
    """Renamed data with the same bytes gives the same output; other bytes do not."""
    first, executed, _ = site.prepare()
    site.put(rows(60), "copy.jsonl")
    again, executed_again, _ = site.prepare(dataset={"uri": site.uri("copy.jsonl")})
    site.put(rows(61), "copy.jsonl")
    other, executed_other, _ = site.prepare(dataset={"uri": site.uri("copy.jsonl")})
    assert (executed, executed_again, executed_other) == (True, False, True)
    assert first == again
    assert other.key != first.key
    referred = {path.rpartition("/")[2] for path in site.world.workspace().marks("runs/")}
    assert {first.key, other.key} <= referred, "the output is referenced by both runs"


def test_augmentation_changes_the_training_rows_only(site):
    """The added rows are counted; the cases and their number stay."""
    plain, _, before = site.prepare()
    facts, executed, after = site.prepare(dataset={"augmentation": {"irrelevantRows": "0.5"}})
    assert executed
    assert facts.key != plain.key
    assert after.cases_path.read_text() == before.cases_path.read_text()
    added = facts.dataset.added_rows
    assert added > 0
    assert pq.read_table(after.train_path).num_rows == pq.read_table(before.train_path).num_rows + added
    counts = json.loads(after.report_path.read_text())["augmentation"]
    assert counts["irrelevantRows"] == added
    assert min(counts["shuffledTools"], counts["distractorTools"], counts["maskedNames"]) > 0
    assert facts.dataset.train_rows == plain.dataset.train_rows


def test_general_rows_are_trained_on_in_addition(site):
    """They change no other split, are counted, and are in the key by their content."""
    plain, _, before = site.prepare()
    site.put(rows(60) + rows(40, seed=3), "general.jsonl")
    replay = {"uri": site.uri("general.jsonl"), "share": "0.25"}
    facts, executed, after = site.prepare(dataset={"replay": replay})
    assert executed
    assert after.cases_path.read_text() == before.cases_path.read_text()
    assert facts.dataset.train_rows == plain.dataset.train_rows
    assert facts.dataset.replay_rows == round(plain.dataset.train_rows / 3)
    added = after.report()["replay"]["examples"]
    assert pq.read_table(after.train_path).num_rows == pq.read_table(before.train_path).num_rows + added
    site.put(rows(60) + rows(40, seed=3), "copy.jsonl")
    _, again, _ = site.prepare(dataset={"replay": replay | {"uri": site.uri("copy.jsonl")}})
    site.put(rows(60) + rows(40, seed=4), "copy.jsonl")
    other, executed, _ = site.prepare(dataset={"replay": replay | {"uri": site.uri("copy.jsonl")}})
    assert (again, executed) == (False, True)
    assert other.key != facts.key
    known = site.failure(dataset={"replay": {"uri": site.uri("calls.jsonl")}})
    assert known.reason is Reason.DATASET_TOO_SMALL
    assert "at least one usable replay row, found none" in known.message
    assert "spec.dataset.replay" in known.remedy


def test_suites_without_usable_rows_are_refused(site):
    """The message has the suite and the reason; the data set itself is prepared once."""
    chat = [
        {"messages": [{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "ok"}]} for n in range(3)
    ]
    site.put(chat, "chat.jsonl")
    site.put([{"messages": [{"role": "user", "content": "Hi"}]}], "prompts.jsonl")
    site.put([chat[0], {"messages": "none"}], "invalid.jsonl")
    facts, _, prepared = site.prepare()
    held_out = {case.messages[-1].content for case in prepared.cases()}
    site.put([row for row in rows(60) if row["messages"][1]["content"] not in held_out], "trained.jsonl")

    def failure(key: str, judge: str, **fields: str) -> StageError:
        suite = {"name": "own", "uri": site.uri(key), "judge": judge, **fields}
        return site.failure(evaluation={"suites": [suite]})

    expected = {
        ("chat.jsonl", "Calls"): (Reason.DATASET_TOO_SMALL, "expected rows with tools", "Likelihood or Pattern"),
        ("prompts.jsonl", "Likelihood"): (Reason.DATASET_TOO_SMALL, "1 have no assistant turn", "the settings of"),
        ("trained.jsonl", "Calls"): (
            Reason.DATASET_TOO_SMALL,
            f"{facts.dataset.train_rows} have the prompt of a training row",
            "the settings of",
        ),
        ("invalid.jsonl", "Likelihood"): (Reason.DATASET_INVALID_ROWS, "invalid.jsonl line 2", "maxInvalidFraction"),
    }
    for (key, judge), (reason, message, remedy) in expected.items():
        error = failure(key, judge)
        assert error.reason is reason
        assert error.message.startswith("spec.evaluation.suites[own]: ")
        assert message in error.message
        assert remedy in error.failure.remedy
    gone = failure("typo.jsonl", "Calls")
    assert (gone.reason, "spec.evaluation.suites[own]" in gone.message) == (Reason.OBJECT_NOT_FOUND, True)


def test_a_prefix_is_read_in_the_order_of_its_keys(site):
    """All files with known suffixes below a prefix are one data set; cases have their file."""
    site.put(rows(60)[30:], "many/b.jsonl")
    site.put(json.dumps(rows(60)[:30]), "many/a/first.json")
    site.put("not data", "many/readme.txt")
    facts, _, prepared = site.prepare(dataset={"uri": site.uri("many/")})
    assert facts.dataset.rows == 60
    assert {case.id.split(":")[0] for case in prepared.cases()} <= {"a/first.json", "b.jsonl"}
    numbers = [case.row for case in prepared.cases()]
    assert numbers == sorted(numbers)


def test_long_rows_are_skipped_and_counted(site):
    """Rows are not truncated: a truncated row has no call."""
    long = rows(64)[60:]
    for row in long:
        row["messages"][0]["content"] *= 40
    site.put([*rows(60), *long])
    facts, _, prepared = site.prepare()
    assert facts.dataset.overlong_rows == 4
    assert max(len(example["input_ids"]) for example in pq.read_table(prepared.train_path).to_pylist()) <= 512


def test_a_limited_number_of_rows_may_not_fit_the_base_models_template(site):
    """The template is kept: a few such rows are counted, and too many are a failure."""
    from trainer.chat.speakers import CHATML_TEMPLATE

    template = CHATML_TEMPLATE.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")
    site.put_on_hub("chat_template.jinja", template)
    *_, prepared = site.prepare()
    assert prepared.report()["chatTemplate"] == {"origin": "base", "passedOver": "", "callFormat": "hermes"}

    short_of_memory = template.replace("{{- message.content }}", "{{- message.content if loop.index < 4 else '' }}")
    site.put_on_hub("chat_template.jinja", short_of_memory)
    long = rows(70)[60:]
    for row in long:
        said = [("assistant", "Sure?"), ("user", "Yes."), ("assistant", "No.")]
        row["messages"][2:] = [{"role": role, "content": content} for role, content in said]
    site.put([*rows(60), *long[:2]])
    facts, _, prepared = site.prepare()
    report = prepared.report()
    assert report["chatTemplate"]["origin"] == "base"
    assert (report["unrenderableRows"], facts.dataset.invalid_rows) == (2, 0)
    assert facts.dataset.train_rows + facts.dataset.evaluation_rows == 60
    site.put([*rows(60), *long])
    with pytest.raises(StageError, match=r"10 of 70 rows; at most 3 may be excluded.*line 61") as caught:
        site.prepare()
    assert caught.value.reason is Reason.DATASET_INVALID_ROWS
    assert "spec.tokenizer.chatTemplate" in caught.value.remedy


def test_plain_instructions_need_no_tags(site):
    """Rows without tools are trained on with the base model's own template and vocabulary."""
    said = [(("user", f"Say {number}"), ("assistant", str(number))) for number in range(30)]
    site.put([{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in said])
    facts, _, prepared = site.prepare()
    assert (facts.tokenizer_mode, facts.added_tokens, facts.dataset.tools) == ("Reuse", 0, 0)
    assert prepared.report()["chatTemplate"]["origin"] == "base"


def test_simple_rows_get_the_tools_of_a_config_map(site, tmp_path, monkeypatch):
    """Tags as text do not change the vocabulary; other tools give other data."""
    tool = {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    monkeypatch.setenv(config_maps.ENV_CONFIG_DIRECTORY, str(tmp_path))
    site.put(
        [{"user_content": f"Word {n}?", "tool_name": "look_up", "tool_arguments": {"word": str(n)}} for n in range(9)]
    )
    chosen = {"tools": {"configMapKeyRef": {"name": "tools", "key": "x"}}, "tokenizer": {"mode": "Text"}}
    facts, _, prepared = site.prepare(**chosen)
    assert (facts.dataset.format, facts.tokenizer_mode, facts.added_tokens) == ("Simple", "Text", 0)
    (case, *_) = prepared.cases()
    assert [tool.name for tool in case.tools] == ["look_up"]
    assert case.gold.calls[0].name == "look_up"
    (tmp_path / "tools.json").write_text(json.dumps([tool | {"description": "Looks up a word"}]))
    again, executed, _ = site.prepare(**chosen)
    assert executed
    assert again.key != facts.key
    (tmp_path / "tools.json").write_text("[]")
    assert site.failure(**chosen).reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"dataset": {"uri": "s3://no-such-bucket/calls.jsonl"}}, Reason.BUCKET_NOT_FOUND, "no-such-bucket"),
        ({"dataset": {"uri": "gone.jsonl"}}, Reason.OBJECT_NOT_FOUND, "gone.jsonl"),
        ({"dataset": {"uri": "gone/"}}, Reason.OBJECT_NOT_FOUND, "found 0 objects"),
        ({"dataset": {"endpoint": "http://127.0.0.1:9"}}, Reason.S3_UNREACHABLE, "127.0.0.1:9"),
        ({"training": {"maxLength": 64}}, Reason.ALL_ROWS_TOO_LONG, "the shortest has"),
        ({"baseModel": {"id": "acme/absent"}}, Reason.BASE_MODEL_NOT_FOUND, "acme/absent"),
        ({"baseModel": {"revision": "v9"}}, Reason.BASE_MODEL_NOT_FOUND, "v9"),
        ({"publish": {"repository": "others/tuned"}}, Reason.HUB_WRITE_DENIED, "not a member of the namespace others"),
        ({"hub": {"endpoint": "http://127.0.0.1:9"}}, Reason.HUB_UNREACHABLE, "spec.hub.endpoint"),
        ({"tokenizer": {"mode": "Reuse"}}, Reason.TOKENIZER_LACKS_TAGS, "<tool_call>"),
    ],
)
def test_each_invalid_field_has_its_reason(site, changes, reason, message):
    """With the value and the field."""
    uri = changes.get("dataset", {}).get("uri", "")
    if uri and not uri.startswith("s3:"):
        changes = {"dataset": {"uri": site.uri(uri)}}
    error = site.failure(**changes)
    assert error.reason is reason, error.message
    assert message in error.message


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        ("", Reason.DATASET_EMPTY, "found none"),
        ('{"messages": [\n', Reason.DATASET_MALFORMED, "calls.jsonl line 1"),
        ('{"said": "x"}\n', Reason.DATASET_FORMAT_UNKNOWN, "found none of these in the first 1 rows"),
    ],
)
def test_unreadable_data_is_reported_with_its_reason(site, data, reason, message):
    """And with the place."""
    site.put(data)
    error = site.failure()
    assert error.reason is reason, error.message
    assert message in error.message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"architectures": ["T5ForConditionalGeneration"]}', "T5ForConditionalGeneration"),
        ("config.json", "{", "cannot parse the config.json of"),
        ("tokenizer.json", "{}", "tokenizer.json"),
    ],
)
def test_an_unsupported_base_model_is_refused(site, name, content, message):
    """Only models that later stages can train and serve are accepted."""
    site.put_on_hub(name, content)
    error = site.failure()
    assert error.reason is Reason.BASE_MODEL_UNSUPPORTED
    assert message in error.message


def test_a_base_model_without_a_fast_tokenizer_is_refused(site):
    """The message has the missing file."""
    HfApi(endpoint=site.world.hub_url, token=HUB_TOKEN).delete_file("tokenizer.json", BASE)
    error = site.failure()
    assert error.reason is Reason.BASE_MODEL_UNSUPPORTED
    assert "tokenizer.json (a fast tokenizer)" in error.message


def test_a_gated_base_model_is_distinguished_from_a_missing_one(site):
    """Its remedy is to accept the licence."""
    api = HfApi(endpoint=site.world.hub_url, token=HUB_TOKEN)
    api.update_repo_settings(BASE, gated="manual")
    (site.world.secrets / "hub-read" / "token").unlink()
    (site.world.secrets / "hub-read").rmdir()
    assert site.failure().reason is Reason.BASE_MODEL_GATED


def test_a_broken_user_template_is_reported(site, tmp_path, monkeypatch):
    """With Jinja's line, before any row is rendered; for a missing one with the field."""
    path = tmp_path / "chat_template.jinja"
    monkeypatch.setenv(config_maps.ENV_CONFIG_DIRECTORY, str(tmp_path))
    chosen = {"tokenizer": {"chatTemplate": {"configMapKeyRef": {"name": "templates", "key": "tools"}}}}
    assert site.failure(**chosen).reason is Reason.CONFIG_MAP_NOT_FOUND
    path.write_text("{% for %}")
    error = site.failure(**chosen)
    assert error.reason is Reason.INVALID_CHAT_TEMPLATE
    assert "line 1" in error.message


def test_a_request_to_stop_is_followed(site):
    """A drained pod stops at the next row."""
    context = site.context()
    context.stop.request()
    with pytest.raises(Interrupted):
        prepare.run(context)


def test_a_pod_writes_a_report(site, tmp_path):
    """In a separate process: exit code 0 and facts, or the reason's exit code and the failure."""
    ended = run_stage(Stage.PREPARE, site.world, run_spec(site.world.spec(), None), tmp_path / "pod-1")
    assert ended.code == 0, ended.log
    assert ended.report.prepared.dataset.rows == 60
    site.put("{}\n{")
    ended = run_stage(Stage.PREPARE, site.world, run_spec(site.world.spec(), None), tmp_path / "pod-2")
    assert ended.code == 65
    assert ended.report.failure.reason is Reason.DATASET_FORMAT_UNKNOWN


def test_the_parts_of_a_traced_stage_have_separate_spans(site, monkeypatch):
    """As children of the stage's span."""
    context = site.context()
    with a_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        with tracing.stage(Stage.PREPARE, context.run):
            prepare.run(context)
    (stage,) = collector.named("prepare")
    parts = {
        "check permissions",
        "fetch data",
        "estimate GPU memory",
        "read data",
        "choose chat template",
        "download",
        "tokenise",
        "commit outputs",
    }
    assert {span.name for span in collector.spans} == {"prepare", *parts}
    assert {span.parent for span in collector.spans if span.name in parts} == {stage.id}


def test_a_run_that_does_not_fit_its_gpu_is_refused_before_training(site: Site):
    """The estimate is in the facts of this run, not in a shared output."""
    site.put(rows(40, seed=5))
    facts, executed, _ = site.prepare(compute={"gpus": 1, "gpuMemory": "16Gi"})
    assert executed
    assert facts.gpu_memory is not None
    assert 500 < facts.gpu_memory.least_mib < facts.gpu_memory.full_speed_mib
    assert site.world.workspace().manifest(Stage.PREPARE, facts.key).facts["gpuMemory"] is None
    error = site.failure(compute={"gpus": 1, "gpuMemory": "500Mi"})
    assert error.reason is Reason.CUDA_OUT_OF_MEMORY
    assert "500Mi are 500 MiB" in error.message
    on_cpu, executed, _ = site.prepare(compute={"gpus": 0, "gpuMemory": "500Mi"})
    assert (executed, on_cpu.gpu_memory) == (False, None)
