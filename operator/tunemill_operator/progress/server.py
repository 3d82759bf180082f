"""HTTP application for progress reports."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

from aiohttp import web
from pydantic import ValidationError
from tunemill_api.plain_text import parsed

from tunemill_operator.engine.volumes import progress_path
from tunemill_operator.kube.errors import KubeError
from tunemill_operator.progress.auth import BusyError, NotAllowedError, NotAuthenticatedError, ReportAuthenticator
from tunemill_operator.progress.board import Board, ProgressReport

log = logging.getLogger(__name__)

BODY_BYTES = 16 * 1024
"""Maximum size of a report, which has at most 32 short metrics."""
READ_SECONDS = 10.0
"""Timeout of a request in seconds, including its authentication. The listener limits the time for headers."""


_REFUSALS: Mapping[type[Exception], tuple[int, str]] = {
    NotAuthenticatedError: (401, "a ServiceAccount token of the pod with the audience for progress is required"),
    NotAllowedError: (403, "only a running pod of this object may report about it"),
    BusyError: (503, "too many tokens of this address are being reviewed, retry later"),
    TimeoutError: (408, f"the request took longer than {READ_SECONDS:.0f} s"),
}


def application(authenticator: ReportAuthenticator, board: Board, counted: Callable[[int], None]) -> web.Application:
    """Return the application.

    Args:
        authenticator: authenticates the reports.
        board: stores the reports.
        counted: called with the HTTP status of every answer.
    """

    async def post(request: web.Request) -> web.Response:
        key = (request.match_info["namespace"], request.match_info["name"])
        try:
            async with asyncio.timeout(READ_SECONDS):
                authorization = request.headers.get("Authorization", "")
                pod = await authenticator.pod_of(authorization, key, client=request.remote or "")
                body = await request.read()
            report = parsed(ProgressReport, body.decode(errors="replace"))
        except tuple(_REFUSALS) as error:
            return _refusal(*_REFUSALS[type(error)])
        except ValidationError as error:
            return _answer(400, f"not a progress report: {error.errors(include_input=False)[0]['msg']}")
        except KubeError as error:
            log.warning("a token could not be reviewed: %s", error)
            return _answer(503, "the token could not be reviewed, retry later")
        board.post(key, pod, report, datetime.now(UTC))
        return _answer(200, "")

    @web.middleware
    async def count(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:  # no such path, or a body that is too large
            counted(error.status)
            raise
        counted(response.status)
        return response

    app = web.Application(client_max_size=BODY_BYTES, middlewares=[count])
    app.router.add_post(progress_path("{namespace}", "{name}"), post)
    return app


def _refusal(status: int, message: str) -> web.Response:
    """Return the answer. The connection stays open if a new one would cost more than the next request on it."""
    response = _answer(status, message)
    if status == 408:
        response.force_close()
    return response


def _answer(status: int, message: str) -> web.Response:
    return web.json_response({"message": message} if message else {}, status=status)
