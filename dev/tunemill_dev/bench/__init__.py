"""Benchmarks of the stages, side by side with what they are compared to, as ratios."""
