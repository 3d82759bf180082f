"""Benchmarks of the stages and the operator, as ratios to the programs that they are compared with."""
