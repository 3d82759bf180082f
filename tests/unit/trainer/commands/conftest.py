"""Fixtures shared by tests of several commands."""

import signal

import pytest


@pytest.fixture
def interruptible():
    """Enable SIGINT, which a shell ignores for background jobs and their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
