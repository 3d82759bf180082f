"""Which rows are held out."""

import pytest
from trainer.data.building import answers, calls, says, user
from tunemill_api.failures import Reason
from tunemill_trainer.data import split
from tunemill_trainer.errors import StageError


def draws(count, seed=42):
    """The draws of so many different conversations."""
    return [split.draw(split.request_fingerprint([user(f"question {number}")]), seed) for number in range(count)]


def cut(found, fraction):
    """The threshold of the draws."""
    return split.cut(min(found), max(found), fraction)


def test_the_share_is_about_the_configured_fraction():
    """Of 5000 conversations, about a tenth is held out."""
    found = draws(5000)
    assert 430 < sum(each < cut(found, 0.1) for each in found) < 570


def test_new_rows_do_not_move_old_ones():
    """A conversation's split depends only on its request."""
    few, many = draws(200), draws(2000)
    cut_of_few, cut_of_many = cut(few, 0.2), cut(many, 0.2)
    assert [each < cut_of_few for each in few] == [each < cut_of_many for each in many[:200]]


def test_the_seed_chooses_other_rows():
    """Another seed holds out other rows."""
    assert [each < 0.3 for each in draws(50)] != [each < 0.3 for each in draws(50, seed=7)]


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_each_split_gets_a_row(count, fraction):
    """Even of two rows, one is held out and one is trained on."""
    for seed in range(20):
        found = draws(count, seed)
        held_out = [each < cut(found, fraction) for each in found]
        assert any(held_out)
        assert not all(held_out)


@pytest.mark.parametrize(("lowest", "highest"), [(1.0, 0.0), (0.4, 0.4)])
def test_one_request_cannot_be_split(lowest, highest):
    """The same request must not be in both splits."""
    with pytest.raises(StageError) as raised:
        split.cut(lowest, highest, 0.1)
    assert raised.value.reason is Reason.DATASET_TOO_SMALL


def test_the_split_ignores_replies_and_white_space():
    """Rows with the same request have the same split; tool responses are part of the request."""
    asked = split.request_fingerprint([user("What is  the WEATHER?"), says("It rains.")])
    assert asked == split.request_fingerprint([user("what is the weather? "), says("Sun.")])
    assert asked != split.request_fingerprint([user("what is the weather?"), calls(city="Rome"), answers("7")])
