"""A malicious object affects only its own reconcile (findings H1 to H3 of the security review)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from property.builders import PLATFORM, a_finetune_body, a_profile, at, text
from tunemill_api.constants import ANNOTATION_GENERATION, LABEL_FINETUNE
from tunemill_operator.engine.objects import LARGEST_BYTES, pod_of
from tunemill_operator.engine.observe import Observed
from tunemill_operator.engine.plan import plan
from tunemill_operator.engine.profiles import profile_of
from tunemill_operator.kube.client import FINETUNES, JOBS
from tunemill_operator.kube.decoding import DEEPEST, decodable_line, decoded, shallow
from tunemill_operator.kube.transport import PAGE, PAGE_BYTES, Pages, session_options
from tunemill_operator.runtime.cache import Cache
from tunemill_operator.runtime.queue import WorkQueue
from tunemill_operator.runtime.resync import Resync
from tunemill_operator.runtime.warnings import Warnings
from unit.operator.test_kube_client import a_client

Json = dict[str, Any]
Jump = Callable[..., Any]


class Counter:
    """Records what is counted."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def nested(depth: int) -> Json:
    """Return a value of so many levels."""
    value: Json = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def a_job(name: str, **annotations: str) -> Json:
    """Return a Job that anybody with the edit role can create."""
    return {
        "metadata": {
            "name": name,
            "namespace": "attacker",
            "uid": name,
            "resourceVersion": "5",
            "creationTimestamp": text(at(0)),
            "labels": {LABEL_FINETUNE: "x"},
            "annotations": annotations,
        }
    }


