"""The keys of a run's outputs in the workspace: those in the RunSpec, or computed from the spec.

The operator records the keys in the RunSpec. After an upgrade, they may be those of an older version's outputs. A local
run records none, and computes them.
"""

from collections.abc import Sequence

from tunemill_api import keys
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import SuiteDataFacts


def train(run: RunSpec, prepared: str) -> str:
    """Return the key of train's output; `prepared` is the key of prepare's output."""
    return run.keys.get(Stage.TRAIN) or keys.train_key(prepared, run.spec)


def evaluate(run: RunSpec, prepared: str, suites: Sequence[SuiteDataFacts] = ()) -> str:
    """Return the key of evaluate's output."""
    return run.keys.get(Stage.EVALUATE) or keys.evaluate_key(train(run, prepared), run.spec, run.rival, suites)


def publish(run: RunSpec, prepared: str, suites: Sequence[SuiteDataFacts] = (), *, draft: bool) -> str:
    """Return the key of publish's output, for a release or for a draft. The RunSpec has the one that applies."""
    return run.keys.get(Stage.PUBLISH) or keys.publish_key(evaluate(run, prepared, suites), run.spec, draft=draft)
