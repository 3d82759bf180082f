"""Stage keys and stage inputs: what a stage's output depends on, as short hashes.

- The *inputs* of a stage are what the user asks of it, and the inputs of the stage before. They do not change with a
  version of Tunemill. The operator compares them to tell whether a stage that is recorded in the status is still what
  the spec asks for.
- The *key* of a stage names its output in the workspace. It also holds the stage's number in `RECIPES`, so that a
  stage that computes something else than before does not reuse an old output. A recorded key is never computed again
  while its inputs are the same.

Both hash a canonical form: one flat dictionary for each stage, with short names of its own, without what equals the
default of the form. So a new field, a renamed field or a changed default in the API changes no hash of an object that
exists. The forms are frozen. docs/adr/0011 says how they may evolve.

Only what changes an output is in a form: credentials, retries and where a pod runs are not. Of images, only one of the
user's own is in the keys, of every stage that has not begun: nobody else takes what it made for the work of the
platform's image. That one is represented by `RECIPES`, so that an upgrade changes no key.
"""

import hashlib
import json
from collections.abc import Mapping

from tunemill_api.evaluation import Gate
from tunemill_api.finetune import FineTuneSpec, effective_workspace
from tunemill_api.scalars import ConfigMapKeyRef
from tunemill_api.status import Rival
from tunemill_api.training import AdapterMethod

RECIPES: dict[str, int] = {"prepare": 5, "train": 2, "evaluate": 4, "publish": 3}
"""Raised by us when a stage would compute something else from the same inputs. Part of the keys, not of the inputs:
what is done or in progress is left alone, and the next run uses the new recipe."""

FORM = 1
"""The version of the canonical forms below."""

Value = str | int | bool | tuple[str, ...] | None
Form = Mapping[str, Value]

# The defaults of form 1. They stay as they are when a default of the API changes.
_SOURCE_DEFAULTS: Form = {
    "hub": "",
    "revision": "main",
    "endpoint": "",
    "region": "",
    "heldout.uri": "",
    "tools": None,
    "template": None,
    "workspace.endpoint": "",
    "request": "",
}
_DATA_DEFAULTS: Form = {
    "format": "Auto",
    "heldout.fraction": "0.1",
    "heldout.seed": 42,
    "invalid": "0",
    "rows": 0,
    "tokenizer": "Auto",
    "tokens": (),
    "think": "Keep",
    "length": 2048,
    "loss": "Assistant",
    "turns": "All",
}
_TRAIN_DEFAULTS: Form = {
    "epochs": 1,
    "steps": 0,
    "rate": "1e-4",
    "scheduler": "Cosine",
    "warmup": "0.1",
    "batch": 8,
    "seed": 42,
    "precision": "Auto",
    "patience": 0,
    "divergence": "Stop",
    "quantization": "None",
    "method": "LoRA",
    "lora.rank": 16,
    "lora.alpha": 64,
    "lora.dropout": "0.05",
    "lora.modules": ("all-linear",),
    "lora.rs": False,
    "adalora.initial": 24,
    "adalora.target": 16,
    "adalora.alpha": 64,
    "adalora.dropout": "0.05",
    "adalora.modules": ("all-linear",),
    "ia3.modules": ("k_proj", "v_proj", "down_proj"),
    "ia3.feedforward": ("down_proj",),
}
_EVALUATE_DEFAULTS: Form = {"rows": 500, "tokens": 0, "rival": ""}
_BASE_DEFAULTS: Form = {"precision": "Auto", "quantization": "None"}
_PUBLISH_DEFAULTS: Form = {
    "private": True,
    "branch": "main",
    "tag": "",
    "artifacts": ("Auto",),
    "serving": "vLLM",
    "hub": "",
}


# What is asked for


def prepare_inputs(spec: FineTuneSpec, requested: str = "") -> str:
    """Return the inputs of prepare, before the data is looked at: 16 hexadecimal digits.

    Args:
        spec: the whole spec.
        requested: changes whenever a user or the schedule asks to look at the data again.
    """
    return _digest("prepare", {**_sources(spec, requested), **_data(spec)})


def train_inputs(prepare: str, prepared: str, spec: FineTuneSpec) -> str:
    """Return the inputs of train, from the inputs of prepare and the key of what it made."""
    return _digest("train", {"inputs": prepare, "prepared": prepared, **_training(spec)})