@asynccontextmanager
async def a_resync(folder: Path, lists: dict[str, list[Json]]) -> AsyncIterator[Resync]:
    """Yield a resync with an API server that has these objects, by the plural of their kind."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/apis":
            return web.json_response({"groups": [{"name": "tunemill.dev"}]})
        if request.path.endswith("/v1alpha1"):
            return web.json_response({"resources": [{"name": "functioncallfinetunes"}, {"name": "finetuneprofiles"}]})
        items = lists.get(request.path.rpartition("/")[2], [])
        return web.json_response({"items": items, "metadata": {"resourceVersion": "10"}})

    async with a_client(handler, folder) as (client, _):
        cache = Cache()
        observer: Any = Counter()
        yield Resync(client, cache, WorkQueue(observer, cache.unserved), observer, ())


@pytest.mark.parametrize("depth", [150, 250, 1200, 9000])
async def test_a_deep_affinity_stalls_only_its_own_object(tmp_path: Path, depth: int) -> None:
    """One apply ended the operator for all namespaces, and again at each restart (01_deep_affinity.py)."""
    bomb, valid = a_finetune_body("bomb", "attacker"), a_finetune_body("valid", "team-a")
    bomb["spec"]["compute"] = {"affinity": "DEEP"}
    deep = json.dumps("DEEP"), '{"a":' * depth + "1" + "}" * depth
    page = json.dumps({"items": [bomb, valid], "metadata": {"resourceVersion": "10"}}).replace(*deep)

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/functioncallfinetunes"):
            return web.Response(text=page, content_type="application/json")
        return web.json_response({"items": [], "metadata": {"resourceVersion": "10"}})

    async with a_client(handler, tmp_path) as (client, _):
        cache, observer = Cache(), Counter()
        queue: Any = WorkQueue(observer, cache.unserved)  # type: ignore[arg-type]
        resync = Resync(client, cache, queue, observer, (), profiles=False)  # type: ignore[arg-type]
        await resync._compare()
    stalled, served = cache.finetune(("attacker", "bomb")), cache.finetune(("team-a", "valid"))
    assert stalled is not None
    assert stalled.spec is None
    assert "spec.compute.affinity" in stalled.spec_error
    assert served is not None
    assert served.spec is not None


async def test_a_malicious_object_does_not_stop_a_running_leader(tmp_path: Path) -> None:
    """The resync continues, also when a list is no list (05_running_leader.py)."""
    lists: dict[str, list[Json]] = {}
    async with a_resync(tmp_path, lists) as resync:
        await resync.fill_caches()
        lists["functioncallfinetunes"] = [
            {"metadata": {"name": "no uid"}},
            {"metadata": 5},
            {"spec": {}},
            a_finetune_body("valid", "team-a"),
        ]
        task = asyncio.create_task(resync.run(0.05))
        resync._last_listed_at = -10
        async with asyncio.timeout(20):
            while resync.cache.finetune(("team-a", "valid")) is None:
                assert not task.done()
                await asyncio.sleep(0.05)
        task.cancel()


@pytest.mark.parametrize("value", ["x", "-1", "1e3", "9" * 5000, "", "٣", "1_0", " 1"])
def test_a_job_with_any_annotation_is_read(value: str) -> None:
    """`int()` was called on it before the owner of the Job was checked (02_job_annotation.py)."""
    store = Cache().jobs
    assert store.put(a_job("j", **{ANNOTATION_GENERATION: value})) == ("attacker", "x")
    (job,) = store.of(("attacker", "x"))
    assert job.generation == 0


def test_an_unreadable_resource_version_is_ignored_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    """The cached object stays, other objects are updated, and the log is not flooded."""
    counted: list[str] = []
    cache = Cache(counted.append)
    good, bad = a_job("j"), a_job("j")
    bad["metadata"] |= {"resourceVersion": "7", "creationTimestamp": "never"}
    assert cache.jobs.put(good)
    for _ in range(3):
        assert cache.jobs.put(bad) is None
    assert cache.jobs.prune(["j"], version=9) == []
    assert len(cache.jobs) == 1
    assert counted == ["jobs"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "attacker/j" in caplog.text


def test_invalid_times_in_a_pod_status_are_ignored() -> None:
    """With patch on pods/status any string may be there."""
    body = a_job("pod") | {
        "status": {
            "containerStatuses": [
                {"name": "train", "state": {"running": {"startedAt": "0000-01-01T00:00:00Z"}}},
                {"name": "prepare", "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-11-21T12:00:00"}}},
            ]
        }
    }
    train, prepare = pod_of(body).containers
    assert train.started_at is None
    assert prepare.ended
    assert prepare.ended.finished_at is None


def test_a_too_large_object_is_reported_and_not_cached() -> None:
    """The API server accepts 1.5 MiB each: some hundred would exceed the operator's memory."""
    cache, body = Cache(), a_finetune_body("large", "attacker", podTemplates={"train": {"x": "y" * 2 * LARGEST_BYTES}})
    cache.finetunes.put(body)
    (stored,) = cache.finetunes
    assert len(stored.text) < 1000
    found = cache.finetune(("attacker", "large"))
    assert found is not None
    assert found.spec is None
    assert "make it smaller" in found.spec_error


def test_an_object_with_half_a_surrogate_pair_is_reported() -> None:
    """Python accepts the string, but cannot encode it."""
    cache = Cache()
    cache.finetunes.put(a_finetune_body("odd", "attacker", dataset={"uri": "s3://\ud800"}))
    found = cache.finetune(("attacker", "odd"))
    assert found is not None
    assert "cannot be read" in found.spec_error


def test_objects_with_an_invalid_profile_are_refused() -> None:
    """Ignoring the profile would ignore its limits."""
    body = {"metadata": {"name": "p", "uid": "p", "resourceVersion": "1", "creationTimestamp": text(at(0))}}
    for spec in ("text", [1], 5):
        assert profile_of(body | {"spec": spec}).error
    assert not a_profile().error


