"""Which changes affect the keys and inputs of stages."""

import pytest
from api.builders import a_spec, fields_of_spec
from tunemill_api import keys
from tunemill_api.evaluation import Suite
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.status import Rival, SuiteDataFacts

RESOLVED = {"baseModel": "c0ffee", "dataset": "d1d1"}


def chain(spec, resolved=RESOLVED):
    """Return the keys of all four stages."""
    prepared = keys.prepare_key(spec, resolved)
    trained = keys.train_key(prepared, spec)
    evaluated = keys.evaluate_key(trained, spec)
    return [prepared, trained, evaluated, keys.publish_key(evaluated, spec)]


@pytest.mark.parametrize(
    ("change", "first_changed"),
    [
        ({"tokenizer": {"mode": "Extend"}}, 0),
        ({"tokenizer": {"think": "Drop"}}, 0),
        ({"dataset": {"uri": "s3://team-a-data/support/calls.jsonl", "format": "XLAM"}}, 0),
        ({"baseModel": {"id": "google/gemma-2-2b-it", "adapter": {"id": "acme/week-1"}}}, 0),
        ({"training": {"maxLength": 512}}, 0),
        ({"training": {"lossOn": "All"}}, 0),
        ({"training": {"turns": "Last"}}, 0),
        ({"training": {"learningRate": "3e-4"}}, 1),
        ({"adapter": {"lora": {"rank": 8}}}, 1),
        ({"adapter": {"method": "Full"}}, 1),
        ({"baseModel": {"id": "google/gemma-2-2b-it", "quantization": "NF4"}}, 1),
        ({"training": {"earlyStopping": {"patience": 2}}}, 1),
        ({"evaluation": {"maxRows": 10}}, 2),
        ({"publish": {"repository": "acme/other"}}, 3),
        ({"publish": {"repository": "acme/support-tools", "tag": "v1"}}, 3),
    ],
)
def test_an_edit_changes_the_key_of_its_stage_and_of_all_later_ones(change, first_changed):
    """Keys of earlier stages stay."""
    before, after = chain(a_spec()), chain(a_spec(**change))
    assert [old == new for old, new in zip(before, after, strict=True)] == [at < first_changed for at in range(4)]


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": True},
        {"maxRuntime": "1h"},
        {"retry": {"limit": 0}},
        {"compute": {"gpus": 2}},
        {"compute": {"modelCache": {"claimName": "models"}}},
        {"adapter": {"ia3": {"targetModules": ["k_proj"]}, "adalora": {"alpha": 8}}},
        {"training": {"checkpoint": {"everySteps": 7}}},
        {"evaluation": {"gates": [{"metric": "exact_match", "min": "0.9"}]}},
        {"dataset": {"uri": "s3://team-a-data/support/calls.jsonl", "credentialsSecretRef": {"name": "s3"}}},
        {"dataset": {"uri": "s3://copied-elsewhere/calls.jsonl"}},
        {"dataset": {"uri": "hf://copied-to/the-hub"}},
        {"tools": {"configMapKeyRef": {"name": "the-same-tools", "key": "elsewhere"}}},
        {"baseModel": {"id": "google/gemma-2-2b-it", "revision": "v2-which-is-the-same-commit"}},
        {"workspace": {"uri": "s3://other/place"}},
    ],
)
def test_fields_that_do_not_affect_outputs_do_not_change_keys(change):
    """For example locations, credentials and resources."""
    assert chain(a_spec(**change)) == chain(a_spec())


def test_a_custom_trainer_image_has_separate_keys():
    """Its outputs are not mistaken for those of the default image, at any stage."""
    ours, own, other = (a_spec(compute={"trainerImage": image}) for image in ("", "acme/own:1", "acme/own:2"))
    assert chain(ours) == chain(a_spec())
    assert not set(chain(ours)) & set(chain(own))
    assert not set(chain(own)) & set(chain(other))
    assert keys.train_key("0123", own) != keys.train_key("0123", ours), "also of what another image has prepared"
    assert keys.base_evaluation_key("0123", own) != keys.base_evaluation_key("0123", ours)