def evaluate_inputs(train: str, spec: FineTuneSpec, rival: Rival | None = None) -> str:
    """Return the inputs of evaluate, from those of train."""
    return _digest("evaluate", {"inputs": train, **_evaluation(spec, rival)})


def publish_inputs(evaluate: str, spec: FineTuneSpec, *, draft: bool = False) -> str:
    """Return the inputs of publish, from those of evaluate."""
    return _digest("publish", {"inputs": evaluate, **_publication(spec, draft=draft)})


def run_inputs(prepare: str, spec: FineTuneSpec) -> str:
    """Return what identifies a whole run before anything of it is known, from the inputs of prepare."""
    return publish_inputs(evaluate_inputs(train_inputs(prepare, "", spec), spec), spec)


# What the outputs are called


def prepare_key(spec: FineTuneSpec, resolved: dict[str, str]) -> str:
    """Return the key of what prepare makes, from the spec and from what its names stood for.

    Where the data lies is not in it, what it holds is: a copied bucket or a pinned commit needs no new training.

    Args:
        spec: the whole spec.
        resolved: the base model's commit (`baseModel`) and the sha256 of the training rows (`dataset`). Where there are
            any, also of the rows of `spec.dataset.evaluation.uri` (`evaluation`), of the template (`chatTemplate`) and
            of the tools (`tools`). `tags` is what Auto does about tags that the base model lacks. `baseModelFiles`
            stands for the contents of the base model's files: a commit is what a server says.
    """
    found = {f"resolved.{name}": value for name, value in resolved.items()}
    return _digest("prepare", {**_maker("prepare", spec), **_data(spec), **found})


def train_key(prepared: str, spec: FineTuneSpec) -> str:
    """Return the key of the adapter that is trained on the output `prepared` of prepare."""
    return _digest("train", {**_maker("train", spec), "prepare": prepared, **_training(spec)})


def evaluate_key(trained: str, spec: FineTuneSpec, rival: Rival | None = None) -> str:
    """Return the key of the evaluation of the adapter `trained`. Gates are not part of it: they decide on it.

    `rival` is the published model that is asked for the same rows; without one the key is as if there were none.
    """
    return _digest("evaluate", {**_maker("evaluate", spec), "train": trained, **_evaluation(spec, rival)})


def base_evaluation_key(prepared: str, spec: FineTuneSpec) -> str:
    """Return the key of the base model's replies to the held-out rows in the output `prepared`.

    The adapter is no part of it, so that one base model is asked once however often it is tuned.
    """
    computed = {"precision": spec.training.precision.value, "quantization": spec.base_model.quantization.value}
    form = {**_without(_BASE_DEFAULTS, computed), **_evaluation(spec, None)}
    return _digest("base-evaluation", {**_maker("evaluate", spec), "prepare": prepared, **form})


def publish_key(evaluated: str, spec: FineTuneSpec, *, draft: bool = False) -> str:
    """Return the key of a published model.

    With `draft` it is that of a draft, whose place is its own, and whose card says which gates kept it there.
    """
    form = _publication(spec, draft=draft)
    return _digest("publish", {**_maker("publish", spec), "evaluate": evaluated, **form})


# The canonical forms


def _maker(stage: str, spec: FineTuneSpec) -> Form:
    """Return what makes the output: the recipe, and the image where it is not the platform's."""
    image = spec.compute.trainer_image
    return {"recipe": RECIPES[stage], **({"image": image} if image else {})}


def _sources(spec: FineTuneSpec, requested: str) -> Form:
    """Return what names the data and the model, before it is known what the names stand for."""
    workspace, template = effective_workspace(spec), spec.tokenizer.chat_template
    form: dict[str, Value] = {
        "hub": spec.hub.endpoint,
        "revision": spec.base_model.revision,
        "uri": spec.dataset.uri,
        "endpoint": spec.dataset.endpoint,
        "region": spec.dataset.region,
        "heldout.uri": spec.dataset.evaluation.uri,
        "tools": _reference(spec.tools.config_map_key_ref) if spec.tools else None,
        "template": _reference(template.config_map_key_ref) if template else None,
        "workspace": workspace.uri,
        "workspace.endpoint": workspace.endpoint,
        "request": requested,
    }
    return _without(_SOURCE_DEFAULTS, form)


