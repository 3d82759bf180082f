"""Proves on a GPU that training works, fits and is fast: the real stages on models with random weights, offline."""
