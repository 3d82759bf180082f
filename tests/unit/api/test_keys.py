"""What changes a stage's key, and what must not."""

import pytest
from api.builders import a_spec
from tunemill_api import keys
from tunemill_api.status import Rival

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
        ({"training": {"maxLength": 512}}, 0),
        ({"training": {"lossOn": "All"}}, 0),
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
    """One edit re-runs everything after it and nothing before it."""
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
def test_what_changes_no_output_changes_no_key(change):
    """Where things lie, who may read them and how a stage runs are no part of what it makes."""
    assert chain(a_spec(**change)) == chain(a_spec())


def test_a_draft_has_a_key_of_its_own_that_follows_its_gates():
    """Its card names them. Branch and tag are those of the publication that it is not."""

    def draft_key(**change):
        return keys.publish_key("0123", a_spec(evaluation={"gates": [{"metric": "exact_match", **change}]}), draft=True)

    assert draft_key(min="0.9") != draft_key(min="0.8")
    assert draft_key(min="0.9") != keys.publish_key("0123", a_spec())
    tagged = a_spec(publish={"repository": "acme/support-tools", "tag": "v1", "branch": "next"})
    assert keys.publish_key("0123", tagged, draft=True) == keys.publish_key("0123", a_spec(), draft=True)


def test_the_published_model_beside_a_new_one_is_in_its_judgement_alone():
    """It changes the figures of a run that is compared, and nothing where nothing is."""
    rival, none = Rival(of="0123", prepare="4567", train="89ab"), Rival(of="0123")
    assert keys.evaluate_key("0123", a_spec(), rival) != keys.evaluate_key("0123", a_spec())
    assert keys.evaluate_key("0123", a_spec(), none) == keys.evaluate_key("0123", a_spec())


def test_new_data_under_the_same_name_changes_every_key():
    """The keys hold the content of the data, not its name."""
    before, after = chain(a_spec()), chain(a_spec(), {**RESOLVED, "dataset": "d2d2"})
    assert not set(before) & set(after)


def test_other_tools_change_every_key():
    """As with the data, the content counts."""
    assert not set(chain(a_spec())) & set(chain(a_spec(), {**RESOLVED, "tools": "d3d3"}))


def test_a_request_changes_when_the_user_asks_again_or_the_data_moves():
    """Prepare is asked for again when the wish differs, the annotation is new, or the workspace is another."""
    requests = {
        keys.prepare_request(a_spec()),
        keys.prepare_request(a_spec(), "2026-11-21T10:00:00Z"),
        keys.prepare_request(a_spec(dataset={"uri": "s3://team-a-data/new.jsonl"})),
        keys.prepare_request(a_spec(workspace={"uri": "s3://other/place"})),
        keys.prepare_request(a_spec(tools={"configMapKeyRef": {"name": "tools", "key": "tools.json"}})),
    }
    assert len(requests) == 5


def test_a_request_does_not_change_with_the_credentials():
    """A new Secret name alone asks for nothing that was already done."""
    with_secret = a_spec(
        dataset={"uri": "s3://team-a-data/support/calls.jsonl", "credentialsSecretRef": {"name": "s3"}},
    )
    assert keys.prepare_request(with_secret) == keys.prepare_request(a_spec())
