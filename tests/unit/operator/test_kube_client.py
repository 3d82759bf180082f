"""How the client handles responses of the API server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_operator.engine.failures import of_refusal
from tunemill_operator.engine.observe import Refusal
from tunemill_operator.engine.stages import Work
from tunemill_operator.kube.access import AccessError, open_access
from tunemill_operator.kube.client import EVENTS, FINETUNES, JOBS, PAGE, KubeClient
from tunemill_operator.kube.errors import (
    ConflictError,
    ExistsError,
    KubeError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def a_client(handler: Handler, folder: Path, **user: Any) -> AsyncIterator[tuple[KubeClient, list[Any]]]:
    """Run a server with this handler; yield a client that a kubeconfig leads to it, and what it observed."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    observed: list[Any] = []
    access = await open_access(str(kubeconfig), "")
    client = KubeClient(access.client(), lambda *what: observed.append(what))
    try:
        yield client, observed
    finally:
        await client.close()
        await runner.cleanup()


def answering(status: int, headers: dict[str, str] | None = None, **body: Any) -> Handler:
    """Return a handler that always sends this response."""

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers=headers)

    return handler


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, {"reason": "NotFound", "message": "jobs x not found"}, NotFoundError),
        (409, {"reason": "AlreadyExists", "message": "jobs x already exists"}, ExistsError),
        (409, {"reason": "Conflict", "message": "the object has been modified"}, ConflictError),
        (401, {"reason": "Unauthorized", "message": "Unauthorized"}, UnavailableError),
        (403, {"reason": "Forbidden", "message": "cannot create"}, RefusedError),
        (422, {"reason": "Invalid", "message": "is invalid"}, RefusedError),
        (429, {"reason": "TooManyRequests", "message": "slow down"}, UnavailableError),
        (503, {"reason": "ServiceUnavailable", "message": "starting"}, UnavailableError),
    ],
)
async def test_each_status_code_raises_its_error(
    tmp_path: Path, status: int, body: dict[str, Any], kind: type[KubeError]
) -> None:
    """With the message of the API server."""
    async with a_client(answering(status, **body), tmp_path) as (client, observed):
        with pytest.raises(KubeError, match=body["message"]) as caught:
            await client.get(JOBS, "team-a", "x")
        assert type(caught.value) is kind
        assert caught.value.code == status
        assert observed[0][::2] == ("GET", status)


async def test_retry_after_is_respected(tmp_path: Path) -> None:
    """It becomes the delay of the error."""
    handler = answering(429, {"Retry-After": "7"}, message="slow down")
    async with a_client(handler, tmp_path) as (client, _):
        with pytest.raises(UnavailableError) as caught:
            await client.get(JOBS, "team-a", "x")
        assert caught.value.retry_after == 7


async def test_a_closed_connection_is_an_error(tmp_path: Path) -> None:
    """It is retryable, like an unavailable server."""

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.close()
        return web.Response()

    async with a_client(handler, tmp_path) as (client, observed):
        with pytest.raises(UnavailableError):
            await client.get(JOBS, "team-a", "x")
        assert observed[0][::2] == ("GET", 0)


async def test_an_error_page_of_a_proxy_is_shown(tmp_path: Path) -> None:
    """It is not JSON."""

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text="<h1>Bad Gateway</h1>")

    async with a_client(handler, tmp_path) as (client, _):
        with pytest.raises(UnavailableError, match="Bad Gateway"):
            await client.get(JOBS, "team-a", "x")


async def test_lists_are_read_page_by_page(tmp_path: Path) -> None:
    """With the selector of the operator's own objects."""
    asked: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        more = {} if "continue" in request.query else {"continue": "more"}
        return web.json_response({"items": [{}], "metadata": {"resourceVersion": "7", **more}})

    async with a_client(handler, tmp_path) as (client, _):
        pages = [page async for page in client.pages(JOBS, None)]
    assert pages == [([{}], 7), ([{}], 7)]
    assert asked[0] == {"labelSelector": "tunemill.dev/finetune", "limit": str(PAGE)}
    assert asked[1]["continue"] == "more"


async def test_a_temporarily_refused_page_is_retried(tmp_path: Path) -> None:
    """One of fifty pages fails often, and restarting the list each time would never end."""
    answers = iter([429, 200, 500, 200])

    async def handler(request: web.Request) -> web.StreamResponse:
        if (status := next(answers)) != 200:
            return web.json_response({"message": "not now"}, status=status)
        more = {} if "continue" in request.query else {"continue": "more"}
        return web.json_response({"items": [{}], "metadata": {"resourceVersion": "7", **more}})

    async with a_client(handler, tmp_path) as (client, _):
        pages = [page async for page in client.pages(JOBS, None)]
    assert pages == [([{}], 7), ([{}], 7)]


async def test_jobs_are_created_with_strict_validation(tmp_path: Path) -> None:
    """An unknown field is rejected with its path, not dropped silently."""
    seen: list[dict[str, str]] = []
    message = 'strict decoding error: unknown field "spec.template.spec.affinty"'

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(dict(request.query))
        return web.json_response({"reason": "BadRequest", "message": message}, status=400)

    async with a_client(handler, tmp_path) as (client, _):
        with pytest.raises(RefusedError, match=r"unknown field \"spec\.template\.spec\.affinty\"") as refused:
            await client.create(JOBS, "team-a", {})
        with pytest.raises(RefusedError):
            await client.create(EVENTS, "team-a", {})
    assert refused.value.code == 400
    assert [query.get("fieldValidation") for query in seen] == ["Strict", None]
    cause = of_refusal(Work("train", (Stage.TRAIN,), "key"), "job", Refusal(400, str(refused.value), taken=False))
    assert cause.reason is Reason.INVALID_SPEC
    assert "spec.template.spec.affinty" in cause.message


