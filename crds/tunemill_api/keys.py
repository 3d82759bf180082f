"""Stage keys and stage inputs: hashes of everything that a stage's output depends on.

- The *inputs* of a stage are hashed from the fields of the spec that affect it, and from the inputs of the stage
  before. They do not change with a version of Tunemill. The operator compares them to decide whether a stage that is
  recorded in the status still matches the spec.
- The *key* of a stage names its output in the workspace. It also contains the stage's number in `RECIPES`, so that a
  stage whose computation has changed does not reuse an old output. A recorded key is not computed again while its
  inputs stay the same.

Both hash a canonical form: a flat dictionary per stage, with separate short names, without values that equal the
default of the form. Therefore a new field, a renamed field or a changed default in the API changes no hash of an
existing object. The forms are frozen. docs/adr/0011 describes how they may change.

A form contains only what changes an output: no credentials, retries or pod placement. A custom trainer image is part
of the keys of every stage that has not started, because its outputs must not be mistaken for those of the platform's
image. The platform's image is represented by `RECIPES`, so that an upgrade changes no key.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from tunemill_api.data import Augmentation, Replay, ValidationSplit
from tunemill_api.evaluation import Gate, Suite
from tunemill_api.finetune import FineTuneSpec, effective_workspace
from tunemill_api.scalars import ConfigMapKeyRef
from tunemill_api.status import Rival, SuiteDataFacts
from tunemill_api.training import AdapterMethod, Preference

RECIPES: dict[str, int] = {"prepare": 5, "train": 2, "evaluate": 4, "publish": 3}
"""Increased when a stage computes a different output from the same inputs. Part of the keys, not of the inputs:
finished and running stages are not affected, and the next run uses the new recipe."""

FORM = 1
"""The version of the canonical forms below."""

Value = str | int | bool | tuple[str, ...] | None
Form = Mapping[str, Value]

# The defaults of form 1. They do not change when a default of the API changes.
_SOURCE_DEFAULTS: Form = {
    "hub": "",
    "revision": "main",
    "adapter.revision": "main",
    "endpoint": "",
    "region": "",
    "heldout.uri": "",
    "validation.uri": "",
    "replay.uri": "",
    "tools": None,
    "template": None,
    "workspace.endpoint": "",
    "request": "",
}
_DATA_DEFAULTS: Form = {
    "adapter": "",
    "format": "Auto",
    "heldout.fraction": "0.1",
    "heldout.seed": 42,
    "heldout.by": "Prompt",
    "validation": "",
    "replay": None,
    "invalid": "0",
    "rows": 0,
    "tokenizer": "Auto",
    "tokens": (),
    "think": "Keep",
    "length": 2048,
    "loss": "Assistant",
    "turns": "All",
    "augmentation": None,
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
    "preference": None,
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
_SUITE_DEFAULTS: Form = {"format": "Auto", "pattern": ""}
_EVALUATE_DEFAULTS: Form = {"rows": 500, "tokens": 0, "rival": "", "suites": ()}
_BASE_DEFAULTS: Form = {"precision": "Auto", "quantization": "None"}
_PUBLISH_DEFAULTS: Form = {
    "private": True,
    "branch": "main",
    "tag": "",
    "artifacts": ("Auto",),
    "serving": "vLLM",
    "hub": "",
    "gguf.quantization": "None",
    "oci.registry": "",
    "oci.repository": "",
}


# Inputs


def prepare_inputs(spec: FineTuneSpec, requested: str = "") -> str:
    """Return the inputs of prepare, before the data is read: 16 hexadecimal digits.

    Args:
        spec: the whole spec.
        requested: changes whenever a user or the schedule requests a new check of the data.
    """
    data = data_inputs(spec, requested)
    suites = {
        f"suite {suite.name}": _digest("suite", {"uri": suite.uri, **_suite(suite)}) for suite in spec.evaluation.suites
    }
    return _digest("prepare", {"inputs": data, **suites}) if suites else data


def data_inputs(spec: FineTuneSpec, requested: str = "") -> str:
    """Return the inputs of prepare without the suites, which are not trained on. Arguments as in `prepare_inputs`."""
    return _digest("prepare", {**_sources(spec, requested), **_data(spec)})


def train_inputs(data: str, prepared: str, spec: FineTuneSpec) -> str:
    """Return the inputs of train, from `data_inputs` and the key of prepare's output."""
    return _digest("train", {"inputs": data, "prepared": prepared, **_training(spec)})


def evaluate_inputs(
    train: str, spec: FineTuneSpec, rival: Rival | None = None, suites: Sequence[SuiteDataFacts] = ()
) -> str:
    """Return the inputs of evaluate, from those of train and from what prepare found in the data of the suites."""
    return _digest("evaluate", {"inputs": train, **_evaluation(spec, rival, suites)})


