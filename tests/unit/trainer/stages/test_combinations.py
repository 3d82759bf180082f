"""Contradicting fields of a spec are refused, also without an API server."""

import pytest
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import NewToken, Tokens
from tunemill_trainer.stages import combinations

CHAT = {"name": "chat", "uri": "s3://team/chat.jsonl", "judge": "Likelihood"}
REPLAY = {"uri": "s3://team/chat.jsonl"}
PREFERENCE: dict[str, dict[str, object]] = {
    "dataset": {"uri": "s3://team/rows.jsonl", "validation": {}},
    "training": {"preference": {}},
}


def a_spec(**parts: dict[str, object]) -> FineTuneSpec:
    """The minimal spec, with changes."""
    smallest = {"dataset": {"uri": "s3://team/rows.jsonl"}, "publish": {"repository": "acme/tuned"}}
    base = {"baseModel": {"id": "acme/tiny", **parts.pop("baseModel", {})}}
    return FineTuneSpec.model_validate({**smallest, **base, **parts})


def tokens(*added: str) -> Tokens:
    """A vocabulary with added tokens."""
    return Tokens("Extend", tuple(NewToken(100 + at, token) for at, token in enumerate(added)), (1,), 0, 100)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (a_spec(baseModel={"quantization": "NF4"}, adapter={"method": "Full"}), "spec.baseModel.quantization"),
        (a_spec(adapter={"method": "AdaLoRA", "adalora": {"targetRank": 24}}), "spec.adapter.adalora.targetRank"),
        (
            a_spec(adapter={"method": "AdaLoRA"}, training={"earlyStopping": {"patience": 1}}),
            "spec.training.earlyStopping",
        ),
        (a_spec(evaluation={"suites": [CHAT, CHAT]}), "two suites with the name chat"),
        (a_spec(evaluation={"suites": [CHAT | {"judge": "Pattern"}]}), r"a pattern in spec.evaluation.suites\[chat\]"),
        (a_spec(evaluation={"suites": [CHAT | {"pattern": "a"}]}), r"a pattern in spec.evaluation.suites\[chat\]"),
        (
            a_spec(evaluation={"suites": [CHAT | {"judge": "Pattern", "pattern": "(a"}]}),
            r"spec.evaluation.suites\[chat\].pattern is not a regular expression",
        ),
        (a_spec(evaluation={"gates": [{"min": "0"}]}), "either a metric or a suite"),
        (a_spec(evaluation={"gates": [{"suite": "chat", "min": "0"}]}), "the suite chat, which is not in"),
        (
            a_spec(evaluation={"suites": [CHAT], "gates": [{"suite": "chat", "min": "0"}]}),
            "expected maxLossVsBase or minGainOverBase in the gate on the suite chat",
        ),
        (a_spec(training={"preference": {}}), "needs spec.dataset.validation"),
        (a_spec(**PREFERENCE, adapter={"method": "AdaLoRA"}), "spec.adapter.method LoRA or IA3"),
        (a_spec(**PREFERENCE, compute={"gpus": 2}), "spec.compute.gpus 0 or 1"),
        (a_spec(**PREFERENCE, compute={"nodes": 2}), "spec.compute.nodes 1"),
        (a_spec(**PREFERENCE | {"training": {"preference": {}, "lossOn": "All"}}), "spec.training.lossOn Assistant"),
        *(
            (a_spec(dataset={"uri": "s3://team/rows.jsonl", "replay": {**REPLAY, "share": share}}), "replay.share")
            for share in ("0", "1.0")
        ),
        (a_spec(baseModel={"adapter": {"id": "acme/week-1"}}, adapter={"method": "Full"}), "spec.adapter.method"),
        (a_spec(baseModel={"adapter": {"id": "acme/week-1"}}, adapter={"method": "AdaLoRA"}), "spec.adapter.method"),
        (
            a_spec(evaluation={"gates": [{"metric": "exact_match", "maxLossVsAdapter": "0"}]}),
            "needs spec.baseModel.adapter",
        ),
    ],
)
def test_contradicting_fields_are_refused(spec: FineTuneSpec, named: str) -> None:
    """The message names the field to change."""
    with pytest.raises(StageError, match=named) as error:
        combinations.refuse_impossible(spec)
    assert error.value.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize("method", ["LoRA", "IA3"])
def test_preference_training_of_an_adapter_is_accepted(method: str) -> None:
    """On one device, with validation rows."""
    combinations.refuse_impossible(a_spec(**PREFERENCE, adapter={"method": method}))


@pytest.mark.parametrize("method", ["LoRA", "AdaLoRA", "IA3", "Full"])
def test_every_method_is_accepted_by_default(method: str) -> None:
    """Valid specs are not refused."""
    combinations.refuse_impossible(a_spec(adapter={"method": method}))
    combinations.refuse_untrainable_tokens(a_spec(adapter={"method": method}), tokens())


def test_only_ia3_cannot_train_added_tokens() -> None:
    """The message names the tokens, and the mode that adds none."""
    with pytest.raises(StageError, match=r"lacks <tool_call>, </tool_call>.*tokenizer\.mode to Text"):
        combinations.refuse_untrainable_tokens(a_spec(adapter={"method": "IA3"}), tokens("<tool_call>", "</tool_call>"))
    for method in ("LoRA", "AdaLoRA", "Full"):
        combinations.refuse_untrainable_tokens(a_spec(adapter={"method": method}), tokens("<tool_call>"))
