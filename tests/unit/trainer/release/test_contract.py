"""The published artifacts, and the serving contract."""

import shlex
from dataclasses import replace

import pytest
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.publish import Publish, ServingTarget
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.release.artifacts import Artifacts, chosen, more_repositories
from tunemill_trainer.release.contract import Contract, response_template
from tunemill_trainer.release.servability import Verdict

ADAPTER, MERGED = "acme/tools", "acme/tools-merged"
REVISIONS = {ADAPTER: "c0ffee", MERGED: "decade"}
SERVABLE, REFUSED = Verdict((), 16), Verdict(("it contains rows for added tokens",), 16)


def publish_spec(*artifacts: str, serving: str = "vLLM", **more: object) -> Publish:
    """spec.publish with these artifacts; none means the default."""
    return Publish.model_validate(
        {"repository": ADAPTER, "serving": serving, **({"artifacts": list(artifacts)} if artifacts else {}), **more}
    )


def contract(
    verdict: Verdict = SERVABLE,
    target: str = "vLLM",
    adapter: str = ADAPTER,
    whole: str = "",
    call_format: ReplyFormat = ReplyFormat.HERMES,
) -> Contract:
    """A serving contract for a release of a Gemma 2."""
    base = BaseModel("google/gemma-2-2b-it", "ab" * 20)
    return Contract(ServingTarget(target), base, Artifacts(adapter, whole, report=False), verdict, call_format)


def test_auto_adds_the_merged_model_only_where_the_server_needs_it():
    """A second copy of the weights is pushed only if necessary."""
    assert chosen(publish_spec(), only_whole=False, servable=True) == Artifacts(ADAPTER, "", report=False)
    assert chosen(publish_spec(), only_whole=False, servable=False) == Artifacts(ADAPTER, MERGED, report=False)
    assert chosen(publish_spec(serving="None"), only_whole=False, servable=False) == Artifacts(
        ADAPTER, "", report=False
    )


def test_exactly_the_listed_artifacts_are_published():
    """No fewer, and no more."""
    assert chosen(publish_spec("Adapter"), only_whole=False, servable=False) == Artifacts(ADAPTER, "", report=False)
    assert chosen(publish_spec("Adapter", "Merged"), only_whole=False, servable=True) == Artifacts(
        ADAPTER, MERGED, report=False
    )
    assert chosen(publish_spec("Merged", "Report"), only_whole=False, servable=True) == Artifacts(
        "", ADAPTER, report=True
    )


def test_a_full_model_uses_the_repository_of_the_spec():
    """The method Full has no adapter."""
    assert chosen(publish_spec(), only_whole=True, servable=False) == Artifacts("", ADAPTER, report=False)


def test_gguf_and_image_are_published_in_addition():
    """The GGUF file has a repository of its own; the image is named by registry and repository."""
    oci = {"registry": "https://ghcr.io", "repository": "acme/tools"}
    found = chosen(publish_spec("Adapter", "GGUF", "OCI", oci=oci), only_whole=False, servable=True)
    assert found == Artifacts(ADAPTER, "", report=False, gguf=f"{ADAPTER}-GGUF", image="ghcr.io/acme/tools")
    assert found.needs_whole
    assert not chosen(publish_spec("Adapter"), only_whole=False, servable=True).needs_whole


def test_the_other_repositories_are_known_before_training():
    """So that a missing permission for it is found early."""
    spec = {"baseModel": {"id": "a/b"}, "dataset": {"uri": "s3://bucket/x.jsonl"}, "publish": {"repository": ADAPTER}}
    assert more_repositories(FineTuneSpec.model_validate(spec), added_tokens=0) == []
    assert more_repositories(FineTuneSpec.model_validate(spec), added_tokens=4) == [MERGED]
    whole = spec | {"adapter": {"method": "Full"}}
    assert more_repositories(FineTuneSpec.model_validate(whole), added_tokens=4) == []
    transformers = spec | {"publish": {"repository": ADAPTER, "serving": "Transformers"}}
    assert more_repositories(FineTuneSpec.model_validate(transformers), added_tokens=0) == [MERGED]


def test_the_command_for_an_adapter():
    """With tokenizer, chat template and the exact commits of the evaluation."""
    found = contract().serving(REVISIONS)
    assert found is not None
    download, serve = found.command.split("\n", 1)
    assert shlex.split(download) == ["hf", "download", ADAPTER, "--revision", "c0ffee", "--local-dir", "./tools"]
    words = shlex.split(serve.replace("\\\n", " "))
    assert words[:5] == ["vllm", "serve", "google/gemma-2-2b-it", "--revision", "ab" * 20]
    rest = (
        "--enable-lora --max-lora-rank 16 --lora-modules tools=./tools --tokenizer ./tools "
        "--chat-template ./tools/chat_template.jinja --generation-config ./tools "
        "--chat-template-content-format string --enable-auto-tool-choice --tool-call-parser hermes"
    )
    assert " ".join(words[5:]) == rest
    assert found.adapter_servable
    assert not found.merged
    assert found.model == f"{ADAPTER}@c0ffee"


