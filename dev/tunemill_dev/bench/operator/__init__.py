"""Compares the operator with Kubeflow Trainer on a real API server without nodes: `make bench-operator`."""
