"""How fast the operator is beside Kubeflow Trainer, on a real API server without nodes: `make bench-operator`."""
