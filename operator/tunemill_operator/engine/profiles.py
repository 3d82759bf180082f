"""FineTuneProfiles: which one holds for an object, what it gives to the object's spec, and what it does not allow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from pydantic import ValidationError
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.profile import PRESET_FIELDS, FineTuneProfileSpec, FineTuneProfileStatus
from tunemill_api.scalars import duration_seconds, quantity_value

from tunemill_operator.engine.objects import Json, Meta, meta_of

Fields = dict[str, Any]
"""Values of single fields of a spec, by their dotted paths."""

_STAGES = ("prepare", "train", "publish")
_SMALLEST = FineTuneSpec.model_validate(
    {
        "baseModel": {"id": "any/model"},
        "dataset": {"uri": "s3://any/rows.jsonl"},
        "publish": {"repository": "any/model", "tokenSecretRef": {"name": "any"}},
    }
)
"""A spec on which the defaults of a profile are tried."""


class RefusedError(Exception):
    """The object cannot have what it asks for."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Profile:
    """A FineTuneProfile."""

    meta: Meta
    spec: FineTuneProfileSpec
    error: str = ""
    """Why the spec does not fit the model, which happens when CRD and operator are of different versions. Then it still
    says whether it is the default one, and is for all namespaces: nobody gets more for it."""
    generation: int = 0
    status: FineTuneProfileStatus = field(default_factory=FineTuneProfileStatus)
    """What the operator wrote about it last."""

    def serves(self, namespace: str) -> bool:
        """Tell whether objects of this namespace may use it."""
        return self.spec.namespaces is None or _matches(namespace, self.spec.namespaces)

    @cached_property
    def fields(self) -> Fields:
        """What it presets."""
        return fields_of(self.spec.defaults)


def profile_of(body: Json) -> Profile:
    """Return the view of a FineTuneProfile."""
    spec, generation = body.get("spec") or {}, int(body["metadata"].get("generation", 0))
    try:
        status = FineTuneProfileStatus.model_validate(body.get("status") or {})
    except ValidationError:  # written by something else than this operator
        status = FineTuneProfileStatus()
    try:
        return Profile(meta_of(body), FineTuneProfileSpec.model_validate(spec), "", generation, status)
    except ValidationError as invalid:
        error = f"spec.{invalid_field(invalid)}"
        unread = FineTuneProfileSpec(default=isinstance(spec, dict) and spec.get("default") is True)
        return Profile(meta_of(body), unread, error, generation, status)


def chosen(name: str, namespace: str, profiles: Iterable[Profile]) -> Profile | None:
    """Return the profile that an object of the namespace has with this spec.profile; None when it has none.

    Raises:
        RefusedError: when there is none of that name, when it is not for the namespace, when it cannot be read, or when
            several default profiles are for the namespace.
    """
    usable = {profile.meta.name: profile for profile in profiles if profile.serves(namespace)}
    profile = _named(name, namespace, usable, profiles) if name else _default(namespace, usable)
    if profile and profile.error:
        message = f"FineTuneProfile {profile.meta.name} cannot be read by this operator: {profile.error}"
        raise RefusedError(Reason.PROFILE_INVALID, message)
    return profile


def given(spec: FineTuneSpec, profile: Profile) -> Fields:
    """Return the fields that the profile gives to the spec: its defaults, and its limits where nothing else holds."""
    written = _written(spec)
    fields = {path: value for path, value in profile.fields.items() if path not in written}
    limits = profile.spec.limits
    for path, limit, default in (
        ("compute.gpus", limits.max_gpus, spec.compute.gpus),
        ("retry.limit", limits.max_retries, spec.retry.limit),
    ):
        if limit is not None and path not in written and path not in fields and default > limit:
            fields[path] = limit
    most = limits.max_runtime
    if most and "maxRuntime" not in {*written, *fields} and _longer(spec.max_runtime, most):
        fields["maxRuntime"] = most
    if limits.max_gpu_hours and not written.get("maxGpuHours"):  # an empty string sets no limit of its own
        fields["maxGpuHours"] = fields.get("maxGpuHours") or limits.max_gpu_hours
    for stage in _STAGES if limits.max_resources else ():
        # As a LimitRange does it: without a limit, a container could use more than it may ask for.
        path = f"podTemplates.{stage}.resources.limits"
        known: dict[str, Any] = fields.get(path) or written.get(path) or {}
        if unlimited := {name: size for name, size in (limits.max_resources or {}).items() if name not in known}:
            fields[path] = {**known, **unlimited}
    return fields


def applied(spec: FineTuneSpec, fields: Fields) -> FineTuneSpec:
    """Return the spec with these fields.

    Raises:
        ValidationError: when it is no spec then.
    """
    if not fields:
        return spec
    whole: dict[str, Any] = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for path, value in fields.items():
        *parents, last = path.split(".")
        part = whole
        for name in parents:
            part = part.setdefault(name, {})
        part[last] = value
    return FineTuneSpec.model_validate(whole)


