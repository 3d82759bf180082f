"""The fixtures of this folder."""

from kube.fixtures import namespace, operator, plane

__all__ = ["namespace", "operator", "plane"]