def test_an_edit_of_the_trainer_image_changes_no_key():
    """A started stage keeps its key, as its inputs are the same."""
    own = a_spec(compute={"trainerImage": "acme/own:1"})
    assert keys.prepare_inputs(own) == keys.prepare_inputs(a_spec())
    assert keys.train_inputs("0123", "4567", own) == keys.train_inputs("0123", "4567", a_spec())


def test_different_files_at_the_same_commit_change_every_key():
    """A server may serve other files for a commit, so the key contains the digests of the files."""
    seen, poisoned = ({**RESOLVED, "baseModelFiles": digest} for digest in ("d4d4", "d5d5"))
    assert not set(chain(a_spec(), seen)) & set(chain(a_spec(), poisoned))


def test_different_weights_of_the_start_adapter_change_every_key():
    """Its commit and files are in the key of prepare, so its next release starts a new training."""
    spec = a_spec(baseModel={"id": "google/gemma-2-2b-it", "adapter": {"id": "acme/week-1"}})
    seen, other = ({**RESOLVED, "adapter": "c0ffee", "adapterFiles": digest} for digest in ("d4d4", "d5d5"))
    assert not set(chain(spec, seen)) & set(chain(spec, other))


def test_a_draft_has_a_separate_key_that_depends_on_its_gates():
    """Its card lists them. Branch and tag of the publication are not part of the key."""

    def draft_key(**change):
        return keys.publish_key("0123", a_spec(evaluation={"gates": [{"metric": "exact_match", **change}]}), draft=True)

    assert draft_key(min="0.9") != draft_key(min="0.8")
    assert draft_key(min="0.9") != keys.publish_key("0123", a_spec())
    tagged = a_spec(publish={"repository": "acme/support-tools", "tag": "v1", "branch": "next"})
    assert keys.publish_key("0123", tagged, draft=True) == keys.publish_key("0123", a_spec(), draft=True)


def test_a_published_model_to_compare_with_affects_only_the_evaluate_key():
    """Without a comparison the key stays."""
    rival, none = Rival(of="0123", prepare="4567", train="89ab"), Rival(of="0123")
    assert keys.evaluate_key("0123", a_spec(), rival) != keys.evaluate_key("0123", a_spec())
    assert keys.evaluate_key("0123", a_spec(), none) == keys.evaluate_key("0123", a_spec())


CHAT = {"name": "chat", "uri": "s3://other/chat.jsonl", "judge": "Likelihood"}
OWN = {"name": "own", "uri": "s3://other/own.jsonl", "judge": "Calls"}


def with_suites(*suites):
    """Return the usual spec with suites."""
    return a_spec(evaluation={"suites": [*suites]})


def test_adding_a_suite_reruns_prepare_and_evaluate_but_not_train():
    """It changes the inputs of prepare and evaluate, but not those of train."""
    plain, suite = a_spec(), with_suites(CHAT)
    assert keys.prepare_inputs(suite) != keys.prepare_inputs(plain)
    assert keys.data_inputs(suite) == keys.data_inputs(plain) == keys.prepare_inputs(plain)
    assert chain(suite)[:2] == chain(plain)[:2]
    found = [SuiteDataFacts(name="chat", key=keys.suite_key("0123", suite, Suite(**CHAT), "d1"), rows=1)]
    assert keys.evaluate_key("89ab", suite, suites=found) != keys.evaluate_key("89ab", suite)
    assert keys.evaluate_inputs("89ab", suite, suites=found) != keys.evaluate_inputs("89ab", suite)


@pytest.mark.parametrize(
    "change",
    [{"uri": "s3://other/new.jsonl"}, {"format": "OpenAI"}, {"judge": "Calls"}, {"name": "talk"}],
)
def test_every_field_of_a_suite_changes_its_key(change):
    """A changed field may select other rows."""
    assert keys.prepare_inputs(with_suites(CHAT | change)) != keys.prepare_inputs(with_suites(CHAT))


