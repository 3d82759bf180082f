"""The demo: `make demo` shows a complete run on a cluster, with only this repository."""