def _data(spec: FineTuneSpec) -> Form:
    """Return how the data becomes tokens."""
    form: dict[str, Value] = {
        "model": spec.base_model.id,
        "format": spec.dataset.format.value,
        "heldout.fraction": spec.dataset.evaluation.fraction,
        "heldout.seed": spec.dataset.evaluation.seed,
        "invalid": spec.dataset.max_invalid_fraction,
        "rows": spec.dataset.max_rows,
        "tokenizer": spec.tokenizer.mode.value,
        "tokens": tuple(spec.tokenizer.add_tokens),
        "think": spec.tokenizer.think.value,
        "length": spec.training.max_length,
        "loss": spec.training.loss_on.value,
        "turns": spec.training.turns.value,
    }
    return _without(_DATA_DEFAULTS, form)


def _training(spec: FineTuneSpec) -> Form:
    training = spec.training
    form: dict[str, Value] = {
        "epochs": training.epochs,
        "steps": training.max_steps,
        "rate": training.learning_rate,
        "scheduler": training.scheduler.value,
        "warmup": training.warmup_ratio,
        "batch": training.batch_size,
        "seed": training.seed,
        "precision": training.precision.value,
        "patience": training.early_stopping.patience,
        "divergence": training.divergence.value,
        "quantization": spec.base_model.quantization.value,
        "method": spec.adapter.method.value,
    }
    return _without(_TRAIN_DEFAULTS, form | _adapter(spec))


def _adapter(spec: FineTuneSpec) -> dict[str, Value]:
    """Return the settings of the chosen method: those of the others change nothing."""
    lora, adalora, ia3 = spec.adapter.lora, spec.adapter.adalora, spec.adapter.ia3
    match spec.adapter.method:
        case AdapterMethod.LORA:
            return {
                "lora.rank": lora.rank,
                "lora.alpha": lora.alpha,
                "lora.dropout": lora.dropout,
                "lora.modules": tuple(lora.target_modules),
                "lora.rs": lora.rs_lora,
            }
        case AdapterMethod.ADALORA:
            return {
                "adalora.initial": adalora.initial_rank,
                "adalora.target": adalora.target_rank,
                "adalora.alpha": adalora.alpha,
                "adalora.dropout": adalora.dropout,
                "adalora.modules": tuple(adalora.target_modules),
            }
        case AdapterMethod.IA3:
            return {"ia3.modules": tuple(ia3.target_modules), "ia3.feedforward": tuple(ia3.feedforward_modules)}
        case AdapterMethod.FULL:
            return {}


def _evaluation(spec: FineTuneSpec, rival: Rival | None) -> Form:
    form: dict[str, Value] = {
        "rows": spec.evaluation.max_rows,
        "tokens": spec.evaluation.max_new_tokens,
        "rival": rival.train if rival else "",
    }
    return _without(_EVALUATE_DEFAULTS, form)


def _publication(spec: FineTuneSpec, *, draft: bool) -> Form:
    publish = spec.publish
    form: dict[str, Value] = {
        "repository": publish.repository,
        "private": publish.private,
        "branch": publish.branch,
        "tag": publish.tag,
        "artifacts": tuple(artifact.value for artifact in publish.artifacts),
        "serving": publish.serving.value,
        "hub": spec.hub.endpoint,
    }
    if draft:
        for name in ("branch", "tag", "private"):
            del form[name]
        form["draft"] = tuple(_gate(gate) for gate in spec.evaluation.gates)
    return _without(_PUBLISH_DEFAULTS, form)


def _gate(gate: Gate) -> str:
    conditions = {"min": gate.min, "max": gate.max, "gain": gate.min_gain_over_base, "loss": gate.max_loss_vs_base}
    set_conditions = [f"{name}={value}" for name, value in conditions.items() if value is not None]
    return " ".join([gate.metric.value, *set_conditions])


def _reference(reference: ConfigMapKeyRef) -> str:
    return f"{reference.name}/{reference.key}"


def _without(defaults: Form, form: Form) -> Form:
    """Return the form without what equals its default."""
    return {name: value for name, value in form.items() if name not in defaults or value != defaults[name]}


def _digest(stage: str, form: Form) -> str:
    text = json.dumps({"form": FORM, "stage": stage, **form}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
