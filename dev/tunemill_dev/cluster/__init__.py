"""A real Kubernetes on this machine: a whole cluster (`up`, `down`), or a control plane alone for tests.

The package is imported with Python's own modules alone: `make demo` builds the programs while the Python environment
is installed. So PyYAML is imported where it is used.
"""

from tunemill_dev.cluster.cluster import Cluster, HubAccess, S3Access, running
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.lifecycle import down, up
from tunemill_dev.cluster.standalone import RunningControlPlane, control_plane

__all__ = [
    "Cluster",
    "ClusterError",
    "HubAccess",
    "RunningControlPlane",
    "S3Access",
    "control_plane",
    "down",
    "running",
    "up",
]