def test_the_merged_model_is_served_if_the_adapter_cannot():
    """Status has the reason, and the served commit."""
    found = contract(REFUSED, whole=MERGED).serving(REVISIONS)
    assert found is not None
    assert (found.model, found.merged, found.adapter_servable) == (f"{MERGED}@decade", True, False)
    assert found.reason == "it contains rows for added tokens"
    words = shlex.split(found.command.replace("\\\n", " "))
    assert words[:7] == ["vllm", "serve", MERGED, "--revision", "decade", "--tokenizer-revision", "decade"]
    assert "--enable-lora" not in found.command


def test_an_unservable_adapter_without_merged_model():
    """There is no command, but a remedy."""
    found = contract(REFUSED).serving(REVISIONS, "proven")
    assert found is not None
    assert (found.model, found.command, found.proof) == ("", "", "")
    assert "add Merged to spec.publish.artifacts" in found.reason


def test_a_servable_adapter_is_preferred():
    """One base model in memory serves many adapters."""
    found = contract(whole=MERGED).serving(REVISIONS)
    assert found is not None
    assert found.model == f"{ADAPTER}@c0ffee"


@pytest.mark.parametrize("call_format", ReplyFormat)
def test_the_parser_is_that_of_evaluate(call_format: ReplyFormat):
    """The parser has the same name in vLLM for all formats except plain JSON and that of older Nemotron models."""
    found = contract(call_format=call_format).serving(REVISIONS)
    assert found is not None
    if call_format in (ReplyFormat.JSON, ReplyFormat.NEMOTRON_JSON):
        assert "--tool-call-parser" not in found.command
    else:
        assert f"--enable-auto-tool-choice --tool-call-parser {call_format.value}" in found.command


def test_transformers_serves_a_commit():
    """Its response template is in the published tokenizer."""
    found = contract(Verdict(("no adapters",), 0), target="Transformers", whole=MERGED).serving(REVISIONS)
    assert found is not None
    assert found.command == f"transformers serve {MERGED}@decade"
    assert found.tool_call_parser == "response_template"


def test_without_a_target_there_is_no_contract():
    """With spec.publish.serving None."""
    assert contract(target="None").serving(REVISIONS) is None
    assert contract(target="None").served == ""


def test_formats_that_transformers_cannot_parse_have_no_template():
    """A call without an end marker cannot be found."""
    assert response_template(ReplyFormat.LLAMA3_JSON, "<model>", ["<end>"]) is None
    assert response_template(ReplyFormat.HERMES, "", ["<end>"]) is None


TWO_CALLS = """<think>Look.</think>
<tool_call>{"name": "a", "arguments": {"x": [1, "z"]}}</tool_call>
<tool_call>{"name": "b", "arguments": {}}</tool_call><end>"""
ONE_CALL = '<start_function_call>call:a{city:<escape>Oslo, "x"<escape>,days:3}<end_function_call><end>'


@pytest.mark.parametrize(
    ("call_format", "reply", "calls"),
    [
        (ReplyFormat.HERMES, TWO_CALLS, [("a", {"x": [1, "z"]}), ("b", {})]),
        (ReplyFormat.FUNCTIONGEMMA, ONE_CALL, [("a", {"city": 'Oslo, "x"', "days": 3})]),
        (ReplyFormat.HERMES, "Hello.<end>", []),
    ],
)
def test_transformers_parses_calls_with_the_template(call_format: ReplyFormat, reply: str, calls: list):
    """With the same function as Transformers' server."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    template = response_template(call_format, "<model>\n", ["<end>"])
    message = tokenizer.parse_response(reply, template, prefix="<user>\nHi<end>\n<model>\n")
    found = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    assert found == calls


@pytest.mark.parametrize(("adapter", "whole"), [(ADAPTER, ""), ("", MERGED)])
def test_a_model_that_reasons_is_served_with_its_parser(adapter: str, whole: str):
    """Only vLLM has such parsers."""
    found = replace(contract(adapter=adapter, whole=whole), reasoning="qwen3")
    serving = found.serving({adapter or whole: "c0ffee"})
    assert serving.reasoning_parser == "qwen3"
    assert "--tool-call-parser hermes --reasoning-parser qwen3" in serving.command
    other = replace(found, target=ServingTarget.TRANSFORMERS).serving({adapter or whole: "c0ffee"})
    assert other.reasoning_parser == ""
    assert "reasoning" not in other.command
