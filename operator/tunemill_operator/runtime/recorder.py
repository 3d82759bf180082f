"""Records Kubernetes events about FunctionCallFineTunes."""

import logging
import time
from datetime import datetime

from tunemill_api.constants import API_VERSION, GROUP, KIND

from tunemill_operator.engine.events import Event
from tunemill_operator.engine.failures import shortened
from tunemill_operator.engine.objects import FineTune
from tunemill_operator.kube.client import EVENTS, KubeClient
from tunemill_operator.kube.errors import KubeError

log = logging.getLogger(__name__)


class Recorder:
    """Creates events (events.k8s.io/v1). Errors are only logged, because events are informational."""

    def __init__(self, client: KubeClient, instance: str) -> None:
        self._client = client
        self._instance = instance

    async def record(self, finetune: FineTune, event: Event, now: datetime) -> None:
        """Record an event about the object."""
        meta = finetune.meta
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            # kubectl describe sorts events without lastTimestamp by name.
            "metadata": {"name": f"{meta.name}.{time.time_ns():x}", "namespace": meta.namespace},
            "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": event.kind,
            "reason": event.reason,
            "action": "Reconcile",
            "note": shortened(event.message),
            "reportingController": f"{GROUP}/operator",
            "reportingInstance": self._instance[:128],
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": meta.namespace,
                "name": meta.name,
                "uid": meta.uid,
                "resourceVersion": str(meta.resource_version),
            },
        }
        try:
            await self._client.create(EVENTS, meta.namespace, body)
        except KubeError as error:
            if not error.namespace_ends:
                log.warning("an event could not be recorded: %s", error)
