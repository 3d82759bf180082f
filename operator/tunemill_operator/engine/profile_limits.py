"""Limits of a FineTuneProfile: which fields of a spec exceed them, as messages with the limit and the field.

A profile with any limit forbids everything that reaches outside the namespace, changes the code that runs or selects
other nodes, unless a limit or the profile's defaults allow it. tests/unit/operator/test_profile_bounds.py lists for
each field of the spec the limit that applies to it, or why none is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic.alias_generators import to_snake
from tunemill_api.base import ApiModel
from tunemill_api.constants import PUBLIC_HUB
from tunemill_api.evaluation import MAX_GATES, Gate
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.pod_template import PodTemplate, is_extended_resource
from tunemill_api.profile import DEFAULT_TEMPLATE_FIELDS, Limits
from tunemill_api.publish import Publish
from tunemill_api.scalars import duration_seconds, quantity_value
from tunemill_api.tracking import PUBLIC_WANDB, Tracking

from tunemill_operator.engine.limit_rules import (
    GPU_RESOURCE,
    MAXIMA,
    NAMES,
    SECRET_REFS,
    TEMPLATE_LISTS,
    VARIABLES,
    Measure,
)
from tunemill_operator.engine.profiles import (
    STAGES,
    Fields,
    Profile,
    RefusedError,
    applied,
    invalid_field,
    matches,
    written,
)

_SMALLEST = FineTuneSpec.model_validate(
    {
        "baseModel": {"id": "any/model"},
        "dataset": {"uri": "s3://any/rows.jsonl"},
        "publish": {"repository": "any/model", "tokenSecretRef": {"name": "any"}},
    }
)
"""A minimal spec with which the defaults of a profile are validated."""

_NODE_RESOURCES: Final = ("cpu", "memory", "ephemeral-storage")
_PUBLIC_S3: Final = "https://s3.amazonaws.com"


@dataclass(frozen=True)
class _Excess:
    """A field that exceeds a limit."""

    path: str
    limit: str
    """What the limit allows."""
    value: str
    """Value of the field."""
    own: bool
    """Whether the profile itself set the field."""


def check(spec: FineTuneSpec, fields: Fields, profile: Profile) -> None:
    """Check a spec, with the fields that the profile set in it, against the profile's limits.

    Raises:
        RefusedError: names every exceeded limit, the field, its value and what is allowed.
    """
    found = list(_exceeding(spec, fields, profile))
    if not found:
        return
    texts = [
        f"{excess.limit}, {'of the profile itself, defaults' if excess.own else 'spec'}.{excess.path} asks for "
        f"{excess.value}"
        for excess in found
    ]
    reason = Reason.PROFILE_INVALID if all(excess.own for excess in found) else Reason.LIMIT_EXCEEDED
    raise RefusedError(reason, f"FineTuneProfile {profile.meta.name}: {'; '.join(texts)}")


def problem_of(profile: Profile) -> str:
    """Return why no object can use the profile, with the field. Empty if the profile is valid."""
    if profile.error:
        return profile.error
    try:
        spec = applied(_SMALLEST, profile.fields)
    except ValidationError as invalid:
        return f"spec.defaults.{invalid_field(invalid)}"
    own = [excess for excess in _exceeding(spec, profile.fields, profile) if excess.own]
    return "; ".join(f"spec.defaults.{excess.path} asks for {excess.value}, {excess.limit}" for excess in own)


def names_hub(profile: Profile, endpoint: str) -> bool:
    """Return whether the profile allows this Hub, as its default or in a list."""
    default = str(profile.fields.get("hub.endpoint", "")).rstrip("/")
    return endpoint == default or _host_matches(endpoint, profile.spec.limits.endpoints or [])


def _exceeding(spec: FineTuneSpec, fields: Fields, profile: Profile) -> Iterator[_Excess]:
    limits = profile.spec.limits
    if not profile.limited:
        return

    def excess(path: str, limit: str, allowed: object, value: object) -> _Excess:
        return _Excess(path, f"limits.{limit} allows {allowed}", str(value), path in fields)

    for maximum in MAXIMA:
        most, value = _at(limits, maximum.limit), _at(spec, maximum.path)
        if most is None and maximum.or_default is not None:
            most = profile.fields.get(maximum.path, maximum.or_default)
        if most not in (None, "") and _size(value, maximum.measure) > _size(most, maximum.measure):
            yield excess(maximum.path, maximum.limit, most, value)
    if limits.private_only and not spec.publish.private:
        yield excess("publish.private", "privateOnly", "true", "false")
    if limits.max_gpus is not None or limits.max_gpu_hours:
        yield from _other_devices(spec, profile)
    for limit, path, allowed, name in [*_names(spec, profile), *_mounted(spec, fields, limits)]:
        if allowed is not None and name and not matches(name, allowed):
            value = f"priorityClass: {name}" if path == "queue" else name
            yield excess(path, limit, ", ".join(allowed) or "none", value)
    yield from _other_fields(spec, fields, profile)
    yield from _other_variables(spec, fields)
    yield from _larger_resources(spec, fields, profile)
    yield from _larger_volumes(spec, fields, limits)
    yield from _missing_gates(spec, fields, limits)
    yield from _other_endpoints(spec, fields, profile)


def _at(part: ApiModel, path: str) -> Any:  # noqa: ANN401 - the value of a field
    """Return the value at a path. None if a parent is absent."""
    value: Any = part
    for name in path.split("."):
        value = None if value is None else getattr(value, to_snake(name))
    return value


def _size(value: Any, measure: Measure) -> Decimal | int:  # noqa: ANN401 - the value of a field
    if measure is Measure.DURATION:
        return duration_seconds(value)
    return Decimal(value or "Infinity") if measure is Measure.HOURS else int(value)


def _names(spec: FineTuneSpec, profile: Profile) -> Iterator[tuple[str, str, list[str] | None, str]]:
    """Yield each name in the spec that a limit lists: limit, path, allowed names and the name."""
    limits, preset = profile.spec.limits, profile.fields

    def listed(names: list[str] | None, path: str, default: str = "") -> list[str]:
        """Return the allowed names; without a list only what the profile's defaults have."""
        return names if names is not None else [name for name in (str(preset.get(path) or default),) if name]

    for rule in NAMES:
        if rule is GPU_RESOURCE and not spec.compute.gpus:
            continue
        names, name = _at(limits, rule.limit), str(_at(spec, rule.path) or "")
        if rule.or_defaults:
            names = listed(names, rule.path, rule.or_name)
        yield rule.limit, rule.path, names, name.split("/", maxsplit=1)[0] if rule.of_owner else name
    if spec.queue:
        own = (preset.get("queue") or {}).get("priorityClass", "")
        classes = limits.priority_classes if limits.priority_classes is not None else [own] if own else []
        yield "priorityClasses", "queue", classes, spec.queue.priority_class