async def test_the_status_is_applied_with_the_resource_version(tmp_path: Path) -> None:
    """Server-side apply with the operator's field manager, on the status subresource."""
    seen: dict[str, Any] = {}

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.update(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            type=request.content_type,
            body=await request.json(),
            token=request.headers.get("Authorization"),
        )
        return web.json_response({})

    async with a_client(handler, tmp_path, token="secret") as (client, _):
        await client.apply_status("team-a", "support", 42, {"phase": "Pending"})
    assert seen["method"] == "PATCH"
    assert seen["path"] == f"{FINETUNES.path('team-a', 'support')}/status"
    assert seen["query"] == {"fieldManager": "tunemill-operator", "force": "true"}
    assert seen["type"] == "application/apply-patch+yaml"
    assert seen["body"]["metadata"] == {"name": "support", "namespace": "team-a", "resourceVersion": "42"}
    assert seen["body"]["status"] == {"phase": "Pending"}
    assert seen["token"] == "Bearer secret"


async def test_a_request_without_a_response_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request has a timeout."""
    monkeypatch.setattr("tunemill_operator.kube.client.REQUEST_SECONDS", 0.2)

    async def handler(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        return web.Response()

    async with a_client(handler, tmp_path) as (client, _):
        with pytest.raises(UnavailableError):
            await client.get(JOBS, "team-a", "x")


async def test_a_missing_kubeconfig_is_reported_with_a_remedy(tmp_path: Path) -> None:
    """One sentence, no traceback."""
    with pytest.raises(AccessError, match="--kubeconfig"):
        await open_access(str(tmp_path / "nothing"), "")


async def test_the_credentials_of_the_kubeconfig_are_passed_to_the_watches(tmp_path: Path) -> None:
    """Kopf opens its own connections."""
    async with a_client(answering(200), tmp_path, token="secret"):
        access = await open_access(str(tmp_path / "kubeconfig"), "x")
        credentials = await access.credentials()
    assert credentials.token == "secret"
    assert credentials.server.startswith("http://127.0.0.1:")
    with pytest.raises(AccessError, match="context"):
        await open_access(str(tmp_path / "kubeconfig"), "another")


@pytest.mark.parametrize(
    ("groups", "kinds", "known"),
    [
        ([], [], False),
        ([{"name": FINETUNES.group}], [], False),
        ([{"name": FINETUNES.group}], [{"name": FINETUNES.plural}], True),
    ],
)
async def test_a_kind_is_discovered_when_group_and_kind_are_listed(
    tmp_path: Path, groups: list[Any], kinds: list[Any], known: bool
) -> None:
    """A new kind is served shortly before discovery lists it, and kopf uses discovery."""

    async def discovery(request: web.Request) -> web.Response:
        return web.json_response({"groups": groups} if request.path == "/apis" else {"resources": kinds})

    async with a_client(discovery, tmp_path) as (client, _):
        if known:
            await client.check_discovered(FINETUNES)
        else:
            with pytest.raises(NotFoundError):
                await client.check_discovered(FINETUNES)


async def test_a_client_that_lost_leadership_only_reads(tmp_path: Path) -> None:
    """Another operator may lead, so no request that changes anything is sent."""
    allowed = [True, False]
    async with a_client(answering(200, kind="Job"), tmp_path) as (client, observed):
        fenced = client.fenced(lambda: allowed.pop(0))
        await fenced.create(JOBS, "team-a", {"metadata": {"name": "x"}})
        with pytest.raises(UnavailableError, match="another operator may be the leader"):
            await fenced.create(JOBS, "team-a", {"metadata": {"name": "y"}})
        await fenced.get(JOBS, "team-a", "x")
    assert [method for method, *_ in observed] == ["POST", "GET"]


async def test_proxy_settings_are_read_from_the_environment_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy is used unless NO_PROXY lists the server."""
    seen: list[str] = []

    async def proxy(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Host"])
        return web.json_response({"kind": "Job"})

    async with a_client(proxy, tmp_path):
        text = (tmp_path / "kubeconfig").read_text()
        monkeypatch.setenv("http_proxy", yaml.safe_load(text)["clusters"][0]["cluster"]["server"])
        far = tmp_path / "far"
        far.write_text(text.replace("127.0.0.1", "api.example.invalid"))
        client = KubeClient((await open_access(str(far), "")).client())
        await client.get(JOBS, "team-a", "x")
        await client.close()
        for host, excepted in (("api.example.invalid", "api.example.invalid"), ("[fd00::1]", "localhost,fd00::1")):
            far.write_text(text.replace("127.0.0.1", host))
            monkeypatch.setenv("no_proxy", excepted)
            client = KubeClient((await open_access(str(far), "")).client())
            with pytest.raises(UnavailableError):
                await client.get(JOBS, "team-a", "x")
            await client.close()
    assert [host.partition(":")[0] for host in seen] == ["api.example.invalid"]


async def test_workloads_are_listed_by_label(tmp_path: Path) -> None:
    """By the label that Kueue sets; without Kueue there is no result."""
    asked = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append((request.path, request.query["labelSelector"]))
        if len(asked) > 1:
            return web.json_response({"message": "404 page not found"}, status=404)
        return web.json_response({"items": [{"kind": "Workload"}], "metadata": {"resourceVersion": "7"}})

    async with a_client(handler, tmp_path) as (client, _):
        assert await client.workloads_of("team-a", ["uid-1", "uid-2"]) == [{"kind": "Workload"}]
        assert await client.workloads_of("team-a", ["uid-1"]) is None
    path = "/apis/kueue.x-k8s.io/v1beta2/namespaces/team-a/workloads"
    assert asked[0] == (path, "kueue.x-k8s.io/job-uid in (uid-1,uid-2)")
