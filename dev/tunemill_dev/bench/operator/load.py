"""The loads: a burst, a steady rate, a restart with many objects, and the same writes without an operator."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from tunemill_dev.bench.operator.api import CONNECTIONS, Api, Json, Seen
from tunemill_dev.bench.operator.contenders import NAMESPACE, Contender, Ours, Running

PATIENCE_SECONDS = 600.0


async def burst(api: Api, contender: Contender, prefix: str, count: int) -> float:
    """Create objects as fast as the API server accepts them. Return the seconds until the last one has its child."""
    names = [f"{prefix}-{number}" for number in range(count)]
    async with Seen(api, contender.children, by_owner=True).watching() as children:
        await children.ready()
        begun = time.perf_counter()
        await create(api, contender, names)
        await children.all_of(set(names), PATIENCE_SECONDS)
        return max(children.at[name] for name in names) - begun


async def finish(api: Api, ours: Ours, prefix: str, count: int) -> float:
    """Create objects. Return the seconds until the last one has succeeded."""
    begun = time.perf_counter()
    await create(api, ours, [f"{prefix}-{number}" for number in range(count)])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            listed = await api.request("GET", f"{ours.objects}?resourceVersion=0")
            phases = [item.get("status", {}).get("phase") for item in listed["items"]]
            if phases.count("Succeeded") == count:
                return time.perf_counter() - begun
            if "Failed" in phases:
                raise RuntimeError("an object has failed on a simulated node")
            await asyncio.sleep(5)


async def settled(running: Running) -> None:
    """Wait until an operator has finished all work, including the last status and event."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            before = running.cpu_seconds()
            await asyncio.sleep(2)
            if running.cpu_seconds() - before < 0.1:
                return


async def steady(api: Api, contender: Contender, prefix: str, rate: float, seconds: float) -> list[float]:
    """Create objects at a rate per second. Return the milliseconds from each object to its child, seen by watches."""
    names = [f"{prefix}-{number}" for number in range(int(rate * seconds))]
    objects = Seen(api, contender.objects)
    children = Seen(api, contender.children, by_owner=True)
    async with objects.watching(), children.watching(), asyncio.TaskGroup() as group:
        await objects.ready()
        await children.ready()
        begun = time.perf_counter()
        for number, name in enumerate(names):
            await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            group.create_task(api.request("POST", contender.objects, contender.body(name)))
        await children.all_of(set(names), PATIENCE_SECONDS)
        await objects.all_of(set(names), PATIENCE_SECONDS)
    return [1000 * (children.at[name] - objects.at[name]) for name in names]


async def create(api: Api, contender: Contender, names: list[str]) -> None:
    """Create objects, as many at once as there are connections."""
    await _all([partial(api.request, "POST", contender.objects, contender.body(name)) for name in names])


async def restart(
    api: Api, contender: Contender, running: Running, kubeconfig: Path, folder: Path
) -> tuple[Running, float]:
    """Stop and restart the operator. Return it, and the seconds until a new object has its child."""
    await running.stop()
    name = f"after-{time.time_ns()}"
    async with Seen(api, contender.children, by_owner=True).watching() as children:
        await children.ready()
        begun = time.perf_counter()
        fresh = await contender.start(api, kubeconfig, folder)
        await api.request("POST", contender.objects, contender.body(name))
        await children.all_of({name}, PATIENCE_SECONDS)
        return fresh, children.at[name] - begun


async def same_writes(api: Api, ours: Ours, like: str, count: int) -> float:
    """Make the writes of Tunemill's operator without it. Return the seconds that the API server takes.

    Args:
        api: a client of an API server on which no operator runs.
        ours: Tunemill's operator, whose objects are created.
        like: the name of an object that the operator has finished. Its Job, status and events are copied.
        count: the number of objects.
    """
    served = await api.request("GET", f"{ours.objects}/{like}")
    jobs = (await api.request("GET", f"{ours.children}?labelSelector=tunemill.dev/finetune={like}"))["items"]
    query = f"fieldSelector=regarding.name={like}"
    events_path = f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"
    events = (await api.request("GET", f"{events_path}?{query}"))["items"]
    status = {key: served[key] for key in ("apiVersion", "kind", "status")}

    async def one(number: int) -> None:
        name = f"alone-{number}"
        made = await api.request("POST", ours.objects, ours.body(name))
        for job in jobs:
            await api.request("POST", ours.children, _copy(job, name, made))
        body = {**status, "metadata": {"name": name, "resourceVersion": made["metadata"]["resourceVersion"]}}
        patch = "application/apply-patch+yaml"
        await api.request("PATCH", f"{ours.objects}/{name}/status?fieldManager=bench&force=true", body, patch)
        for event in events:
            await api.request("POST", events_path, _copy(event, name, made))

    begun = time.perf_counter()
    await _all([partial(one, number) for number in range(count)])
    return time.perf_counter() - begun


async def _all(work: list[Callable[[], Coroutine[Any, Any, Any]]]) -> None:
    """Run all tasks, as many at once as there are connections."""
    waiting = iter(work)

    async def worker() -> None:
        for job in waiting:
            await job()

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(worker())


def _copy(body: Json, owner: str, made: Json) -> Json:
    """Return a copy of an object as it was created, for another owner."""
    copy = deepcopy(body)
    copy.pop("status", None)
    copy["metadata"] = {
        "name": f"{copy['metadata']['name']}-{owner}",
        "namespace": NAMESPACE,
        "labels": {**copy["metadata"].get("labels", {}), "tunemill.dev/finetune": owner},
        "annotations": copy["metadata"].get("annotations", {}),
    }
    if copy.get("kind") != "Event" and "spec" in copy:
        copy["spec"].pop("selector", None)
        labels = copy["spec"]["template"]["metadata"]["labels"]
        copy["spec"]["template"]["metadata"]["labels"] = {
            key: value for key, value in labels.items() if "controller-uid" not in key and "job-name" not in key
        }
    if "regarding" in copy:
        copy["regarding"] |= {"name": owner, "uid": made["metadata"]["uid"]}
    return copy