def test_the_order_of_suites_changes_no_key():
    """A tool may sort the list."""
    assert keys.prepare_inputs(with_suites(CHAT, OWN)) == keys.prepare_inputs(with_suites(OWN, CHAT))
    facts = [SuiteDataFacts(name=name, key="0123", rows=1) for name in ("chat", "own")]
    assert keys.evaluate_key("89ab", a_spec(), suites=facts) == keys.evaluate_key("89ab", a_spec(), suites=facts[::-1])


def test_the_key_of_suite_rows_depends_on_their_content_and_the_training_rows():
    """Its name and location are not in the key. The judge is, because prepare checks the rows for it."""

    def key(prepared="0123", digest="d1", **change):
        return keys.suite_key(prepared, a_spec(), Suite(**CHAT | change), digest)

    assert key() == key(name="talk") == key(uri="s3://copied/chat.jsonl")
    others = [key(prepared="4567"), key(digest="d2"), key(format="OpenAI"), key(judge="Calls")]
    assert len({key(), *others}) == 5


def test_new_data_under_the_same_name_changes_every_key():
    """The keys contain the digest of the data, not its name."""
    before, after = chain(a_spec()), chain(a_spec(), {**RESOLVED, "dataset": "d2d2"})
    assert not set(before) & set(after)


def test_different_tools_change_every_key():
    """By their content."""
    assert not set(chain(a_spec())) & set(chain(a_spec(), {**RESOLVED, "tools": "d3d3"}))


def test_prepare_runs_again_after_a_changed_name_or_a_request():
    """Another source, workspace or request gives other inputs before the data is read."""
    found = {
        keys.prepare_inputs(a_spec()),
        keys.prepare_inputs(a_spec(), "2026-11-21T10:00:00Z"),
        keys.prepare_inputs(a_spec(dataset={"uri": "s3://team-a-data/new.jsonl"})),
        keys.prepare_inputs(a_spec(workspace={"uri": "s3://other/place"})),
        keys.prepare_inputs(a_spec(tools={"configMapKeyRef": {"name": "tools", "key": "tools.json"}})),
    }
    assert len(found) == 5


def test_prepare_does_not_run_again_for_changed_credentials():
    """A new Secret name does not affect outputs."""
    with_secret = a_spec(
        dataset={"uri": "s3://team-a-data/support/calls.jsonl", "credentialsSecretRef": {"name": "s3"}},
    )
    assert keys.prepare_inputs(with_secret) == keys.prepare_inputs(a_spec())


# The canonical forms

