"""The keys of a run's outputs: those of the RunSpec, or computed from the spec."""

import pytest
from property.builders import a_spec, parsed
from trainer.storage.buckets import a_bucket
from tunemill_api import keys
from tunemill_api.run_spec import RunSpec
from tunemill_trainer.storage import output_keys, references

PREPARED = "00112233aabbccdd"
GIVEN = {"train": "1111", "evaluate": "2222", "publish": "3333"}


def a_run(**given: str) -> RunSpec:
    """Return a run with these keys."""
    return RunSpec(namespace="team-a", name="support", run_id="run1", spec=parsed(a_spec()), keys=given)


def found(run: RunSpec) -> list[str]:
    """Return the keys of train, evaluate, publish and a draft."""
    return [
        output_keys.train(run, PREPARED),
        output_keys.evaluate(run, PREPARED),
        output_keys.publish(run, PREPARED, draft=False),
        output_keys.publish(run, PREPARED, draft=True),
    ]


def test_recorded_keys_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod of this version may publish a model that an older version trained and evaluated."""
    monkeypatch.setattr(keys, "RECIPES", dict.fromkeys(keys.RECIPES, 99))
    assert found(a_run(**GIVEN)) == ["1111", "2222", "3333", "3333"]


def test_missing_keys_are_computed_from_the_spec() -> None:
    """A local run computes the same keys as the operator."""
    spec = parsed(a_spec())
    trained = keys.train_key(PREPARED, spec)
    evaluated = keys.evaluate_key(trained, spec)
    published = [keys.publish_key(evaluated, spec, draft=draft) for draft in (False, True)]
    assert found(a_run()) == [trained, evaluated, *published]


def test_a_missing_key_is_computed_from_recorded_ones() -> None:
    """A user's own trainer may get only the key of train."""
    evaluated = keys.evaluate_key("1111", parsed(a_spec()))
    assert found(a_run(train="1111"))[:2] == ["1111", evaluated]


def test_outputs_of_older_versions_stay_referenced() -> None:
    """The run that uses them refers to them, so that no other run removes them."""
    with a_bucket() as bucket:
        references.refer(bucket.workspace(), a_run(**GIVEN), PREPARED)
        marks = {"/".join(name.split("/")[-2:]) for name in bucket.names("runs/runs/")}
        assert {"train/1111", "evaluate/2222", "publish/3333", f"prepare/{PREPARED}"} <= marks
