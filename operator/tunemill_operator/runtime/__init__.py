"""Runs the engine: caches, work queue, workers, resync, leader election, events."""
