"""The effective spec of a run: the user's spec with the fields of the profile at the start of the run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError
from tunemill_api.constants import PUBLIC_HUB
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.profile import PRESET_FIELDS
from tunemill_api.status import ProfileStatus

from tunemill_operator.engine.objects import FineTune
from tunemill_operator.engine.profile_limits import check, names_hub
from tunemill_operator.engine.profiles import (
    STAGES,
    Fields,
    Profile,
    RefusedError,
    applied,
    chosen,
    fields_of,
    given,
    invalid_field,
)


@dataclass(frozen=True)
class ResolvedSpec:
    """The effective spec of a run."""

    spec: FineTuneSpec
    """The user's spec with the fields of the profile."""
    profile: ProfileStatus | None = None
    """The profile and its fields."""
    pending_changes: str = ""
    """What would change in the next run, as text. Empty if nothing would."""


def resolve_spec(
    finetune: FineTune,
    spec: FineTuneSpec,
    profiles: Sequence[Profile],
    hubs: Sequence[str] | None = None,
    *,
    sigstore: bool = True,
) -> ResolvedSpec:
    """Return the effective spec of the object's run. It does not change until an edit or a request.

    Args:
        finetune: the object with the status that was written last.
        spec: the user's spec.
        profiles: all FineTuneProfiles.
        hubs: URLs of Hubs, in addition to the public one, to which tokens may be sent without a profile that allows it.
            None allows all.
        sigstore: whether releases may be signed without a key.

    Raises:
        RefusedError: the run cannot start with this spec.
    """
    if not finetune.run_started:
        if not sigstore:
            _check_signing(spec)
        return _resolve_now(finetune, spec, profiles, hubs)
    recorded = finetune.status.profile
    if recorded is None and not profiles:
        return ResolvedSpec(spec)
    fields = _preset_fields(recorded)
    current = ResolvedSpec(_with_preset_fields(spec, fields, "status.profile.fields"), recorded)
    try:
        changes = _difference(current, _resolve_now(finetune, spec, profiles, hubs, reuse=current))
    except RefusedError as error:
        changes = f"an error: {error}"
    return replace(current, pending_changes=changes)


def _resolve_now(
    finetune: FineTune,
    spec: FineTuneSpec,
    profiles: Sequence[Profile],
    hubs: Sequence[str] | None,
    reuse: ResolvedSpec | None = None,
) -> ResolvedSpec:
    """Return the effective spec of a run that starts now.

    The spec of `reuse` is used again if it has the same fields of a profile, which saves its validation.
    """
    profile = chosen(spec.profile, finetune.meta.namespace, profiles)
    if profile is None:
        _check_hub(spec, None, hubs)
        return _checked(ResolvedSpec(spec))
    name, fields = profile.meta.name, given(spec, profile)
    same = reuse is not None and fields == _fields(reuse)
    whole = (
        reuse.spec if reuse and same else _with_preset_fields(spec, fields, f"FineTuneProfile {name}: spec.defaults")
    )
    check(whole, fields, profile)
    _check_hub(whole, profile, hubs)
    return _checked(ResolvedSpec(whole, ProfileStatus(name=name, fields=fields)))


def _check_hub(spec: FineTuneSpec, profile: Profile | None, hubs: Sequence[str] | None) -> None:
    """Check that tokens are sent only to the public Hub or to one that the platform team allows.

    Raises:
        RefusedError: the Hub of the spec is not allowed.
    """
    endpoint = spec.hub.endpoint.rstrip("/")
    if hubs is None or endpoint in ("", PUBLIC_HUB, *(hub.rstrip("/") for hub in hubs)):
        return
    if profile and names_hub(profile, endpoint):
        return
    raise RefusedError(
        Reason.LIMIT_EXCEEDED,
        f"spec.hub.endpoint is {endpoint}, but tokens may be sent only to {', '.join([PUBLIC_HUB, *hubs])}: ask for it "
        "in defaults.hub or limits.endpoints of a FineTuneProfile, or in hub.endpoints of the operator's chart",
    )


def _check_signing(spec: FineTuneSpec) -> None:
    """Check that the run needs no keyless signing, which is disabled.

    Raises:
        RefusedError: it needs it.
    """
    if spec.publish.signs_keyless:
        raise RefusedError(
            Reason.LIMIT_EXCEEDED,
            "spec.publish.signing.keyless is true, but the platform team has not enabled keyless signing: ask for "
            "sigstore.enabled in the operator's chart, or set spec.publish.signing.keySecretRef instead",
        )


def _checked(resolved: ResolvedSpec) -> ResolvedSpec:
    """Return the effective spec after a check of its fields against each other.

    Raises:
        RefusedError: a mounted volume does not exist, or there is no workspace.
    """
    spec = resolved.spec
    for stage in STAGES:
        template = spec.pod_templates.of(stage)
        volumes = {volume.name for volume in template.volumes}
        for number, mount in enumerate(template.volume_mounts):
            if mount.name not in volumes:
                where = f"spec.podTemplates.{stage}.volumeMounts[{number}]"
                message = f"{where} mounts {mount.name}, which spec.podTemplates.{stage}.volumes does not have: add it"
                raise RefusedError(Reason.INVALID_SPEC, message)
    if spec.workspace.uri or spec.dataset.uri.startswith("s3://"):
        return resolved
    raise RefusedError(
        Reason.INVALID_SPEC,
        "spec.workspace.uri is required if spec.dataset.uri is on the Hub, because there is no bucket for a default "
        "workspace: set it, or ask for it in the defaults of a FineTuneProfile",
    )


def _with_preset_fields(spec: FineTuneSpec, fields: Fields, where: str) -> FineTuneSpec:
    try:
        return applied(spec, fields)
    except ValidationError as invalid:
        raise RefusedError(Reason.PROFILE_INVALID, f"{where}.{invalid_field(invalid)}") from invalid


def _difference(old: ResolvedSpec, new: ResolvedSpec) -> str:
    """Return as text how the new effective spec differs from the old one; empty if it does not."""
    names = [_profile_text(resolved.profile) for resolved in (old, new)]
    changes = [] if names[0] == names[1] else [f"{names[1]} in place of {names[0]}"]
    if _fields(old) != _fields(new):
        before, after = (fields_of(resolved.spec.model_dump(mode="json", by_alias=True)) for resolved in (old, new))
        changed = [path for path in before if before[path] != after[path]]
        changes += [f"spec.{path} {json.dumps(after[path])} in place of {json.dumps(before[path])}" for path in changed]
    return ", ".join(changes)


def _preset_fields(profile: ProfileStatus | None) -> Fields:
    """Return the recorded fields of the profile, without those that an upgrade has removed from the API."""
    return {path: value for path, value in profile.fields.items() if path in PRESET_FIELDS} if profile else {}


def _fields(resolved: ResolvedSpec) -> Fields:
    return resolved.profile.fields if resolved.profile else {}


def _profile_text(profile: ProfileStatus | None) -> str:
    return f"FineTuneProfile {profile.name}" if profile else "no FineTuneProfile"
