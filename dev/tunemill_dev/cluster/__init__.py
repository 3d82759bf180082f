"""A real Kubernetes on this machine: a whole cluster (`up`, `down`), or a control plane alone for tests."""

from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.standalone import RunningControlPlane, control_plane

__all__ = ["ClusterError", "RunningControlPlane", "control_plane"]
