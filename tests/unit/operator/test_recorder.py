"""Events are shown in the order in which they were recorded."""

from datetime import UTC, datetime
from typing import Any

from property.builders import a_finetune_body
from tunemill_operator.engine.events import Event
from tunemill_operator.engine.objects import finetune_of
from tunemill_operator.kube.client import Resource
from tunemill_operator.runtime.recorder import Recorder


class Client:
    """Stores events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    async def create(self, resource: Resource, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Keep one."""
        self.events.append(body)
        return body


async def test_event_names_sort_in_the_order_of_recording() -> None:
    """Also within one second: kubectl describe has no other order for them."""
    client: Any = Client()
    recorder, now = Recorder(client, "test"), datetime.now(UTC)
    reasons = ["Trained", "Evaluated", "GatePassed", "Published"]
    for reason in reasons:
        await recorder.record(finetune_of(a_finetune_body()), Event("Normal", reason, "message"), now)
    shown = sorted(client.events, key=lambda event: event["metadata"]["name"])
    assert [event["reason"] for event in shown] == reasons
    assert len({event["metadata"]["name"] for event in shown}) == len(reasons)
