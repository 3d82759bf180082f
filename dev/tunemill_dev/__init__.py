"""Tools for contributors: the local cluster, the local Hub server, the demo."""