def check(spec: FineTuneSpec, fields: Fields, profile: Profile) -> None:
    """Check a spec with the fields that the profile gave it against the profile's limits.

    Raises:
        RefusedError: names every limit that is exceeded, the field, what it asks for and what is allowed.
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
    """Return why no object could use the profile, with the field; empty when the profile is valid."""
    if profile.error:
        return profile.error
    try:
        spec = applied(_SMALLEST, profile.fields)
    except ValidationError as invalid:
        return f"spec.defaults.{invalid_field(invalid)}"
    own = [excess for excess in _exceeding(spec, profile.fields, profile) if excess.own]
    return "; ".join(f"spec.defaults.{excess.path} asks for {excess.value}, {excess.limit}" for excess in own)


def invalid_field(invalid: ValidationError) -> str:
    """Return the path of the first field that is not valid, and what is wrong with it."""
    found = invalid.errors()[0]
    return f"{'.'.join(str(part) for part in found['loc'])}: {found['msg'].removeprefix('Value error, ')}"


@dataclass(frozen=True)
class _Excess:
    """A field that asks for more than a limit allows."""

    path: str
    limit: str
    """The limit and what it allows."""
    value: str
    own: bool
    """Whether the profile itself gives the value."""


def _named(name: str, namespace: str, usable: dict[str, Profile], profiles: Iterable[Profile]) -> Profile:
    if name in usable:
        return usable[name]
    there = f"the namespace {namespace} may use {', '.join(sorted(usable)) or 'none'}"
    if any(profile.meta.name == name for profile in profiles):
        raise RefusedError(
            Reason.PROFILE_NOT_ALLOWED, f"spec.profile names {name}, which is not for this namespace; {there}"
        )
    raise RefusedError(Reason.PROFILE_NOT_FOUND, f"spec.profile names {name}, which does not exist; {there}")


def _default(namespace: str, usable: dict[str, Profile]) -> Profile | None:
    defaults = [profile for profile in usable.values() if profile.spec.default]
    nearest = [profile for profile in defaults if profile.spec.namespaces is not None] or defaults
    if len(nearest) > 1:
        names = ", ".join(sorted(profile.meta.name for profile in nearest))
        message = f"spec.profile is empty, and several profiles are the default of the namespace {namespace}: {names}"
        raise RefusedError(Reason.PROFILE_AMBIGUOUS, message)
    return nearest[0] if nearest else None


def _exceeding(spec: FineTuneSpec, fields: Fields, profile: Profile) -> Iterator[_Excess]:
    limits, compute = profile.spec.limits, spec.compute

    def excess(path: str, limit: str, allowed: object, value: object) -> _Excess:
        return _Excess(path, f"limits.{limit} allows {allowed}", str(value), path in fields)

    if limits.max_gpus is not None and compute.gpus > limits.max_gpus:
        yield excess("compute.gpus", "maxGpus", limits.max_gpus, compute.gpus)
    if limits.max_gpu_hours and Decimal(spec.max_gpu_hours or "Infinity") > Decimal(limits.max_gpu_hours):
        yield excess("maxGpuHours", "maxGpuHours", limits.max_gpu_hours, spec.max_gpu_hours)
    if limits.max_retries is not None and spec.retry.limit > limits.max_retries:
        yield excess("retry.limit", "maxRetries", limits.max_retries, spec.retry.limit)
    if limits.max_runtime and _longer(spec.max_runtime, limits.max_runtime):
        yield excess("maxRuntime", "maxRuntime", limits.max_runtime, spec.max_runtime)
    if limits.max_gpus is not None or limits.max_gpu_hours:
        yield from _other_devices(spec, profile)
    for limit, path, allowed, name in _names(spec, profile):
        if allowed is not None and name and not _matches(name, allowed):
            value = f"priorityClass: {name}" if path == "queue" else name
            yield excess(path, limit, ", ".join(allowed) or "none", value)
    yield from _other_fields(spec, fields, profile)
    yield from _larger_resources(spec, fields, profile)
    if limits.base_models is not None or limits.hub_organizations is not None:
        yield from _other_hub(spec, fields, profile)


def _names(spec: FineTuneSpec, profile: Profile) -> Iterator[tuple[str, str, list[str] | None, str]]:
    """Yield each name in the spec that a limit lists: the limit, the name's path, the allowed names and the name."""
    limits = profile.spec.limits
    yield "baseModels", "baseModel.id", limits.base_models, spec.base_model.id
    yield "hubOrganizations", "publish.repository", limits.hub_organizations, spec.publish.repository.split("/")[0]
    yield "trainerImages", "compute.trainerImage", limits.trainer_images, spec.compute.trainer_image
    for stage in _STAGES:
        template, path = spec.pod_templates.of(stage), f"podTemplates.{stage}"
        yield "serviceAccounts", f"{path}.serviceAccountName", limits.service_accounts, template.service_account_name
        yield "priorityClasses", f"{path}.priorityClassName", limits.priority_classes, template.priority_class_name
        yield "runtimeClasses", f"{path}.runtimeClassName", limits.runtime_classes, template.runtime_class_name
    if spec.queue:
        yield "priorityClasses", "queue", limits.priority_classes, spec.queue.priority_class


