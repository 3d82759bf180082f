"""A small base model and data set that the demo and the tests train on, created on this machine."""

from tunemill_dev.tiny.base import make_base
from tunemill_dev.tiny.data import TOOLS, rows, unseen_requests

__all__ = ["TOOLS", "make_base", "rows", "unseen_requests"]
