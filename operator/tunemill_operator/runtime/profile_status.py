"""Writes to the status of each FineTuneProfile whether it is valid, so that its author sees errors early."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from tunemill_api.constants import API_VERSION, FIELD_MANAGER, PROFILE_KIND
from tunemill_api.profile import FineTuneProfileStatus
from tunemill_api.status import Condition, ConditionType

from tunemill_operator.engine.failures import shortened
from tunemill_operator.engine.profile_limits import problem_of
from tunemill_operator.engine.profiles import Profile
from tunemill_operator.kube.client import APPLY_PATCH, PROFILES, KubeClient
from tunemill_operator.kube.errors import ConflictError, KubeError
from tunemill_operator.runtime.cache import Store

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
"""Interval in seconds between checks of the cached profiles for changes."""
RETRY_SECONDS: Final = 60.0
"""Time in seconds until the retry of a failed write, for example because the CRD or ClusterRole is older."""


def status_of(profile: Profile, now: datetime) -> FineTuneProfileStatus:
    """Return the status that the profile should have."""
    problem = problem_of(profile)
    value = "False" if problem else "True"
    before = next((item for item in profile.status.conditions if item.type == ConditionType.READY), None)
    ready = Condition(
        type=ConditionType.READY.value,
        status=value,
        reason="Invalid" if problem else "Valid",
        message=shortened(problem) if problem else "The profile is valid.",
        last_transition_time=before.last_transition_time if before and before.status == value else now,
        observed_generation=profile.generation,
    )
    return FineTuneProfileStatus(observed_generation=profile.generation, conditions=[ready])


@dataclass
class ProfileStatuses:
    """Keeps the status of the cached profiles up to date."""

    client: KubeClient
    profiles: Store[Profile]
    clock: Callable[[], datetime] = lambda: datetime.now(UTC).replace(microsecond=0)
    _done: dict[str, int] = field(default_factory=dict)
    """Generation for which the status was written, by uid."""

    async def run(self) -> None:
        """Write the status of changed profiles, until cancelled."""
        warned = ""
        while True:
            wait = LOOK_SECONDS
            try:
                await self.write_changed()
            except ConflictError:  # the profile has changed; the watch will update the cache
                pass
            except KubeError as error:
                wait = RETRY_SECONDS
                if str(error) != warned:
                    warned = str(error)
                    log.warning("the status of a FineTuneProfile could not be written: %s", error)
            await asyncio.sleep(wait)

    async def write_changed(self) -> None:
        """Write the status of every changed profile.

        Raises:
            KubeError: the API server rejected a status.
        """
        present = tuple(self.profiles)
        self._done = {view.meta.uid: self._done[view.meta.uid] for view in present if view.meta.uid in self._done}
        for profile in present:
            if self._done.get(profile.meta.uid) == profile.generation:
                continue
            try:
                wanted = status_of(profile, self.clock())
            except Exception:
                log.exception("FineTuneProfile %s cannot be validated", profile.meta.name)
                self._done[profile.meta.uid] = profile.generation
                continue
            if wanted != profile.status:
                await self._write(profile, wanted)
            self._done[profile.meta.uid] = profile.generation

    async def _write(self, profile: Profile, status: FineTuneProfileStatus) -> None:
        meta = profile.meta
        body = {
            "apiVersion": API_VERSION,
            "kind": PROFILE_KIND,
            "metadata": {"name": meta.name, "resourceVersion": str(meta.resource_version)},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        path = f"{PROFILES.path(None, meta.name)}/status"
        # With the new version in the cache, the watch event triggers no reconcile.
        self.profiles.put(await self.client.request("PATCH", path, query, body, APPLY_PATCH))
