"""What all layers have in common."""

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["timing"]

# How long an example takes depends on what else the machine does, and is no property of the code. The examples are the
# same in every run, so that a change is judged by itself; `make test-long` takes others.
settings.register_profile("tunemill", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("other-examples", settings.get_profile("tunemill"), derandomize=False)
settings.load_profile("tunemill")

LONGEST = (
    *("chaos/test_chaos.py", "chaos/test_soak.py"),
    *("kube/test_restarts.py", "kube/test_retraining.py", "kube/test_failures.py", "kube/test_run.py"),
    *("platform/test_kueue.py", "platform/test_release.py", "platform/test_profiles.py", "gitops/test_health.py"),
    *("learn/test_publish.py", "learn/test_recipes.py", "learn/test_token_modes.py", "learn/test_evaluate.py"),
    *("learn/test_train_resume.py", "learn/test_methods.py", "learn/test_train.py", "learn/test_steps.py"),
    "learn/test_run.py",
)
"""Files that one worker runs as a whole, in the order in which they start. In tests/learn, the longest come first, and
no two of the first use `extended_run`, for which the second would wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that the other workers do not wait for one of them at the end."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get("/".join(item.path.parts[-2:]), len(order)))
