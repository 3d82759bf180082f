"""The HTTP application of an operator process: /metrics, /healthz, /readyz."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4


def application(
    registry: CollectorRegistry, unhealthy: Callable[[], str], not_ready: Callable[[], str]
) -> web.Application:
    """Return the application.

    Args:
        registry: the metrics.
        unhealthy: returns why the process must be restarted; empty if it is healthy.
        not_ready: returns why the process is not ready; empty if it is.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    def answer(problem: str) -> web.Response:
        return web.Response(text=problem or "ok", status=500 if problem else 200)

    async def healthz(_: web.Request) -> web.Response:
        return answer(unhealthy())

    async def readyz(_: web.Request) -> web.Response:
        return answer(not_ready())

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app