def _other_devices(spec: FineTuneSpec, profile: Profile) -> Iterator[_Excess]:
    """Yield devices that are not counted: neither the number of GPUs nor their hours hold for them."""
    limit = "maxGpus" if profile.spec.limits.max_gpus is not None else "maxGpuHours"
    allowed = f"limits.{limit} allows no devices but those of spec.compute.gpus and of the profile's defaults"
    for stage in _STAGES:
        template, path = spec.pod_templates.of(stage), f"podTemplates.{stage}"
        for kind, quantities in (("requests", template.resources.requests), ("limits", template.resources.limits)):
            known = profile.fields.get(f"{path}.resources.{kind}", {})
            for name, quantity in quantities.items():
                is_device = "/" in name and "kubernetes.io/" not in name  # what Kubernetes calls an extended resource
                given_by_limit = (profile.spec.limits.max_resources or {}).get(name) == quantity and kind == "limits"
                if is_device and str(known.get(name)) != quantity and not given_by_limit:
                    yield _Excess(f"{path}.resources.{kind}", allowed, f"{name}: {quantity}", own=False)
        claims = [claim.model_dump(mode="json", by_alias=True, exclude_none=True) for claim in template.resource_claims]
        if claims and claims != profile.fields.get(f"{path}.resourceClaims"):
            names = ", ".join(claim.name for claim in template.resource_claims)
            yield _Excess(f"{path}.resourceClaims", allowed, names, own=False)


def _other_fields(spec: FineTuneSpec, fields: Fields, profile: Profile) -> Iterator[_Excess]:
    """Yield the fields of pod templates that the user set and may not set."""
    allowed = profile.spec.limits.pod_template_fields
    if allowed is None:
        return
    names = ", ".join(allowed) or "none"
    for path in _written(spec):
        part, *rest = path.split(".")
        if part == "podTemplates" and rest[1] not in allowed and not _from_profile(path, fields, profile):
            text = f"limits.podTemplateFields allows users to set {names}"
            yield _Excess(path, text, "a value of its own: remove it", own=False)


def _from_profile(path: str, fields: Fields, profile: Profile) -> bool:
    """Tell whether the profile alone gives a field: its limits may have been added to what a user wrote."""
    if path not in fields or not isinstance(fields[path], dict):
        return path in fields
    ours = {**(profile.spec.limits.max_resources or {}), **profile.fields.get(path, {})}
    return all(str(ours.get(name)) == str(value) for name, value in fields[path].items())


def _larger_resources(spec: FineTuneSpec, fields: Fields, profile: Profile) -> Iterator[_Excess]:
    for name, most in (profile.spec.limits.max_resources or {}).items():
        for stage in _STAGES:
            resources = spec.pod_templates.of(stage).resources
            for kind, quantities in (("requests", resources.requests), ("limits", resources.limits)):
                path, quantity = f"podTemplates.{stage}.resources.{kind}", quantities.get(name)
                if quantity is not None and quantity_value(quantity) > quantity_value(most):
                    # A limit of the profile may have been added to limits that a user wrote.
                    own = path in fields and str(profile.fields.get(path, {}).get(name)) == quantity
                    text = f"limits.maxResources.{name} allows {most}"
                    yield _Excess(path, text, f"{name}: {quantity}", own)


def _other_hub(spec: FineTuneSpec, fields: Fields, profile: Profile) -> Iterator[_Excess]:
    """Yield another Hub than that on which the allowed names mean what the platform team means."""
    allowed, public = profile.fields.get("hub.endpoint", ""), "https://huggingface.co"
    if spec.hub.endpoint != allowed:
        limit = "baseModels" if profile.spec.limits.base_models is not None else "hubOrganizations"
        text = f"limits.{limit} holds on the Hub {allowed or public} only"
        yield _Excess("hub.endpoint", text, spec.hub.endpoint or public, "hub.endpoint" in fields)


def _longer(duration: str, most: str) -> bool:
    return duration_seconds(duration) > duration_seconds(most)


def _written(spec: FineTuneSpec) -> Fields:
    """Return the preset fields that stand in a spec, by their paths."""
    return fields_of(spec.model_dump(mode="json", by_alias=True, exclude_unset=True))


def fields_of(spec: Json) -> Fields:
    """Return the preset fields that stand in a part of a spec, by their paths."""
    found: Fields = {}
    for path in PRESET_FIELDS:
        part: Any = spec
        for name in path.split("."):
            if not isinstance(part, dict) or name not in part:
                break
            part = part[name]
        else:
            found[path] = part
    return found


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
