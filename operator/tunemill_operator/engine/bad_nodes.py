"""Keeps pods away from nodes on which the run failed for a reason that points to the node."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunemill_api.status import CutShort, StageStatus, SuspectNode

from tunemill_operator.engine.objects import mapping
from tunemill_operator.engine.stages import Ledger, Work
from tunemill_operator.engine.volumes import Manifest

HOSTNAME = "kubernetes.io/hostname"
"""Node label that is used to avoid nodes. Karpenter does not support affinity to metadata.name."""
SUSPECT_NODES = 32
"""Maximum number of recorded suspect nodes per stage. spec.retry.limit is at most 20."""


def avoiding(pod_spec: Manifest, nodes: Sequence[str]) -> Manifest:
    """Return the pod spec with a node affinity that excludes these nodes, in addition to its own affinity."""
    if not nodes:
        return pod_spec
    excluded = {"key": HOSTNAME, "operator": "NotIn", "values": list(nodes)}
    affinity = mapping(pod_spec.get("affinity"))
    node_affinity = mapping(affinity.get("nodeAffinity"))
    required = mapping(node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution"))
    # Terms are alternatives, so each must exclude the nodes. A term without expressions matches no node.
    terms = [mapping(term) for term in required.get("nodeSelectorTerms") or []]
    matching = [term for term in terms if term.get("matchExpressions") or term.get("matchFields")]
    narrowed: list[Mapping[str, Any]] = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or []), excluded]} for term in matching or [{}]
    ]
    if terms and not matching:
        narrowed = terms
    required = {**required, "nodeSelectorTerms": narrowed}
    node_affinity = {**node_affinity, "requiredDuringSchedulingIgnoredDuringExecution": required}
    return {**pod_spec, "affinity": {**affinity, "nodeAffinity": node_affinity}}


def avoided_nodes(ledger: Ledger, work: Work) -> tuple[str, ...]:
    """Return the nodes that new pods for this work avoid."""
    nodes = (node for stage in work.stages for node in ledger.entries[stage].suspect_nodes)
    return tuple(sorted({node.name for node in nodes if node.avoided}))


def suspect_nodes(ledger: Ledger, work: Work) -> tuple[str, ...]:
    """Return all nodes on which this work failed for a reason that points to the node."""
    return tuple(sorted({node.name for stage in work.stages for node in ledger.entries[stage].suspect_nodes}))


def is_counted(entry: StageStatus, pod: str) -> bool:
    """Return whether the failure of this pod has been counted against its node."""
    return any(node.pod == pod for node in entry.suspect_nodes)


def with_failure(entry: StageStatus, node: str, reason: str, pod: str) -> StageStatus:
    """Return the stage's record with one more pod that failed because of its node."""
    known = next((item for item in entry.suspect_nodes if item.name == node), None)
    failures = known.failures + 1 if known else 1
    suspect = SuspectNode(name=node, reason=reason, failures=failures, pod=pod)
    others = [item for item in entry.suspect_nodes if item.name != node]
    return entry.model_copy(
        update={
            "retries": entry.retries + 1,
            "suspect_nodes": [*others, suspect][-SUSPECT_NODES:],
            "cut_short": CutShort.BAD_NODE,
        }
    )


def allowed_again(entry: StageStatus) -> StageStatus:
    """Return the stage's record with its suspect nodes allowed for new pods."""
    nodes = [node.model_copy(update={"avoided": False}) for node in entry.suspect_nodes]
    return entry.model_copy(update={"suspect_nodes": nodes})
