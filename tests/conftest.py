"""What all layers have in common."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["timing"]

# How long an example takes depends on what else the machine does, and is no property of the code. The examples are the
# same in every run, so that a change is judged by itself; `make test-long` takes others.
settings.register_profile("tunemill", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("other-examples", settings.get_profile("tunemill"), derandomize=False)
settings.load_profile("tunemill")
