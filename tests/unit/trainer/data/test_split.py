"""Which rows are held out."""

import pytest
from trainer.data.building import user
from tunemill_api.failures import Reason
from tunemill_trainer.data import split
from tunemill_trainer.errors import StageError


def draws(count, seed=42):
    """The draws of so many different conversations."""
    return [split.draw(split.fingerprint([user(f"question {number}")]), seed) for number in range(count)]


def test_the_share_is_about_what_was_asked_for():
    """Of 5000 conversations about a tenth falls below the cut."""
    found = draws(5000)
    assert 430 < sum(each < split.cut(found, 0.1) for each in found) < 570


def test_more_rows_move_no_old_ones():
    """A conversation's side depends on itself alone: growing data keeps what was held out."""
    few, many = draws(200), draws(2000)
    cut_of_few, cut_of_many = split.cut(few, 0.2), split.cut(many, 0.2)
    assert [each < cut_of_few for each in few] == [each < cut_of_many for each in many[:200]]


def test_the_seed_chooses_other_rows():
    """Another seed holds out others."""
    assert [each < 0.3 for each in draws(50)] != [each < 0.3 for each in draws(50, seed=7)]


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_each_side_gets_a_row(count, fraction):
    """Also of two rows, one is held out and one is trained on."""
    for seed in range(20):
        found = draws(count, seed)
        held_out = [each < split.cut(found, fraction) for each in found]
        assert any(held_out)
        assert not all(held_out)


@pytest.mark.parametrize("found", [[], [0.4], [0.4, 0.4]])
def test_one_conversation_cannot_be_split(found):
    """The same conversation on both sides would be judged after it was learnt."""
    with pytest.raises(StageError) as raised:
        split.cut(found, 0.1)
    assert raised.value.reason is Reason.DATASET_TOO_SMALL