def publish_inputs(evaluate: str, spec: FineTuneSpec, *, draft: bool = False) -> str:
    """Return the inputs of publish, from those of evaluate."""
    return _digest("publish", {"inputs": evaluate, **_publication(spec, draft=draft)})


def run_inputs(prepare: str, spec: FineTuneSpec) -> str:
    """Return the identity of a whole run before any stage has finished, from the inputs of prepare with the suites."""
    return publish_inputs(evaluate_inputs(train_inputs(prepare, "", spec), spec), spec)


# Keys


def prepare_key(spec: FineTuneSpec, resolved: dict[str, str]) -> str:
    """Return the key of prepare's output, from the spec and from what its references were resolved to.

    It depends on the content of the data, not on its location: a copied bucket or a pinned commit needs no new
    training.

    Args:
        spec: the whole spec.
        resolved: the base model's commit (`baseModel`) and the sha256 of the training rows (`dataset`). If they exist,
            also those of the rows of `spec.dataset.evaluation.uri` (`evaluation`), of `spec.dataset.validation.uri`
            (`validation`) and of `spec.dataset.replay` (`replay`), of the template (`chatTemplate`) and of the tools
            (`tools`). `tags` is the choice of tokenizer mode Auto for tags that the base model lacks.
            `baseModelFiles` is the digest of the base model's files, because a server may serve other files for the
            same commit. `adapter` and `adapterFiles` are the same of the adapter from which training starts.
    """
    found = {f"resolved.{name}": value for name, value in resolved.items()}
    return _digest("prepare", {**_maker("prepare", spec), **_data(spec), **found})


def train_key(prepared: str, spec: FineTuneSpec) -> str:
    """Return the key of the adapter trained on prepare's output `prepared`."""
    return _digest("train", {**_maker("train", spec), "prepare": prepared, **_training(spec)})


def suite_key(prepared: str, spec: FineTuneSpec, suite: Suite, digest: str) -> str:
    """Return the key of the rows of a suite.

    Args:
        prepared: the key of prepare's output. It contains the tokenizer, and the rows with which the suite shares none.
        spec: the whole spec.
        suite: the suite. Its name is not part of the key.
        digest: the sha256 of its data.
    """
    form = {"prepare": prepared, "resolved.suite": digest, **_suite(suite)}
    return _digest("suite", {**_maker("prepare", spec), **form})


def evaluate_key(
    trained: str, spec: FineTuneSpec, rival: Rival | None = None, suites: Sequence[SuiteDataFacts] = ()
) -> str:
    """Return the key of the evaluation of the adapter `trained`. Gates are not part of it.

    `rival` is the published model that is evaluated on the same rows. A rival without a key does not change the key.
    `suites` is what prepare found in the data of the suites.
    """
    return _digest("evaluate", {**_maker("evaluate", spec), "train": trained, **_evaluation(spec, rival, suites)})


def base_evaluation_key(rows: str, spec: FineTuneSpec) -> str:
    """Return the key of the base model's replies to the held-out rows in an output of prepare, or to a suite.

    The adapter is not part of it, so several adapters of a base model share one evaluation.

    Args:
        rows: the key of prepare's output, or of the rows of the suite.
        spec: the whole spec.
    """
    computed = {"precision": spec.training.precision.value, "quantization": spec.base_model.quantization.value}
    form = {**_without(_BASE_DEFAULTS, computed), **_evaluation(spec, None, ())}
    return _digest("base-evaluation", {**_maker("evaluate", spec), "prepare": rows, **form})


def publish_key(evaluated: str, spec: FineTuneSpec, *, draft: bool = False) -> str:
    """Return the key of a published model.

    With `draft` it is the key of a draft, which has a separate branch and whose card lists the gates that were not
    passed.
    """
    form = _publication(spec, draft=draft)
    return _digest("publish", {**_maker("publish", spec), "evaluate": evaluated, **form})


# Canonical forms


def _maker(stage: str, spec: FineTuneSpec) -> Form:
    """Return the recipe of the stage, and the trainer image if it is not the platform's."""
    image = spec.compute.trainer_image
    return {"recipe": RECIPES[stage], **({"image": image} if image else {})}


def _sources(spec: FineTuneSpec, requested: str) -> Form:
    """Return the locations of data and model, before they are resolved."""
    workspace, template = effective_workspace(spec), spec.tokenizer.chat_template
    form: dict[str, Value] = {
        "hub": spec.hub.endpoint,
        "revision": spec.base_model.revision,
        "adapter.revision": spec.base_model.adapter.revision if spec.base_model.adapter else "main",
        "uri": spec.dataset.uri,
        "endpoint": spec.dataset.endpoint,
        "region": spec.dataset.region,
        "heldout.uri": spec.dataset.evaluation.uri,
        "validation.uri": spec.dataset.validation.uri if spec.dataset.validation else "",
        "replay.uri": spec.dataset.replay.uri if spec.dataset.replay else "",
        "tools": _reference(spec.tools.config_map_key_ref) if spec.tools else None,
        "template": _reference(template.config_map_key_ref) if template else None,
        "workspace": workspace.uri,
        "workspace.endpoint": workspace.endpoint,
        "request": requested,
    }
    return _without(_SOURCE_DEFAULTS, form)


