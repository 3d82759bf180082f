"""Under which keys the run's outputs lie in the workspace: those of the RunSpec, else those of the present recipes.

An operator names the keys. They may be those of older recipes, of what was done before an upgrade. On one machine
nothing is recorded, and the keys follow from the spec.
"""

from tunemill_api import keys
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage


def train(run: RunSpec, prepared: str) -> str:
    """Return the key of the adapter; `prepared` is the key of prepare's output."""
    return run.keys.get(Stage.TRAIN) or keys.train_key(prepared, run.spec)


def evaluate(run: RunSpec, prepared: str) -> str:
    """Return the key of the adapter's evaluation."""
    return run.keys.get(Stage.EVALUATE) or keys.evaluate_key(train(run, prepared), run.spec, run.rival)


def publish(run: RunSpec, prepared: str, *, draft: bool) -> str:
    """Return the key of the published model, or of its draft. An operator names the one that applies."""
    return run.keys.get(Stage.PUBLISH) or keys.publish_key(evaluate(run, prepared), run.spec, draft=draft)