CONFIG_MAP = {"name": "a", "key": "b"}
IN_FORMS = {
    "hub.endpoint": "https://hub.example.com",
    "baseModel.id": "google/gemma-3-1b-it",
    "baseModel.revision": "v2",
    "baseModel.adapter.id": "acme/week-1",
    "baseModel.adapter.revision": "v2",
    "baseModel.quantization": "Int8",
    "dataset.uri": "s3://other/calls.jsonl",
    "dataset.format": "XLAM",
    "dataset.endpoint": "https://s3.example.com",
    "dataset.region": "eu-1",
    "dataset.evaluation.fraction": "0.2",
    "dataset.evaluation.seed": 7,
    "dataset.evaluation.splitBy": "Tools",
    "dataset.evaluation.uri": "s3://other/held-out.jsonl",
    "dataset.validation.fraction": "0.1",
    "dataset.validation.uri": "s3://other/validation.jsonl",
    "dataset.replay": {"uri": "s3://other/chat.jsonl", "share": "0.2"},
    "dataset.maxInvalidFraction": "0.1",
    "dataset.maxRows": 100,
    "dataset.augmentation.shuffleTools": False,
    "dataset.augmentation.distractorTools": 5,
    "dataset.augmentation.maskedNames": "0.5",
    "dataset.augmentation.irrelevantRows": "0.5",
    "dataset.augmentation.irrelevanceAnswer": "No.",
    "dataset.augmentation.seed": 7,
    "tools.configMapKeyRef": CONFIG_MAP,
    "tokenizer.mode": "Text",
    "tokenizer.addTokens": ["<a>"],
    "tokenizer.chatTemplate.configMapKeyRef": CONFIG_MAP,
    "tokenizer.think": "Drop",
    "adapter.method": "Full",
    "adapter.lora.rank": 8,
    "adapter.lora.alpha": 8,
    "adapter.lora.dropout": "0.1",
    "adapter.lora.targetModules": ["q_proj"],
    "adapter.lora.rsLora": True,
    "adapter.adalora.initialRank": 30,
    "adapter.adalora.targetRank": 8,
    "adapter.adalora.alpha": 8,
    "adapter.adalora.dropout": "0.1",
    "adapter.adalora.targetModules": ["q_proj"],
    "adapter.ia3.targetModules": ["q_proj"],
    "adapter.ia3.feedforwardModules": [],
    "training.epochs": 2,
    "training.maxSteps": 10,
    "training.learningRate": "3e-4",
    "training.scheduler": "Linear",
    "training.warmupRatio": "0.2",
    "training.batchSize": 4,
    "training.maxLength": 512,
    "training.lossOn": "All",
    "training.turns": "Last",
    "training.seed": 7,
    "training.precision": "BF16",
    "training.earlyStopping.patience": 2,
    "training.divergence": "Ignore",
    "training.preference.maxPrompts": 100,
    "training.preference.beta": "0.2",
    "training.preference.learningRate": "1e-5",
    "training.preference.epochs": 2,
    "evaluation.maxRows": 100,
    "evaluation.maxNewTokens": 100,
    "evaluation.suites": [{"name": "chat", "uri": "s3://other/chat.jsonl", "judge": "Likelihood"}],
    "evaluation.gates": [],
    "publish.repository": "acme/other",
    "publish.private": False,
    "publish.branch": "next",
    "publish.tag": "v1",
    "publish.artifacts": ["Merged"],
    "publish.serving": "Transformers",
    "publish.gguf.quantization": "Q8_0",
    "publish.oci": {"registry": "https://ghcr.io", "repository": "acme/tools"},
    "workspace.uri": "s3://other/place",
    "workspace.endpoint": "https://s3.example.com",
}
"""The fields that are in a canonical form, each with a value that is not its default."""
CHANGE_NO_OUTPUT = {
    "suspend": "says whether anything runs",
    "profile": "names a profile; what the profile gives is in the fields that it gives",
    "baseModel.tokenSecretRef": "credentials",
    "dataset.credentialsSecretRef": "credentials",
    "publish.tokenSecretRef": "credentials",
    "publish.signing": "credentials; what is published already is not signed afterwards",
    "tracking": "where figures are logged to, besides the outputs",
    "workspace.credentialsSecretRef": "credentials",
    "workspace.manifestKeySecretRef": "says how outputs are proven; turning it on or off makes none of them again",
    "workspace.region": "says how a bucket is reached; its name is unique",
    "workspace.keepRuns": "says how long outputs are kept",
    "training.preference.method": "in the form; DPO is its only value",
    "training.checkpoint": "a training resumed from a checkpoint has the result of an uninterrupted one",
    "evaluation.onGateFailure": "says what becomes of an evaluation",
    "compute": "where pods run and what they get; a trainer image of the user's own is in keys, not in inputs",
    "podTemplates": "where pods run and what they get",
    "queue": "when pods run",
    "retry": "how often a stage is tried",
    "maxRuntime": "how long a run may take",
    "stallTimeout": "how long a stage may be silent",
    "maxGpuHours": "what a run may cost",
    "historyLimit": "what the status keeps",
    "retrain": "when to look at the data; a new time of the schedule is a request",
}
"""The fields that are in no canonical form, each with the reason."""


def leaves():
    """Return the paths of all fields, down to those in a table and to references."""
    return fields_of_spec(lambda path: path in IN_FORMS or path in CHANGE_NO_OUTPUT or path.endswith("configMapKeyRef"))


def test_every_spec_field_is_in_a_canonical_form_or_declared_irrelevant_to_outputs():
    """A new field has to be added to a canonical form, or to the list with a reason."""
    undecided = {path for path in leaves() if path not in IN_FORMS and path not in CHANGE_NO_OUTPUT}
    assert not undecided, f"add them to a form of keys.py, or to CHANGE_NO_OUTPUT: {sorted(undecided)}"
    assert not set(IN_FORMS) - set(leaves()), "these fields are gone"


