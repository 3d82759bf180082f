"""Compares what a model answers with what the held-out rows say: generation, parsing, matching, metrics."""
