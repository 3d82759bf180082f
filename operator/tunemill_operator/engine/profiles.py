"""FineTuneProfiles: which one holds for an object, what it gives to the object's spec, and what it does not allow."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from pydantic import ValidationError
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.profile import PRESET_FIELDS, FineTuneProfileSpec

from tunemill_operator.engine.objects import Json, Meta, meta_of

Fields = dict[str, Any]
"""Values of single fields of a spec, by their dotted paths."""


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

    def serves(self, namespace: str) -> bool:
        """Tell whether objects of this namespace may use it."""
        return self.spec.namespaces is None or _matches(namespace, self.spec.namespaces)

    @cached_property
    def fields(self) -> Fields:
        """What it presets."""
        return fields_of(self.spec.defaults)


def profile_of(body: Json) -> Profile:
    """Return the view of a FineTuneProfile."""
    spec = body.get("spec") or {}
    try:
        return Profile(meta_of(body), FineTuneProfileSpec.model_validate(spec))
    except ValidationError as invalid:
        found = invalid.errors()[0]
        error = f"spec.{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
        return Profile(meta_of(body), FineTuneProfileSpec(default=spec.get("default") is True), error)


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
    """Return the fields that the profile gives to the spec: its defaults, and its limits where nothing is said."""
    written = fields_of(spec.model_dump(mode="json", by_alias=True, exclude_unset=True))
    fields = {path: value for path, value in profile.fields.items() if path not in written}
    limits = profile.spec.limits
    silent = "compute.gpus" not in written and "compute.gpus" not in fields
    if silent and limits.max_gpus is not None and spec.compute.gpus > limits.max_gpus:
        fields["compute.gpus"] = limits.max_gpus
    if limits.max_gpu_hours and not written.get("maxGpuHours"):  # an empty string sets no limit of its own
        fields["maxGpuHours"] = fields.get("maxGpuHours") or limits.max_gpu_hours
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
    wishes = list(_exceeding(spec, profile))
    if not wishes:
        return
    told = [
        f"{wish.limit}, {'of the profile itself, defaults' if wish.path in fields else 'spec'}.{wish.path} asks for "
        f"{wish.wish}"
        for wish in wishes
    ]
    own = all(wish.path in fields for wish in wishes)
    reason = Reason.PROFILE_INVALID if own else Reason.LIMIT_EXCEEDED
    raise RefusedError(reason, f"FineTuneProfile {profile.meta.name}: {'; '.join(told)}")


@dataclass(frozen=True)
class _Wish:
    """A field that asks for more than a limit allows."""

    path: str
    limit: str
    """The limit and what it allows."""
    wish: str


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


def _exceeding(spec: FineTuneSpec, profile: Profile) -> Iterator[_Wish]:
    limits, compute = profile.spec.limits, spec.compute
    if limits.max_gpus is not None and compute.gpus > limits.max_gpus:
        yield _Wish("compute.gpus", f"limits.maxGpus allows {limits.max_gpus}", str(compute.gpus))
    if limits.max_gpu_hours and Decimal(spec.max_gpu_hours or "Infinity") > Decimal(limits.max_gpu_hours):
        yield _Wish("maxGpuHours", f"limits.maxGpuHours allows {limits.max_gpu_hours}", spec.max_gpu_hours)
    if limits.max_gpus is not None or limits.max_gpu_hours:
        yield from _other_devices(spec, profile)
    for limit, path, allowed, wish in (
        ("baseModels", "baseModel.id", limits.base_models, spec.base_model.id),
        ("hubOrganizations", "publish.repository", limits.hub_organizations, spec.publish.repository.split("/")[0]),
        ("trainerImages", "compute.trainerImage", limits.trainer_images, compute.trainer_image),
        ("serviceAccounts", "compute.serviceAccountName", limits.service_accounts, compute.service_account_name),
        ("priorityClasses", "compute.priorityClassName", limits.priority_classes, compute.priority_class_name),
    ):
        yield from _unlisted(limit, path, allowed, wish)
    if spec.queue:
        first = spec.queue.priority_class
        yield from _unlisted("priorityClasses", "queue", limits.priority_classes, first, "priorityClass: ")
    if limits.base_models is not None or limits.hub_organizations is not None:
        yield from _other_hub(spec, profile)


def _unlisted(limit: str, path: str, allowed: list[str] | None, name: str, within: str = "") -> Iterator[_Wish]:
    """Yield a name that a limit does not list; `within` says what it is within the field."""
    if allowed is not None and name and not _matches(name, allowed):
        yield _Wish(path, f"limits.{limit} allows {', '.join(allowed) or 'none'}", f"{within}{name}")


def _other_devices(spec: FineTuneSpec, profile: Profile) -> Iterator[_Wish]:
    """Yield resources that are devices: neither the number of GPUs nor their hours are counted from them."""
    limit = "maxGpus" if profile.spec.limits.max_gpus is not None else "maxGpuHours"
    allowed = f"limits.{limit} allows no devices but those of spec.compute.gpus and of the profile's defaults"
    compute = spec.compute
    for path, quantities in (
        ("compute.resources.requests", compute.resources.requests),
        ("compute.resources.limits", compute.resources.limits),
        ("compute.prepareResources.requests", compute.prepare_resources.requests),
        ("compute.prepareResources.limits", compute.prepare_resources.limits),
    ):
        known = profile.fields.get(path, {})
        for name, quantity in quantities.items():
            is_device = "/" in name and "kubernetes.io/" not in name  # what Kubernetes calls an extended resource
            if is_device and str(known.get(name)) != quantity:
                yield _Wish(path, allowed, f"{name}: {quantity}")


def _other_hub(spec: FineTuneSpec, profile: Profile) -> Iterator[_Wish]:
    """Yield another Hub than that on which the allowed names mean what the platform team means."""
    allowed, public = profile.fields.get("hub.endpoint", ""), "https://huggingface.co"
    if spec.hub.endpoint != allowed:
        limit = "baseModels" if profile.spec.limits.base_models is not None else "hubOrganizations"
        text = f"limits.{limit} holds on the Hub {allowed or public} only"
        yield _Wish("hub.endpoint", text, spec.hub.endpoint or public)


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