def hashes(spec):
    """Return all inputs and keys of a spec."""
    evaluated = keys.evaluate_inputs(keys.train_inputs(keys.prepare_inputs(spec), "prepared", spec), spec)
    draft = keys.publish_inputs(evaluated, spec, draft=True)
    drafted = keys.publish_key("evaluated", spec, draft=True)
    return keys.publish_inputs(evaluated, spec), draft, drafted, *chain(spec)


@pytest.mark.parametrize("path", IN_FORMS)
def test_a_field_in_a_canonical_form_changes_the_inputs(path):
    """For every field, including the settings of each method."""
    method = {"lora": "LoRA", "adalora": "AdaLoRA", "ia3": "IA3"}.get(path.split(".")[1] if "." in path else "")
    settings: dict[str, dict] = {"adapter": {"method": method}} if method else {}
    if path.startswith("baseModel.adapter."):
        settings["baseModel"] = {"id": "google/gemma-2-2b-it", "adapter": {"id": "acme/week-0"}}
    base = a_spec(workspace={"uri": "s3://team-a/space/"}, **settings).model_dump(mode="json", by_alias=True)
    changed = FineTuneSpec.model_validate(base).model_dump(mode="json", by_alias=True)
    part = changed
    *parents, last = path.split(".")
    for name in parents:
        part[name] = part[name] or {}
        part = part[name]
    part[last] = IN_FORMS[path]
    assert hashes(FineTuneSpec.model_validate(changed)) != hashes(FineTuneSpec.model_validate(base))


FROZEN = {
    "smallest": [
        "bb8ca91fd2d323bd",
        "0fbb4a1df8d6e300",
        "59e8c36dc781fc7a",
        "bfc62144998ea9ad",
        "4841b42124a5767b",
        "8ccb48eee2edc7b5",
        "cf9a4ca1952cd2ab",
    ],
    "other": [
        "557153f4ae7da92b",
        "54c791f518713d78",
        "e7106efd17cca607",
        "08fdea4be6dcee4e",
        "fc4eeb3d376f1a68",
        "844f142f2a93e726",
        "42776c9836f4e886",
    ],
}


def test_the_canonical_forms_are_frozen(monkeypatch):
    """These hashes are in the status of objects and in the names of folders in workspaces: they must never change."""
    monkeypatch.setattr(keys, "RECIPES", dict.fromkeys(keys.RECIPES, 1))
    other = a_spec(
        training={"epochs": 3, "learningRate": "3e-4"},
        adapter={"method": "AdaLoRA", "adalora": {"targetRank": 8}},
        dataset={"uri": "hf://acme/calls", "maxRows": 100},
        workspace={"uri": "s3://team-a/space/"},
        tokenizer={"addTokens": ["<a>"], "chatTemplate": {"configMapKeyRef": CONFIG_MAP}},
        publish={"repository": "acme/other", "tag": "v1"},
    )
    # The API server stored this rate for objects without one, before the default became Auto.
    smallest = a_spec(training={"learningRate": "1e-4"})
    assert {"smallest": [*hashes(smallest)], "other": [*hashes(other)]} == FROZEN


def test_defaults_missing_from_the_crd_are_those_of_the_canonical_forms():
    """Fields of profiles have no default in the CRD, so a changed default would change existing objects."""
    spec = a_spec()
    assert set(keys._sources(spec, "")) == {"uri", "workspace"}
    assert set(keys._publication(spec, draft=False)) == {"repository"}
    assert keys._publication(spec, draft=True)["draft"] == ("exact_match gain=0",)


def test_a_new_recipe_changes_keys_but_not_inputs(monkeypatch):
    """A recorded stage stays valid by its inputs. Outputs of the new recipe have another name."""
    inputs, names = hashes(a_spec())[:2], chain(a_spec())
    monkeypatch.setattr(keys, "RECIPES", {stage: number + 1 for stage, number in keys.RECIPES.items()})
    assert hashes(a_spec())[:2] == inputs
    assert not set(chain(a_spec())) & set(names)
