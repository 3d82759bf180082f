"""Stage keys as the operator of commit 7ae990e computed them, for a status without `inputs`.

That operator recorded keys only. An entry of its status is valid if its key equals the one that this operator would
have computed from the current spec. These functions are used for nothing else and never change: the recipes, names and
defaults are those of that commit. They can be removed once no object has a status from that commit.
"""

import hashlib
import json
from typing import Any

from tunemill_api.finetune import FineTuneSpec, effective_workspace
from tunemill_api.scalars import ConfigMapKeyRef
from tunemill_api.status import Rival
from tunemill_api.training import AdapterMethod


def prepare_key(spec: FineTuneSpec, requested: str) -> str:
    """Return the identity of prepare before the data was read."""
    dataset, tokenizer, workspace = spec.dataset, spec.tokenizer, effective_workspace(spec)
    template = tokenizer.chat_template
    inputs = {
        "hub": spec.hub.endpoint,
        "baseModel": {"id": spec.base_model.id, "revision": spec.base_model.revision},
        "dataset": {
            "uri": dataset.uri,
            "format": dataset.format.value,
            "endpoint": dataset.endpoint,
            "region": dataset.region,
            "evaluation": {
                "fraction": dataset.evaluation.fraction,
                "seed": dataset.evaluation.seed,
                "uri": dataset.evaluation.uri,
            },
            "maxInvalidFraction": dataset.max_invalid_fraction,
            "maxRows": dataset.max_rows,
        },
        "tools": _source(spec.tools.config_map_key_ref) if spec.tools else None,
        "tokenizer": {
            "mode": tokenizer.mode.value,
            "addTokens": tokenizer.add_tokens,
            **({"chatTemplate": _source(template.config_map_key_ref)} if template else {}),
            "think": tokenizer.think.value,
        },
        "maxLength": spec.training.max_length,
        "lossOn": spec.training.loss_on.value,
    }
    place = {"uri": workspace.uri, "endpoint": workspace.endpoint}
    return _digest({"wish": inputs, "workspace": place, "requestedAt": requested})


def train_key(prepared: str, spec: FineTuneSpec) -> str:
    """Return the key of the model trained on the output `prepared`."""
    training = spec.training
    settings = {
        "epochs": training.epochs,
        "maxSteps": training.max_steps,
        "learningRate": training.learning_rate,
        "scheduler": training.scheduler.value,
        "warmupRatio": training.warmup_ratio,
        "batchSize": training.batch_size,
        "seed": training.seed,
        "precision": training.precision.value,
        "earlyStopping": {"patience": training.early_stopping.patience},
        "divergence": training.divergence.value,
    }
    return _digest(
        {
            "recipe": 2,
            "prepare": prepared,
            "training": settings,
            "adapter": _adapter(spec),
            "quantization": spec.base_model.quantization.value,
        }
    )


def evaluate_key(trained: str, spec: FineTuneSpec, rival: Rival | None = None) -> str:
    """Return the key of the evaluation of `trained`."""
    settings = {"maxRows": spec.evaluation.max_rows, "maxNewTokens": spec.evaluation.max_new_tokens}
    compared = {"rival": rival.train} if rival and rival.train else {}
    return _digest({"recipe": 3, "train": trained, "evaluation": settings, **compared})


def publish_key(evaluated: str, spec: FineTuneSpec, *, draft: bool = False) -> str:
    """Return the key of a published model, or of a draft."""
    publish: dict[str, Any] = {
        "repository": spec.publish.repository,
        "artifacts": [artifact.value for artifact in spec.publish.artifacts],
        "serving": spec.publish.serving.value,
        "hub": spec.hub.endpoint,
    }
    if draft:
        publish["draft"] = [
            {
                "metric": gate.subject,
                **({"min": gate.min} if gate.min is not None else {}),
                **({"max": gate.max} if gate.max is not None else {}),
                **({"minGainOverBase": gate.min_gain_over_base} if gate.min_gain_over_base is not None else {}),
                **({"maxLossVsBase": gate.max_loss_vs_base} if gate.max_loss_vs_base is not None else {}),
            }
            for gate in spec.evaluation.gates
        ]
    else:
        publish |= {"private": spec.publish.private, "branch": spec.publish.branch, "tag": spec.publish.tag}
    return _digest({"recipe": 3, "evaluate": evaluated, "publish": publish})


def run_id(spec: FineTuneSpec, requested: str) -> str:
    """Return the id of a run."""
    return publish_key(evaluate_key(train_key(prepare_key(spec, requested), spec), spec), spec)[:8]


def _adapter(spec: FineTuneSpec) -> dict[str, Any]:
    adapter = spec.adapter
    settings: dict[AdapterMethod, dict[str, Any]] = {
        AdapterMethod.LORA: {
            "rank": adapter.lora.rank,
            "alpha": adapter.lora.alpha,
            "dropout": adapter.lora.dropout,
            "targetModules": adapter.lora.target_modules,
            "rsLora": adapter.lora.rs_lora,
        },
        AdapterMethod.ADALORA: {
            "initialRank": adapter.adalora.initial_rank,
            "targetRank": adapter.adalora.target_rank,
            "alpha": adapter.adalora.alpha,
            "dropout": adapter.adalora.dropout,
            "targetModules": adapter.adalora.target_modules,
        },
        AdapterMethod.IA3: {
            "targetModules": adapter.ia3.target_modules,
            "feedforwardModules": adapter.ia3.feedforward_modules,
        },
    }
    chosen = settings.get(adapter.method)
    return {"method": adapter.method.value, **({"settings": chosen} if chosen else {})}


def _source(reference: ConfigMapKeyRef) -> dict[str, Any]:
    return {"configMapKeyRef": {"name": reference.name, "key": reference.key}}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
