"""Stage keys: the hash of everything that a stage's output depends on. What has the same key is never computed again.

Only what changes the output is in a key: credentials, retries, images and where a pod runs are not. Each stage's key
holds the key of the stage before it, so that one change re-runs everything after it and nothing before it.
"""

import hashlib
import json
from typing import Any

from tunemill_api.finetune import FineTuneSpec, effective_workspace
from tunemill_api.status import Rival
from tunemill_api.training import Adapter, AdapterMethod

RECIPES: dict[str, int] = {"prepare": 3, "train": 2, "evaluate": 3, "publish": 3}
"""Raised by us when a stage would compute something else from the same inputs; part of the keys, so that old outputs
are not reused."""


def prepare_request(spec: FineTuneSpec, requested_at: str = "") -> str:
    """Return what identifies a wish to prepare, before the data is looked at: 16 hexadecimal digits.

    `requested_at` is the value of the annotation with which a user asks to look at the data again.
    """
    return _digest({"wish": _prepare_inputs(spec), "workspace": _workspace(spec), "requestedAt": requested_at})


def prepare_key(spec: FineTuneSpec, resolved: dict[str, str]) -> str:
    """Return the key of what prepare makes, from the wish and from what its names stood for.

    Where the data lies is not in it, what it holds is: a copied bucket or a pinned commit needs no new training.

    Args:
        spec: the wish.
        resolved: the base model's commit (`baseModel`) and the sha256 of the training rows (`dataset`). Where there are
            any, also of the rows of `spec.dataset.evaluation.uri` (`evaluation`), of the template (`chatTemplate`) and
            of the tools (`tools`).
    """
    wish = _prepare_inputs(spec)
    del wish["hub"], wish["baseModel"]["revision"]
    for name in ("uri", "endpoint", "region"):
        del wish["dataset"][name]
    del wish["dataset"]["evaluation"]["uri"]
    del wish["tools"]
    wish["tokenizer"].pop("chatTemplate", None)
    return _digest({"recipe": RECIPES["prepare"], "wish": wish, "resolved": resolved})


def train_key(prepared: str, spec: FineTuneSpec) -> str:
    """Return the key of the adapter that is trained on the output `prepared` of prepare."""
    training = _dump(spec.training)
    for name in ("checkpoint", "maxLength", "lossOn"):  # the first changes no result, the others are prepare's
        training.pop(name)
    return _digest(
        {
            "recipe": RECIPES["train"],
            "prepare": prepared,
            "training": training,
            "adapter": _adapter(spec.adapter),
            "quantization": spec.base_model.quantization.value,
        }
    )


def evaluate_key(trained: str, spec: FineTuneSpec, rival: Rival | None = None) -> str:
    """Return the key of the judgement of the adapter `trained`. Gates are no part of it: they decide on it.

    `rival` is the published model that is asked for the same rows; without one the key is as if there were none.
    """
    settings = {"maxRows": spec.evaluation.max_rows, "maxNewTokens": spec.evaluation.max_new_tokens}
    if rival and rival.train:
        return _digest({"recipe": RECIPES["evaluate"], "train": trained, "evaluation": settings, "rival": rival.train})
    return _digest({"recipe": RECIPES["evaluate"], "train": trained, "evaluation": settings})


def base_judgement_key(prepared: str, spec: FineTuneSpec) -> str:
    """Return the key of the base model's replies to the held-out rows in the output `prepared`.

    The adapter is no part of it, so that one base model is asked once however often it is tuned.
    """
    settings = {"maxRows": spec.evaluation.max_rows, "maxNewTokens": spec.evaluation.max_new_tokens}
    computed = {"precision": spec.training.precision.value, "quantization": spec.base_model.quantization.value}
    return _digest(
        {"recipe": RECIPES["evaluate"], "prepare": prepared, "computed": computed, "baseEvaluation": settings}
    )


def publish_key(evaluated: str, spec: FineTuneSpec, *, draft: bool = False) -> str:
    """Return the key of a published model. Credentials are no part of it.

    With `draft` it is that of a draft, whose place is its own, and whose card says which gates kept it there.
    """
    publish = _dump(spec.publish)
    publish.pop("tokenSecretRef")
    publish["hub"] = spec.hub.endpoint
    if draft:
        for name in ("branch", "tag", "private"):
            del publish[name]
        publish["draft"] = [_dump(gate) for gate in spec.evaluation.gates]
    return _digest({"recipe": RECIPES["publish"], "evaluate": evaluated, "publish": publish})


def _prepare_inputs(spec: FineTuneSpec) -> dict[str, Any]:
    dataset = _dump(spec.dataset)
    dataset.pop("credentialsSecretRef", None)
    return {
        "hub": spec.hub.endpoint,
        "baseModel": {"id": spec.base_model.id, "revision": spec.base_model.revision},
        "dataset": dataset,
        "tools": _dump(spec.tools) if spec.tools else None,
        "tokenizer": _dump(spec.tokenizer),
        "maxLength": spec.training.max_length,
        "lossOn": spec.training.loss_on.value,
    }


def _adapter(adapter: Adapter) -> dict[str, Any]:
    """Return the method with its own settings: those of the others change nothing."""
    settings = {
        AdapterMethod.LORA: adapter.lora,
        AdapterMethod.ADALORA: adapter.adalora,
        AdapterMethod.IA3: adapter.ia3,
    }.get(adapter.method)
    return {"method": adapter.method.value} | ({"settings": _dump(settings)} if settings else {})


def _workspace(spec: FineTuneSpec) -> dict[str, Any]:
    workspace = effective_workspace(spec)
    return {"uri": workspace.uri, "endpoint": workspace.endpoint}


def _dump(model: Any) -> dict[str, Any]:  # noqa: ANN401 - any part of the API
    dumped: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
