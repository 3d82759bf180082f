"""What a run goes by: the user's spec, completed by the profile that held when the run began."""

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
class Terms:
    """What the run goes by."""

    spec: FineTuneSpec
    """The whole spec."""
    profile: ProfileStatus | None = None
    """The profile that completed it."""
    news: str = ""
    """What the next run would go by instead; empty when nothing would change."""


def terms_of(
    finetune: FineTune, spec: FineTuneSpec, profiles: Sequence[Profile], hubs: Sequence[str] | None = None
) -> Terms:
    """Return what the object's run goes by. What a run began with stays until somebody edits the object or asks again.

    Args:
        finetune: the object with the status that was written last.
        spec: what its user wrote.
        profiles: all that there are.
        hubs: endpoints of Hubs, besides the public one, that tokens may be sent to without a profile that names them;
            None allows all.

    Raises:
        RefusedError: when the run cannot begin like this.
    """
    if not finetune.begun:
        return _fresh(finetune, spec, profiles, hubs)
    kept = finetune.status.profile
    if kept is None and not profiles:
        return Terms(spec)
    present = Terms(_completed(spec, _kept(kept), "status.profile.fields"), kept)
    return replace(present, news=_news(finetune, spec, present, profiles, hubs))


def _fresh(
    finetune: FineTune,
    spec: FineTuneSpec,
    profiles: Sequence[Profile],
    hubs: Sequence[str] | None,
    known: Terms | None = None,
) -> Terms:
    """Return what a run goes by that begins now; `known` is what the present one goes by."""
    profile = chosen(spec.profile, finetune.meta.namespace, profiles)
    if profile is None:
        _check_hub(spec, None, hubs)
        return _complete(Terms(spec))
    name, fields = profile.meta.name, given(spec, profile)
    same = known is not None and fields == _fields(known)
    whole = known.spec if known and same else _completed(spec, fields, f"FineTuneProfile {name}: spec.defaults")
    check(whole, fields, profile)
    _check_hub(whole, profile, hubs)
    return _complete(Terms(whole, ProfileStatus(name=name, fields=fields)))


def _check_hub(spec: FineTuneSpec, profile: Profile | None, hubs: Sequence[str] | None) -> None:
    """Check that tokens of the namespace's Secrets go to a Hub that the platform names, or to the public one.

    Raises:
        RefusedError: the spec names another one.
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


def _complete(terms: Terms) -> Terms:
    """Return the terms, provided that what parts of the spec say about each other fits.

    Raises:
        RefusedError: a volume is mounted that does not exist, or there is no workspace.
    """
    spec = terms.spec
    for stage in STAGES:
        template = spec.pod_templates.of(stage)
        volumes = {volume.name for volume in template.volumes}
        for number, mount in enumerate(template.volume_mounts):
            if mount.name not in volumes:
                where = f"spec.podTemplates.{stage}.volumeMounts[{number}]"
                message = f"{where} mounts {mount.name}, which spec.podTemplates.{stage}.volumes does not have: add it"
                raise RefusedError(Reason.INVALID_SPEC, message)
    if spec.workspace.uri or spec.dataset.uri.startswith("s3://"):
        return terms
    raise RefusedError(
        Reason.INVALID_SPEC,
        "spec.workspace.uri is required if spec.dataset.uri is on the Hub, because there is no bucket for a default "
        "workspace: set it, or ask for it in the defaults of a FineTuneProfile",
    )


def _completed(spec: FineTuneSpec, fields: Fields, where: str) -> FineTuneSpec:
    try:
        return applied(spec, fields)
    except ValidationError as invalid:
        raise RefusedError(Reason.PROFILE_INVALID, f"{where}.{invalid_field(invalid)}") from invalid


def _news(
    finetune: FineTune,
    spec: FineTuneSpec,
    present: Terms,
    profiles: Sequence[Profile],
    hubs: Sequence[str] | None,
) -> str:
    try:
        coming = _fresh(finetune, spec, profiles, hubs, present)
    except RefusedError as error:
        return f"an error: {error}"
    old, new = (terms.profile.name if terms.profile else "" for terms in (present, coming))
    news = [] if old == new else [f"{_called(new)} in place of {_called(old)}"]
    if _fields(present) != _fields(coming):
        before, after = (fields_of(terms.spec.model_dump(mode="json", by_alias=True)) for terms in (present, coming))
        changed = [path for path in before if before[path] != after[path]]
        news += [f"spec.{path} {json.dumps(after[path])} in place of {json.dumps(before[path])}" for path in changed]
    return ", ".join(news)


def _kept(profile: ProfileStatus | None) -> Fields:
    """Return the fields that the run has from its profile, without those that an upgrade has removed from the API."""
    return {path: value for path, value in profile.fields.items() if path in PRESET_FIELDS} if profile else {}


def _fields(terms: Terms) -> Fields:
    return terms.profile.fields if terms.profile else {}


def _called(name: str) -> str:
    return f"FineTuneProfile {name}" if name else "no FineTuneProfile"
