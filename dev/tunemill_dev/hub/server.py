"""The server: its routes and middlewares."""

from __future__ import annotations

import asyncio
import binascii
import dataclasses
import hmac
import logging
from collections.abc import Awaitable, Callable
from uuid import uuid4

from aiohttp import web
from pydantic import ValidationError

from tunemill_dev.hub import commits, contents, lfs, repositories
from tunemill_dev.hub.context import CALLER, DROP_AFTER, HUB, Hub, author
from tunemill_dev.hub.errors import HubError
from tunemill_dev.hub.faults import Fault, Request

_log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_REPO = rf"{{owner:{_PART}}}/{{name:{_PART}?}}"
_API = rf"/api/{{kind:models|datasets}}/{_REPO}"
_LFS = rf"/_lfs/{{kind:models|datasets}}/{_REPO}/{{oid:[0-9a-f]{{64}}}}"
_REVISION = "{revision:[^/]+}"


def make_app(hub: Hub) -> web.Application:
    """Return the application. `hub` contains all of its state."""
    # Regular files are sent inside the commit's JSON, up to 10 MiB each, many in one commit.
    app = web.Application(client_max_size=1 << 30, middlewares=[_refusals, _serve])
    app.on_response_prepare.append(_record)
    app[HUB] = hub
    app.add_routes(
        [
            web.get("/healthz", _healthy),
            web.get("/_local/requests", _show_requests),
            web.post("/_local/faults", _add_fault),
            web.delete("/_local/faults", _clear_faults),
            web.get("/api/whoami-v2", repositories.whoami),
            web.post("/api/validate-yaml", commits.validate_yaml),
            web.post("/api/repos/create", repositories.create),
            web.delete("/api/repos/delete", repositories.delete),
            web.get(_API, contents.info),
            web.get(f"{_API}/revision/{_REVISION}", contents.info),
            web.get(f"{_API}/tree/{_REVISION}", contents.tree),
            web.get(f"{_API}/tree/{_REVISION}/{{path:.+}}", contents.tree),
            web.post(f"{_API}/paths-info/{_REVISION}", contents.paths_info),
            web.get(f"{_API}/commits/{_REVISION}", contents.history),
            web.get(f"{_API}/refs", repositories.refs),
            web.post(f"{_API}/branch/{_REVISION}", repositories.create_branch),
            web.delete(f"{_API}/branch/{_REVISION}", repositories.delete_branch),
            web.post(f"{_API}/tag/{_REVISION}", repositories.create_tag),
            web.delete(f"{_API}/tag/{_REVISION}", repositories.delete_tag),
            web.put(f"{_API}/settings", repositories.settings),
            web.post(f"{_API}/user-access-request/grant", repositories.grant),
            web.get(f"{_API}/auth-check", repositories.auth_check),
            web.get(f"{_API}/auth-check/write", repositories.auth_check),
            web.post(f"{_API}/preupload/{_REVISION}", commits.preupload),
            web.post(f"{_API}/commit/{_REVISION}", commits.commit),
            web.put(_LFS, lfs.put),
            web.put(f"{_LFS}/{{part:[0-9]+}}", lfs.put_part),
            web.post(f"{_LFS}/complete", lfs.complete),
            web.post(f"{_LFS}/verify", lfs.verify),
        ]
    )
    for prefix in ("/{kind:datasets}/", "/"):
        app.router.add_post(f"{prefix}{_REPO}.git/info/lfs/objects/batch", lfs.batch)
        app.router.add_get(f"{prefix}{_REPO}/resolve/{_REVISION}/{{path:.+}}", contents.resolve)
    return app


async def _record(request: web.Request, response: web.StreamResponse) -> None:
    """Record the request before the response is sent, so that the client finds it in the record afterwards."""
    if _is_own(request):
        return
    dropped = request.transport is None or request.transport.is_closing()
    seen = Request(request.method, request.path, 0 if dropped else response.status, author(request))
    request.app[HUB].faults.requests.append(seen)
    # Without the query, which may contain the signature of an upload.
    _log.info("%s %s %d %s", seen.method, seen.path, seen.status, seen.user or "-")


@web.middleware
async def _refusals(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Convert every error into the Hub's format."""
    try:
        return await handler(request)
    except HubError as error:
        return _refuse(error)
    except web.HTTPException as error:
        return _refuse(HubError(error.status, f"{error.reason}: {request.method} {request.path}"))
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, reason['loc']))}: {reason['msg']}" for reason in error.errors())
        return _refuse(HubError(400, "; ".join(reasons)))
    except binascii.Error as error:
        return _refuse(HubError(400, f"content that should be base64 is not: {error}"))


@web.middleware
async def _serve(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Apply a pending fault; otherwise authenticate the caller and serve the request."""
    if _is_own(request):
        return await handler(request)
    hub = request.app[HUB]
    if fault := hub.faults.take(request.method, request.path):
        await asyncio.sleep(fault.delay_seconds)
        if fault.drop_connection and request.transport:
            request.transport.close()
            return web.Response()
        if fault.status:
            error = HubError(fault.status, fault.message, fault.error_code)
            return _refuse(error, fault.headers)
        if fault.drop_after_bytes is not None:
            request[DROP_AFTER] = fault.drop_after_bytes
    if who := hub.accounts().identify(request.headers.get("Authorization")):
        request[CALLER] = who
    return await handler(request)


def _is_own(request: web.Request) -> bool:
    """Routes that the real Hub does not have. Faults and Hub tokens do not apply to them."""
    return request.path == "/healthz" or request.path.startswith("/_local/")


def _refuse(error: HubError, headers: dict[str, str] | None = None) -> web.Response:
    all_headers = {"X-Request-Id": uuid4().hex} | error.headers | (headers or {})
    return web.json_response({"error": error.message}, status=error.status, headers=all_headers)


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _show_requests(request: web.Request) -> web.Response:
    _require_admin(request)
    return web.json_response([dataclasses.asdict(seen) for seen in request.app[HUB].faults.requests])


async def _add_fault(request: web.Request) -> web.Response:
    _require_admin(request)
    request.app[HUB].faults.waiting.append(Fault.model_validate_json(await request.read()))
    return web.json_response({}, status=201)


async def _clear_faults(request: web.Request) -> web.Response:
    _require_admin(request)
    request.app[HUB].faults.waiting.clear()
    return web.json_response({})


def _require_admin(request: web.Request) -> None:
    expected, sent = request.app[HUB].admin_token, request.headers.get("Authorization", "")
    if not expected or not hmac.compare_digest(sent.encode(), f"Bearer {expected}".encode()):
        raise HubError(403, "this route needs the admin token that the server was started with")
