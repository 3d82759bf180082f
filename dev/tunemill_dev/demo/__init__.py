"""The demo: `make demo` shows a whole run on a cluster, with nothing but this repository."""
