"""What tests of several commands need."""

import signal

import pytest


@pytest.fixture
def interruptible():
    """A shell starts background jobs with SIGINT ignored, which they and their children keep."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
