"""What all layers have in common."""

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["timing"]

# How long an example takes depends on what else the machine does, and is no property of the code. The examples are the
# same in every run, so that a change is judged by itself; `make test-long` takes others.
settings.register_profile("tunemill", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("other-examples", settings.get_profile("tunemill"), derandomize=False)
settings.load_profile("tunemill")

LONGEST = {
    *("chaos/test_chaos.py", "chaos/test_soak.py"),
    *("kube/test_restarts.py", "kube/test_retraining.py", "kube/test_failures.py", "kube/test_run.py"),
    *("platform/test_kueue.py", "platform/test_release.py", "platform/test_profiles.py", "gitops/test_health.py"),
}
"""Files that one worker runs as a whole."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that the other workers do not wait for one of them at the end."""
    items.sort(key=lambda item: "/".join(item.path.parts[-2:]) not in LONGEST)