def test_an_event_written_by_a_user_does_not_hide_others(jump: Jump) -> None:
    """The operator does not trust events."""

    class Events:
        async def warnings_in(self, namespace: str) -> list[Json]:
            good = {"involvedObject": {"uid": "u"}, "message": "quota", "lastTimestamp": "2026-11-21T12:00:00Z"}
            odd: list[Any] = [{}, {"involvedObject": {}, "metadata": {"creationTimestamp": "soon"}}, {"metadata": 5}]
            return [*odd, good]

    async def story() -> None:
        warned = asyncio.Event()
        warnings = Warnings(Events(), lambda _: warned.set())
        warnings.expect(("attacker", "x"), {"u": at(0)})
        task = asyncio.ensure_future(warnings.run())
        await warned.wait()
        assert [item.message for item in warnings.about(("attacker", "x"))] == ["quota"]
        task.cancel()

    jump(story())


async def test_memory_for_many_pods_and_events_is_bounded(tmp_path: Path) -> None:
    """A tenant may create thousands with the object's label."""
    pod = {"metadata": {"name": "p", "managedFields": [{}], "annotations": {}}, "spec": {"nodeName": "n", "x": 1}}

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"items": [pod], "metadata": {"resourceVersion": "7"}})

    async with a_client(handler, tmp_path) as (client, _):
        slim = {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}}
        assert await client.pods_of("team-a", "x") == ([slim], 7)
        assert await client.warnings_in("team-a") == [slim]


def test_json_is_truncated_only_where_it_is_too_deep() -> None:
    """Brackets and escapes inside strings do not count."""
    text = json.dumps({"a": nested(500), "b": '}]{["\\', "c": [1, {"d": 2}]}).encode()
    with pytest.raises(RecursionError):
        json.loads(b"[" * 5000 + b"]" * 5000)
    found = decoded(text)
    assert found["b"] == '}]{["\\'
    assert found["c"] == [1, {"d": 2}]
    depth, value = 0, found["a"]
    while value:
        depth, value = depth + 1, value["a"]
    assert depth == DEEPEST - 1
    small = json.dumps(nested(DEEPEST - 1)).encode()
    assert shallow(small) == small
    with pytest.raises(ValueError, match="neither JSON"):
        decoded(b"<h1>Bad Gateway</h1>")


def test_every_decodable_object_of_a_list_is_read() -> None:
    """Also when another one is not valid JSON."""
    text = b'{"kind":"List","items":[{"a":[1]},{"b":nonsense},{"c":"}]"}],"metadata":{"resourceVersion":"7"}}'
    assert decoded(text) == {
        "kind": "List",
        "items": [{"a": [1]}, {"c": "}]"}],
        "metadata": {"resourceVersion": "7"},
    }


def test_a_watch_line_is_sanitized_for_kopf() -> None:
    """An exception in its JSON parser ends the watch of all objects."""
    deep = b'{"type":"ADDED","object":' + b"[" * 5000 + b"]" * 5000 + b"}"
    assert json.loads(decodable_line(deep))["type"] == "ADDED"
    assert decodable_line(b'{"a":1}') == b'{"a":1}'
    assert decodable_line(b"[" * 300) == b""


