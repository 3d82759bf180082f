"""Logs runs to the experiment trackers of spec.tracking."""
