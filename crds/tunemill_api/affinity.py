"""Affinity as Kubernetes has it, typed: a misspelt field is refused at `kubectl apply`, not ignored."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from tunemill_api.base import ApiModel

_ATOMIC: Final[dict[str, Any]] = {"x-kubernetes-list-type": "atomic"}

LabelKey = Annotated[str, Field(min_length=1, max_length=316)]
Values = Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=64, json_schema_extra=_ATOMIC)]
Keys = Annotated[list[LabelKey], Field(max_length=16, json_schema_extra=_ATOMIC)]
Weight = Annotated[int, Field(ge=1, le=100)]


class LabelSelectorRequirement(ApiModel):
    """A condition on a label."""

    key: LabelKey
    """The label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value relates to values."""
    values: Values | None = None
    """The values, for In and NotIn."""


class LabelSelector(ApiModel):
    """A selection of objects by label."""

    match_labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] | None = None
    """Labels that must have these values."""
    match_expressions: (
        Annotated[list[LabelSelectorRequirement], Field(max_length=16, json_schema_extra=_ATOMIC)] | None
    ) = None
    """Conditions that must hold."""


class NodeSelectorRequirement(ApiModel):
    """A condition on a node's label or field."""

    key: LabelKey
    """The label or field."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How its value relates to values."""
    values: Values | None = None
    """The values; one number for Gt and Lt."""


NodeRequirements = Annotated[list[NodeSelectorRequirement], Field(max_length=16, json_schema_extra=_ATOMIC)]


class NodeSelectorTerm(ApiModel):
    """Conditions on a node that must all hold."""

    match_expressions: NodeRequirements | None = None
    """Conditions on labels."""
    match_fields: NodeRequirements | None = None
    """Conditions on fields."""


class NodeSelector(ApiModel):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[
        list[NodeSelectorTerm], Field(min_length=1, max_length=16, json_schema_extra=_ATOMIC)
    ]
    """The terms."""


class PreferredSchedulingTerm(ApiModel):
    """A preference for nodes."""

    weight: Weight
    """Weight of the preference, 1 to 100."""
    preference: NodeSelectorTerm
    """Conditions on the node."""


class NodeAffinity(ApiModel):
    """Which nodes the pod needs or prefers."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """What the node must fulfil."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredSchedulingTerm], Field(max_length=16, json_schema_extra=_ATOMIC)] | None
    ) = None
    """What the node should fulfil."""


class PodAffinityTerm(ApiModel):
    """Pods near which, or away from which, the pod runs."""

    topology_key: LabelKey
    """Node label: nodes with the same value are near each other."""
    label_selector: LabelSelector | None = None
    """The pods."""
    namespaces: (
        Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=16, json_schema_extra=_ATOMIC)] | None
    ) = None
    """Their namespaces; absent with no namespaceSelector means the pod's own."""
    namespace_selector: LabelSelector | None = None
    """Labels of their namespaces."""
    match_label_keys: Keys | None = None
    """Labels of the pod whose values the other pods must have."""
    mismatch_label_keys: Keys | None = None
    """Labels of the pod whose values the other pods must not have."""


class WeightedPodAffinityTerm(ApiModel):
    """A preference for pods."""

    weight: Weight
    """Weight of the preference, 1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """The pods."""


PodTerms = Annotated[list[PodAffinityTerm], Field(max_length=16, json_schema_extra=_ATOMIC)]
WeightedPodTerms = Annotated[list[WeightedPodAffinityTerm], Field(max_length=16, json_schema_extra=_ATOMIC)]


class PodAffinity(ApiModel):
    """Pods near which, or away from which, the pod runs."""

    required_during_scheduling_ignored_during_execution: PodTerms | None = None
    """What must be fulfilled."""
    preferred_during_scheduling_ignored_during_execution: WeightedPodTerms | None = None
    """What should be fulfilled."""


class Affinity(ApiModel):
    """Node affinity, pod affinity and pod anti-affinity."""

    node_affinity: NodeAffinity | None = None
    """Which nodes the pod needs or prefers."""
    pod_affinity: PodAffinity | None = None
    """Pods near which it runs."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods away from which it runs."""