def _data(spec: FineTuneSpec) -> Form:
    """Return how the data is converted to tokens."""
    form: dict[str, Value] = {
        "model": spec.base_model.id,
        "adapter": spec.base_model.adapter.id if spec.base_model.adapter else "",
        "format": spec.dataset.format.value,
        "heldout.fraction": spec.dataset.evaluation.fraction,
        "heldout.seed": spec.dataset.evaluation.seed,
        "heldout.by": spec.dataset.evaluation.split_by.value,
        "validation": _validation(spec.dataset.validation),
        "replay": _replay(spec.dataset.replay),
        "invalid": spec.dataset.max_invalid_fraction,
        "rows": spec.dataset.max_rows,
        "tokenizer": spec.tokenizer.mode.value,
        "tokens": tuple(spec.tokenizer.add_tokens),
        "think": spec.tokenizer.think.value,
        "length": spec.training.max_length,
        "loss": spec.training.loss_on.value,
        "turns": spec.training.turns.value,
        "augmentation": _augmentation(spec.dataset.augmentation),
    }
    return _without(_DATA_DEFAULTS, form)


def _validation(settings: ValidationSplit | None) -> str:
    """Return the fraction. With separate rows it has no effect; they are part of prepare's key by their content."""
    return settings.fraction if settings is not None and not settings.uri else ""


def _replay(settings: Replay | None) -> tuple[str, ...] | None:
    return None if settings is None else (f"share={settings.share}", f"format={settings.format}")


def _augmentation(settings: Augmentation | None) -> tuple[str, ...] | None:
    if settings is None:
        return None
    return (
        f"shuffle={settings.shuffle_tools}",
        f"distractors={settings.distractor_tools}",
        f"masked={settings.masked_names}",
        f"irrelevant={settings.irrelevant_rows}",
        f"answer={settings.irrelevance_answer}",
        f"seed={settings.seed}",
    )


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
        "preference": _preference(training.preference),
        "quantization": spec.base_model.quantization.value,
        "method": spec.adapter.method.value,
    }
    return _without(_TRAIN_DEFAULTS, form | _adapter(spec))


def _preference(settings: Preference | None) -> tuple[str, ...] | None:
    if settings is None:
        return None
    return (
        f"method={settings.method.value}",
        f"prompts={settings.max_prompts}",
        f"beta={settings.beta}",
        f"rate={settings.learning_rate}",
        f"epochs={settings.epochs}",
    )


def _adapter(spec: FineTuneSpec) -> dict[str, Value]:
    """Return the settings of the chosen method. Those of other methods have no effect."""
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


def _suite(suite: Suite) -> Form:
    """Return how a suite's rows are read and judged."""
    form: dict[str, Value] = {"format": suite.format.value, "judge": suite.judge.value, "pattern": suite.pattern}
    return _without(_SUITE_DEFAULTS, form)


def _evaluation(spec: FineTuneSpec, rival: Rival | None, suites: Sequence[SuiteDataFacts]) -> Form:
    form: dict[str, Value] = {
        "rows": spec.evaluation.max_rows,
        "tokens": spec.evaluation.max_new_tokens,
        "rival": rival.train if rival else "",
        "suites": tuple(sorted(f"{suite.name} {suite.key}" for suite in suites)),
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
        "gguf.quantization": publish.gguf.quantization.value,
        "oci.registry": publish.oci.registry if publish.oci else "",
        "oci.repository": publish.oci.repository if publish.oci else "",
    }
    if draft:
        for name in ("branch", "tag", "private"):
            del form[name]
        form["draft"] = tuple(_gate(gate) for gate in spec.evaluation.gates)
    return _without(_PUBLISH_DEFAULTS, form)


def _gate(gate: Gate) -> str:
    conditions = {
        "min": gate.min,
        "max": gate.max,
        "gain": gate.min_gain_over_base,
        "loss": gate.max_loss_vs_base,
        "adapter gain": gate.min_gain_over_adapter,
        "adapter loss": gate.max_loss_vs_adapter,
    }
    set_conditions = [f"{name}={value}" for name, value in conditions.items() if value is not None]
    return " ".join([gate.subject, *set_conditions])


def _reference(reference: ConfigMapKeyRef) -> str:
    return f"{reference.name}/{reference.key}"


def _without(defaults: Form, form: Form) -> Form:
    """Return the form without values that equal their default."""
    return {name: value for name, value in form.items() if name not in defaults or value != defaults[name]}


def _digest(stage: str, form: Form) -> str:
    text = json.dumps({"form": FORM, "stage": stage, **form}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
