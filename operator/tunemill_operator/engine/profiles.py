"""FineTuneProfiles: which one applies to an object, and which fields it sets in the object's spec.

Its limits are in `profile_limits`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from pydantic import ValidationError
from tunemill_api.evaluation import MAX_GATES
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.profile import PRESET_FIELDS, FineTuneProfileSpec, FineTuneProfileStatus, Limits
from tunemill_api.scalars import duration_seconds

from tunemill_operator.engine.objects import Json, Meta, meta_of

Fields = dict[str, Any]
"""Values of fields of a spec, by dotted path."""

STAGES = ("prepare", "train", "publish")
"""Stages with a pod template."""


class RefusedError(Exception):
    """The spec is not allowed or not valid."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Profile:
    """A FineTuneProfile."""

    meta: Meta
    spec: FineTuneProfileSpec
    error: str = ""
    """Why the spec does not match the model, which happens if CRD and operator have different versions. An unreadable
    profile can still be the default, for all namespaces, so that no object escapes its limits."""
    generation: int = 0
    status: FineTuneProfileStatus = field(default_factory=FineTuneProfileStatus)
    """The status that the operator wrote last."""

    def serves(self, namespace: str) -> bool:
        """Return whether objects in this namespace may use the profile."""
        return self.spec.namespaces is None or matches(namespace, self.spec.namespaces)

    @property
    def limited(self) -> bool:
        """Whether the profile has any limit. If so, it also restricts fields that no limit names."""
        return self.spec.limits != Limits()

    @cached_property
    def fields(self) -> Fields:
        """The preset fields."""
        return fields_of(self.spec.defaults)


def profile_of(body: Json) -> Profile:
    """Return the typed view of a FineTuneProfile."""
    spec, generation = body.get("spec") or {}, int(body["metadata"].get("generation", 0))
    try:
        status = FineTuneProfileStatus.model_validate(body.get("status") or {})
    except ValidationError:  # written by another client
        status = FineTuneProfileStatus()
    try:
        return Profile(meta_of(body), FineTuneProfileSpec.model_validate(spec), "", generation, status)
    except ValidationError as invalid:
        error = f"spec.{invalid_field(invalid)}"
        unread = FineTuneProfileSpec(default=isinstance(spec, dict) and spec.get("default") is True)
        return Profile(meta_of(body), unread, error, generation, status)


def chosen(name: str, namespace: str, profiles: Iterable[Profile]) -> Profile | None:
    """Return the profile of an object with this spec.profile and namespace. None if no profile applies.

    Raises:
        RefusedError: the profile does not exist, is not allowed for the namespace or cannot be read, or the namespace
            has several default profiles.
    """
    usable = {profile.meta.name: profile for profile in profiles if profile.serves(namespace)}
    profile = _named(name, namespace, usable, profiles) if name else _default(namespace, usable)
    if profile and profile.error:
        message = f"this operator cannot read FineTuneProfile {profile.meta.name}: {profile.error}"
        raise RefusedError(Reason.PROFILE_INVALID, message)
    return profile


def given(spec: FineTuneSpec, profile: Profile) -> Fields:
    """Return the fields that the profile sets in the spec: its defaults, and its limits where neither sets a value."""
    present = written(spec)
    fields = {path: value for path, value in profile.fields.items() if path not in present}
    limits = profile.spec.limits
    for path, limit, default in (
        ("compute.gpus", limits.max_gpus, spec.compute.gpus),
        ("retry.limit", limits.max_retries, spec.retry.limit),
    ):
        if limit is not None and path not in present and path not in fields and default > limit:
            fields[path] = limit
    most = limits.max_runtime
    if most and "maxRuntime" not in {*present, *fields} and _longer(spec.max_runtime, most):
        fields["maxRuntime"] = most
    if limits.max_gpu_hours and not present.get("maxGpuHours"):  # an empty string means no limit
        fields["maxGpuHours"] = fields.get("maxGpuHours") or limits.max_gpu_hours
    if limits.gates:
        gates = fields.get("evaluation.gates") or present.get("evaluation.gates")
        if gates is None:
            gates = spec.model_dump(mode="json", by_alias=True, exclude_none=True)["evaluation"]["gates"]
        demanded = [gate.model_dump(mode="json", by_alias=True, exclude_none=True) for gate in limits.gates]
        lacking = [gate for gate in demanded if gate not in gates]
        if lacking and len(gates) + len(lacking) <= MAX_GATES:
            fields["evaluation.gates"] = [*gates, *lacking]
    for stage in STAGES if limits.max_resources else ():
        # Like a LimitRange: without a limit, a container could use more than the maximum request.
        path = f"podTemplates.{stage}.resources.limits"
        known: dict[str, Any] = fields.get(path) or present.get(path) or {}
        if unlimited := {name: size for name, size in (limits.max_resources or {}).items() if name not in known}:
            fields[path] = {**known, **unlimited}
    return fields


def applied(spec: FineTuneSpec, fields: Fields) -> FineTuneSpec:
    """Return the spec with these fields.

    Raises:
        ValidationError: the result is not a valid spec.
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


def invalid_field(invalid: ValidationError) -> str:
    """Return the path of the first invalid field, and the error."""
    found = invalid.errors()[0]
    return f"{'.'.join(str(part) for part in found['loc'])}: {found['msg'].removeprefix('Value error, ')}"


def _named(name: str, namespace: str, usable: dict[str, Profile], profiles: Iterable[Profile]) -> Profile:
    if name in usable:
        return usable[name]
    there = f"the namespace {namespace} may use {', '.join(sorted(usable)) or 'none'}"
    if any(profile.meta.name == name for profile in profiles):
        raise RefusedError(
            Reason.PROFILE_NOT_ALLOWED, f"spec.profile is {name}, which this namespace may not use; {there}"
        )
    raise RefusedError(Reason.PROFILE_NOT_FOUND, f"spec.profile is {name}, which does not exist; {there}")


def _default(namespace: str, usable: dict[str, Profile]) -> Profile | None:
    defaults = [profile for profile in usable.values() if profile.spec.default]
    nearest = [profile for profile in defaults if profile.spec.namespaces is not None] or defaults
    if len(nearest) > 1:
        names = ", ".join(sorted(profile.meta.name for profile in nearest))
        message = f"spec.profile is empty, and the namespace {namespace} has several default profiles: {names}"
        raise RefusedError(Reason.PROFILE_AMBIGUOUS, message)
    return nearest[0] if nearest else None


def _longer(duration: str, most: str) -> bool:
    return duration_seconds(duration) > duration_seconds(most)


def written(spec: FineTuneSpec) -> Fields:
    """Return the fields of PRESET_FIELDS that are set in a spec, by path."""
    return fields_of(spec.model_dump(mode="json", by_alias=True, exclude_unset=True))


def fields_of(spec: Json) -> Fields:
    """Return the fields of PRESET_FIELDS that are set in a part of a spec, by path."""
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


def matches(name: str, globs: Iterable[str]) -> bool:
    """Return whether a name matches one of the patterns with * and ?."""
    return any(fnmatchcase(name, glob) for glob in globs)
