"""The invariants of test_plan.py with a clock of the operator that jumps, or differs between operators."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from property.builders import at
from property.simulator import World
from property.test_plan import Operation


class TwoClockWorld(World):
    """The operator's clock differs from that of the API server and the nodes."""

    skew = 0
    """Seconds by which it is ahead."""

    @property
    def clock(self) -> Any:
        """The time of the operator's clock."""
        return at(self.seconds + self.skew)


class TwoClocks(Operation):
    """Like `Operation`, but times need not be in order."""

    def __init__(self) -> None:
        super().__init__()
        self.world: Any = TwoClockWorld()

    @rule(skew=st.sampled_from([-86_400, -3_600, -5, 0, 5, 3_600, 86_400]))
    def the_clock_jumps(self, skew: int) -> None:
        """By seconds, an hour or a day, in both directions."""
        self.world.skew = skew

    @invariant()
    def failures_have_a_remedy(self) -> None:
        """But for the order of times."""
        status = self.world.status
        truth = {condition.type: condition.status for condition in status.conditions}
        assert not (truth and truth["Stalled"] == "True" and truth["Reconciling"] == "True")
        assert status.failure is None or status.failure.remedy

    @invariant()
    def the_history_is_bounded_and_unique(self) -> None:
        """But for the order of times."""
        history = self.world.status.history
        assert len(history) <= 5
        assert len({entry.id for entry in history}) == len(history)

    def teardown(self) -> None:
        """With a correct clock again, the run is published, whatever was written with a wrong one."""
        self.world.skew = 0
        super().teardown()


TestTwoClocks = pytest.mark.slow(TwoClocks.TestCase)
TestTwoClocks.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