def _mounted(spec: FineTuneSpec, fields: Fields, limits: Limits) -> Iterator[tuple[str, str, list[str] | None, str]]:
    """Yield the Secrets and claims in the user's spec, in the form of `_names`."""
    default_token = Publish.model_fields["token_secret_ref"].default
    for path in SECRET_REFS:
        ref = _at(spec, path)
        if ref and ref != default_token and path not in fields:
            yield "secrets", path, limits.secrets, ref.name
    for stage in STAGES:
        template, path = spec.pod_templates.of(stage), f"podTemplates.{stage}"
        for name in _secrets_of(template, fields, path):
            yield "secrets", name[0], limits.secrets, name[1]
        for volume in template.volumes if f"{path}.volumes" not in fields else ():
            if claim := volume.persistent_volume_claim:
                yield "claims", f"{path}.volumes", limits.claims, claim.claim_name


def _secrets_of(template: PodTemplate, fields: Fields, path: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of the Secrets in a template that the profile did not set."""
    for variable in template.env if f"{path}.env" not in fields else ():
        if variable.value_from and variable.value_from.secret_key_ref:
            yield f"{path}.env", variable.value_from.secret_key_ref.name
    for volume in template.volumes if f"{path}.volumes" not in fields else ():
        if volume.secret:
            yield f"{path}.volumes", volume.secret.secret_name


def _other_devices(spec: FineTuneSpec, profile: Profile) -> Iterator[_Excess]:
    """Yield devices to which the limits on GPUs and GPU hours do not apply."""
    limit = "maxGpus" if profile.spec.limits.max_gpus is not None else "maxGpuHours"
    allowed = f"limits.{limit} allows no devices but those of spec.compute.gpus and of the profile's defaults"
    for stage in STAGES:
        template, path = spec.pod_templates.of(stage), f"podTemplates.{stage}"
        for kind, quantities in (("requests", template.resources.requests), ("limits", template.resources.limits)):
            known = profile.fields.get(f"{path}.resources.{kind}", {})
            for name, quantity in quantities.items():
                given_by_limit = (profile.spec.limits.max_resources or {}).get(name) == quantity and kind == "limits"
                if is_extended_resource(name) and str(known.get(name)) != quantity and not given_by_limit:
                    yield _Excess(f"{path}.resources.{kind}", allowed, f"{name}: {quantity}", own=False)
        claims = [claim.model_dump(mode="json", by_alias=True, exclude_none=True) for claim in template.resource_claims]
        if claims and claims != profile.fields.get(f"{path}.resourceClaims"):
            names = ", ".join(claim.name for claim in template.resource_claims)
            yield _Excess(f"{path}.resourceClaims", allowed, names, own=False)


def _other_fields(spec: FineTuneSpec, fields: Fields, profile: Profile) -> Iterator[_Excess]:
    """Yield the fields of pod templates that the user must not set."""
    limits = profile.spec.limits
    allowed, explicit = limits.pod_template_fields, limits.pod_template_fields is not None
    if allowed is None:
        listed = [name for name, limit in TEMPLATE_LISTS.items() if _at(limits, limit) is not None]
        allowed = [*DEFAULT_TEMPLATE_FIELDS, *listed]
    names = ", ".join(allowed) or "none"
    for path, value in written(spec).items():
        part, *rest = path.split(".")
        if part != "podTemplates" or rest[1] in allowed or _from_profile(path, fields, profile):
            continue
        if explicit:
            text = f"limits.podTemplateFields allows users to set {names}"
        elif value in ("", [], {}, None) and path not in profile.fields:
            continue  # equivalent to an unset field
        else:
            text = f"limits.podTemplateFields is not set, which allows users to set {names}"
        yield _Excess(path, text, "a value of its own: remove it", own=False)


def _from_profile(path: str, fields: Fields, profile: Profile) -> bool:
    """Return whether the profile alone set a field. Its limits may have been added to the user's values."""
    if path not in fields or not isinstance(fields[path], dict):
        return path in fields
    ours = {**(profile.spec.limits.max_resources or {}), **profile.fields.get(path, {})}
    return all(str(ours.get(name)) == str(value) for name, value in fields[path].items())


def _other_variables(spec: FineTuneSpec, fields: Fields) -> Iterator[_Excess]:
    """Yield the user's environment variables that would bypass trainerImages or endpoints."""
    for stage in STAGES:
        path = f"podTemplates.{stage}.env"
        for variable in spec.pod_templates.of(stage).env if path not in fields else ():
            for limit, effect, names in VARIABLES:
                if matches(variable.name, names):
                    text = f"limits.{limit} allows no variable that {effect} ({', '.join(names)})"
                    yield _Excess(path, text, variable.name, own=False)


def _larger_resources(spec: FineTuneSpec, fields: Fields, profile: Profile) -> Iterator[_Excess]:
    most_of = profile.spec.limits.max_resources
    for stage in STAGES if most_of is not None else ():
        resources = spec.pod_templates.of(stage).resources
        for kind, quantities in (("requests", resources.requests), ("limits", resources.limits)):
            path = f"podTemplates.{stage}.resources.{kind}"
            known = profile.fields.get(path, {})
            for name, quantity in quantities.items():
                # A limit of the profile may have been added to the user's limits.
                own = path in fields and str(known.get(name)) == quantity
                most = (most_of or {}).get(name)
                if most is not None and quantity_value(quantity) > quantity_value(most):
                    yield _Excess(path, f"limits.maxResources.{name} allows {most}", f"{name}: {quantity}", own)
                if (
                    most is None
                    and name not in _NODE_RESOURCES
                    and "/" not in name
                    and str(known.get(name)) != quantity
                ):
                    # Huge pages do not count against the memory limit.
                    known_names = ", ".join(dict.fromkeys([*_NODE_RESOURCES, *(most_of or {})]))
                    text = f"limits.maxResources allows the resources {known_names} only"
                    yield _Excess(path, text, f"{name}: {quantity}", own=False)


def _larger_volumes(spec: FineTuneSpec, fields: Fields, limits: Limits) -> Iterator[_Excess]:
    """Yield scratch volumes and claims that are larger than the limit on ephemeral storage."""
    most = (limits.max_resources or {}).get("ephemeral-storage")
    for stage in STAGES if most is not None else ():
        template, path = spec.pod_templates.of(stage), f"podTemplates.{stage}"
        sizes = [(f"{path}.scratch", template.scratch.size)] if template.scratch else []
        sizes += [
            (f"{path}.volumes", volume.ephemeral.volume_claim_template.spec.resources.requests.storage)
            for volume in template.volumes
            if volume.ephemeral
        ]
        for where, size in sizes:
            if quantity_value(size) > quantity_value(most or "0"):
                yield _Excess(where, f"limits.maxResources.ephemeral-storage allows {most}", size, where in fields)


def _missing_gates(spec: FineTuneSpec, fields: Fields, limits: Limits) -> Iterator[_Excess]:
    """Yield required gates that did not fit into the spec."""
    for gate in limits.gates or ():
        if gate not in spec.evaluation.gates:
            text = f"limits.gates demands {_gate_text(gate)} among at most {MAX_GATES} gates"
            value = f"{len(spec.evaluation.gates)} other gates: remove some"
            yield _Excess("evaluation.gates", text, value, "evaluation.gates" in fields)


def _gate_text(gate: Gate) -> str:
    values = gate.model_dump(mode="json", by_alias=True, exclude_none=True)
    return " ".join(f"{value}" if name == "metric" else f"{name} {value}" for name, value in values.items())


def _other_endpoints(spec: FineTuneSpec, fields: Fields, profile: Profile) -> Iterator[_Excess]:
    """Yield servers that neither the profile's defaults nor limits.endpoints allow."""
    limits, tracking = profile.spec.limits, spec.tracking or Tracking()
    named = limits.base_models is not None or limits.hub_organizations is not None
    for path, value, public in (
        ("hub.endpoint", spec.hub.endpoint, PUBLIC_HUB),
        ("dataset.endpoint", spec.dataset.endpoint, _PUBLIC_S3),
        ("workspace.endpoint", spec.workspace.endpoint, _PUBLIC_S3),
        ("publish.oci.registry", spec.publish.oci.registry if spec.publish.oci else "", ""),
        ("tracking.mlflow.uri", tracking.mlflow.uri if tracking.mlflow else "", ""),
        ("tracking.wandb.endpoint", (tracking.wandb.endpoint or PUBLIC_WANDB) if tracking.wandb else "", ""),
    ):
        allowed: str = profile.fields.get(path, "")
        if value == allowed:
            continue
        if named and path == "hub.endpoint":
            # The allowed names are names on this Hub only.
            limit = "baseModels" if limits.base_models is not None else "hubOrganizations"
            text = f"limits.{limit} holds on the Hub {allowed or public} only"
        elif _host_matches(value or public, limits.endpoints or []):
            continue
        else:
            names = [name for name in (allowed or public, *(limits.endpoints or [])) if name]
            text = f"limits.endpoints allows {', '.join(names) or 'none'}"
        yield _Excess(path, text, value or public, path in fields)


def _host_matches(endpoint: str, globs: list[str]) -> bool:
    """Return whether the host of a URL, with or without port, matches a pattern."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # an invalid port
        return False
    return matches(host, globs) or matches(f"{host}:{port}", globs)
