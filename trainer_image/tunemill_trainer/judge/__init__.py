"""Evaluates a model's replies against the held-out rows: generation, parsing, matching, metrics."""