class LargeObjects:
    """An API server with large objects that records its requests."""

    def __init__(self, count: int, size: int) -> None:
        self.items = [{"metadata": {"name": f"o{number}"}, "x": "x" * size} for number in range(count)]
        self.limits: list[int] = []
        self.sent = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Respond to a list, or to a watch with one deep and one valid object."""
        if request.query.get("watch"):
            deep = '{"type":"ADDED","object":{"a":' + "[" * 5000 + "]" * 5000 + "}}"
            return web.Response(text=f'{deep}\n{{"type":"ADDED","object":{{"b":1}}}}\n')
        limit, start = int(request.query["limit"]), int(request.query.get("continue", "0"))
        self.limits.append(limit)
        page, end = self.items[start : start + limit], start + limit
        more = {"continue": str(end)} if end < len(self.items) else {}
        answer = web.json_response({"items": page, "metadata": {"resourceVersion": "7", **more}})
        self.sent = max(self.sent, len(answer.body or b""))  # type: ignore[arg-type]
        return answer


async def test_a_page_of_large_objects_is_requested_again_with_a_lower_limit(tmp_path: Path) -> None:
    """All are read in pages of bounded size; the next list starts with the lower limit (04_large.py)."""
    server = LargeObjects(30, 1_000_000)
    async with a_client(server.handle, tmp_path) as (client, _):
        pages = [[item["metadata"]["name"] for item in page] async for page, _ in client.pages(FINETUNES, None)]
        assert [name for page in pages for name in page] == [f"o{number}" for number in range(30)]
        assert max(len(page) for page in pages) * 1_000_000 <= PAGE_BYTES
        assert server.limits[0] == PAGE
        server.limits.clear()
        assert sum([len(page) async for page, _ in client.pages(FINETUNES, None)]) == 30
        assert max(server.limits) < 10
        assert await anext(len(page) async for page, _ in client.pages(JOBS, None)) <= 4, "each kind has its own size"


async def test_the_page_limit_grows_again_for_small_objects(tmp_path: Path) -> None:
    """One tenant's large objects do not slow down all later lists."""
    server = LargeObjects(30, 1_000_000)
    async with a_client(server.handle, tmp_path) as (client, _):
        async for _ in client.pages(FINETUNES, None):
            pass
        server.items = [{"metadata": {"name": "small"}}] * 500
        server.limits.clear()
        async for _ in client.pages(FINETUNES, None):
            pass
    assert server.limits[-1] == PAGE


async def test_an_object_larger_than_a_page_is_read(tmp_path: Path) -> None:
    """In a page of its own."""
    server = LargeObjects(2, PAGE_BYTES + 1)
    async with a_client(server.handle, tmp_path) as (client, _):
        assert [len(page) async for page, _ in client.pages(FINETUNES, None)] == [1, 1]


async def test_kopf_reads_lists_and_watches_in_the_same_way(tmp_path: Path) -> None:
    """Its session has pages of bounded size, and lines that its parser accepts."""
    server = LargeObjects(30, 1_000_000)
    async with a_client(server.handle, tmp_path):
        address = (tmp_path / "kubeconfig").read_text().partition("server: ")[2].split()[0]
        async with aiohttp.ClientSession(**session_options(Pages())) as session:
            async with await session.request("get", f"{address}/apis/x?limit={PAGE}") as response:
                page = await response.json()
            assert 0 < len(page["items"]) <= 4
            async with await session.request("get", f"{address}/apis/x?watch=true") as response:
                content = b"".join([chunk async for chunk in response.content.iter_chunked(1024)])
            events = [json.loads(line) for line in content.splitlines()]
    assert [event["object"].keys() for event in events] == [{"a"}, {"b"}]


@pytest.mark.parametrize(
    "foreign",
    [
        {"profile": {"name": "p", "fields": {"a": "x" * 2 * LARGEST_BYTES}}},
        {"trained": {"steps": 10**30}},
        {"troubleSince": "2026-11-21T12:00:00"},
        {"conditions": [{"type": "Mine", "status": "True", "message": "x" * 2 * LARGEST_BYTES}]},
    ],
)
def test_a_status_modified_by_others_is_not_rewritten_repeatedly(foreign: Json) -> None:
    """Invalid fields stay: server-side apply keeps fields of other managers."""
    body = a_finetune_body("odd", "attacker", podTemplates={"train": {"unknown": 1}})
    body["status"] = foreign
    for round_ in range(3):
        cache = Cache()
        cache.finetunes.put(body)
        found = cache.finetune(("attacker", "odd"))
        assert found is not None
        status = plan(found, Observed(), PLATFORM, at(60 * round_)).status
        assert status is not None
        assert (status == found.status) == (round_ > 0)
        written = status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        body["status"] = {**foreign, **written}
        body["status"]["conditions"] = [*written["conditions"], *foreign.get("conditions", [])]
