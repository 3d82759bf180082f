"""What all layers have in common."""

from hypothesis import HealthCheck, settings

# How long an example takes depends on what else the machine does, and is no property of the code.
settings.register_profile("tunemill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tunemill")
