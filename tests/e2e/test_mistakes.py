"""Mistakes of users: each message has the place, the reason and a remedy, before a GPU is requested."""

import pytest
from e2e.world import World
from tunemill_api.failures import Reason
from tunemill_api.status import Phase, StageState
from tunemill_dev.kubectl import CommandError
from tunemill_dev.testbed import HUB_SECRET, json_lines
from tunemill_dev.tiny import rows

PREPARE_SECONDS = 300
# Not of the fixtures: building the images for the first time takes minutes.
pytestmark = pytest.mark.timeout(700, func_only=True)


def test_a_repository_in_a_foreign_namespace_fails_in_prepare(world: World):
    """The token may not push there: reported in seconds, without a train pod."""
    world.put_rows()
    finetune = world.apply(publish={"repository": "somebody-else/support-tools"})
    failure = finetune.reach(Phase.FAILED, PREPARE_SECONDS).failure
    assert (failure.stage, failure.reason) == ("prepare", Reason.HUB_WRITE_DENIED)
    assert "somebody-else" in failure.message
    assert "spec.publish" in failure.remedy
    assert finetune.pods("train") == []


def test_an_invalid_row_is_reported_with_its_line(world: World):
    """The seventh line is not JSON: the message has the file, the line and a remedy."""
    good = json_lines(rows(20)).splitlines()
    world.testbed.store.put(world.data, "\n".join([*good[:6], '{"messages": [', *good[6:]]))
    finetune = world.apply()
    failure = finetune.reach(Phase.FAILED, PREPARE_SECONDS).failure
    assert (failure.stage, failure.reason) == ("prepare", Reason.DATASET_MALFORMED)
    assert "calls.jsonl line 7" in failure.message
    assert finetune.pods("train") == []

    world.put_rows()
    requested = "tunemill.dev/requested-at=now"
    world.testbed.kubectl("annotate", "fcft", finetune.name, "--namespace", world.name, requested)
    finetune.follow(lambda status: status.prepared is not None and status.failure is None, PREPARE_SECONDS)


def test_a_missing_bucket_is_reported(world: World):
    """The message has the uri."""
    finetune = world.apply(dataset={"uri": "s3://nobody-made-this/calls.jsonl"})
    failure = finetune.reach(Phase.FAILED, PREPARE_SECONDS).failure
    assert (failure.stage, failure.reason) == ("prepare", Reason.BUCKET_NOT_FOUND)
    assert "s3://nobody-made-this" in failure.message


def test_a_missing_secret_is_reported_and_the_run_continues_once_it_exists(world: World):
    """No edit and no restart is needed."""
    world.put_rows()
    world.testbed.kubectl("delete", "secret", HUB_SECRET, "--namespace", world.name)
    finetune = world.apply()
    status = finetune.follow(lambda status: status.failure is not None, PREPARE_SECONDS)
    assert status.failure.reason == Reason.SECRET_NOT_FOUND
    assert HUB_SECRET in status.failure.message

    world.testbed.kubectl.apply(world.testbed.hub_secret(world.name))
    status = finetune.follow(lambda status: status.prepared is not None, PREPARE_SECONDS)
    assert status.failure is None
    assert {stage.name: stage.state for stage in status.stages}["prepare"] == StageState.SUCCEEDED


@pytest.mark.parametrize(
    ("part", "fields", "named"),
    [
        ("training", {"learningrate": "1e-4"}, r'spec\.training.*unknown field "learningrate"'),
        ("training", {"learningRate": "2"}, "training.learningRate must lie above 0"),
        ("dataset", {"uri": "calls.jsonl"}, "spec.dataset.uri"),
        ("evaluation", {"gates": [{"metric": "exact_match"}]}, "a gate needs at least one of"),
    ],
)
def test_an_unknown_field_is_rejected_by_the_api_server(world: World, part, fields, named):
    """Nothing is stored; the error of `kubectl apply` names the field."""
    with pytest.raises(CommandError, match=named):
        world.apply(**{part: fields})
    assert world.testbed.kubectl.list("fcft", world.name) == []
