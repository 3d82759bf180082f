"""The watches. kopf keeps the event streams open; the handlers only update the cache and enqueue keys.

Handlers of kopf that keep state are not used: they write finalizers and annotations to objects, and miss what happens
while the operator is down. `engine.plan` decides everything from the current state.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import kopf
from tunemill_api.constants import GROUP

from tunemill_operator.kube.access import Credentials
from tunemill_operator.kube.client import FINETUNES, JOBS, PODS, PROFILES, Resource
from tunemill_operator.kube.transport import PAGE, Pages, session_options
from tunemill_operator.runtime.cache import Cache, Key, Store, uid_of
from tunemill_operator.runtime.queue import WorkQueue

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0
"""Maximum time in seconds to wait for kopf's streams to end. A leader that has lost its Lease cannot wait longer."""


class WatchError(Exception):
    """A watch has ended. The process must restart."""


@dataclass(frozen=True)
class WatchSinks:
    """Receivers of the watch events."""

    cache: Cache
    """Stores the objects."""
    queue: WorkQueue
    """Receives the keys of changed objects."""
    seen: Callable[[str], None]
    """Called with the plural of the kind for every event."""
    listed: Callable[[], None]
    """Called for every object in the initial list of a watch."""


async def watch(
    sinks: WatchSinks,
    namespaces: Sequence[str],
    credentials: Callable[[], Awaitable[Credentials]],
    take_signals: Callable[[], None],
    *,
    profiles: bool,
) -> None:
    """Watch until cancelled.

    Args:
        sinks: receivers of the events.
        namespaces: namespaces to watch; empty means all.
        credentials: returns the current credentials.
        take_signals: installs the process's signal handlers, which kopf replaces with its own.
        profiles: whether to watch FineTuneProfiles, which are cluster-scoped.

    Raises:
        WatchError: a watch has ended permanently, for example because the CRD was removed.
    """
    registry, settings = kopf.OperatorRegistry(), _settings()
    _register_login(registry, credentials)
    cache = sinks.cache
    for resource, store in ((FINETUNES, cache.finetunes), (JOBS, cache.jobs), (PODS, cache.pods)):
        _register(registry, resource, store, sinks, lambda key: (key,))
        if resource.selector:
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = resource.selector
    if profiles:  # a change of a profile may affect every object
        _register(registry, PROFILES, cache.profiles, sinks, lambda _: cache.finetunes.keys())
    stop = asyncio.Event()
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )
    take_signals()
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    operator = asyncio.ensure_future(kopf.run_tasks(tasks, ignored=asyncio.all_tasks() - set(tasks)))
    for task in (operator, *tasks):
        task.add_done_callback(_retrieve_exception)
    try:
        await asyncio.shield(operator)
    except Exception as error:  # kopf raises the exception of any task again
        raise WatchError(f"a watch has ended permanently: {error}") from error
    finally:
        stop.set()
        _, late = await asyncio.wait([operator], timeout=STOP_SECONDS)
        for task in late:
            task.cancel()


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error of the event loop. Errors of generators that the loop closes at its end are logged as debug.

    kopf leaves the generators of cancelled watches to the loop, which closes all of them at once. One that waits for
    another then fails, and nothing is lost.
    """
    if "asyncgen" in context:
        log.debug("%s", context["message"], exc_info=context.get("exception"))
    else:
        loop.default_exception_handler(context)


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    """Retrieve the exception of a task. kopf has logged it, and asyncio would log it again otherwise."""
    if not task.cancelled():
        task.exception()


def _register(
    registry: kopf.OperatorRegistry,
    resource: Resource,
    store: Store[Any],
    sinks: WatchSinks,
    concerned: Callable[[Key], Iterable[Key]],
) -> None:
    async def observe(event: kopf.RawEvent, **_: Any) -> None:  # noqa: ANN401 - kopf's keyword arguments
        sinks.seen(resource.plural)
        if event["type"] is None:
            sinks.listed()
        body = event["object"]
        key = store.remove(uid_of(body)) if event["type"] == "DELETED" else store.put(body)
        if key is not None:
            for each in concerned(key):
                sinks.queue.add(each)

    kopf.on.event(
        resource.group, resource.version, resource.plural, id=f"observe-{resource.plural}", registry=registry
    )(observe)


def _register_login(registry: kopf.OperatorRegistry, credentials: Callable[[], Awaitable[Credentials]]) -> None:
    pages = Pages()

    @kopf.on.login(registry=registry, id="access")
    async def login(**_: Any) -> kopf.AiohttpSession:  # noqa: ANN401 - kopf's keyword arguments
        current = await credentials()
        info = kopf.ConnectionInfo(
            server=current.server,
            ca_path=current.ca_file,
            insecure=not current.verify,
            scheme="Bearer" if current.token else None,
            token=current.token,
            certificate_path=current.certificate_file,
            private_key_path=current.key_file,
        )
        # Like kopf's own session, but with limits on responses. kopf closes it.
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
            headers=info.as_http_headers(),
            **session_options(pages),
        )
        return kopf.AiohttpSession(server=current.server, aiohttp_session=session)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # Otherwise kopf requires cluster-wide permissions on namespaces and CRDs, and waits a minute without them.
    settings.scanning.disabled = True
    settings.posting.enabled = False  # the recorder writes the events
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = PAGE
    settings.networking.request_timeout = 30
    # kopf keeps each object in memory as JSON for this time.
    settings.queueing.idle_timeout = 0.05
    settings.queueing.exit_timeout = 1
    settings.process.ultimate_exiting_timeout = 30
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    return settings


class _NoDiffBase(kopf.DiffBaseStorage):
    """Stores nothing. Otherwise kopf copies every object for it, which is a quarter of the CPU time at the start."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> Any:  # noqa: ANN401, ARG002 - kopf's signature
        return {}

    def fetch(self, *, body: kopf.Body) -> Any:  # noqa: ANN401, ARG002 - kopf's signature
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:  # noqa: ANN401 - kopf's signature
        pass


class _NoProgress(kopf.ProgressStorage):
    """Stores nothing: the handlers have no progress."""

    def fetch(self, *, key: Any, body: kopf.Body) -> Any:  # noqa: ANN401, ARG002 - kopf's signature
        return None

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:  # noqa: ANN401
        pass

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:  # noqa: ANN401
        pass

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: Any) -> None:  # noqa: ANN401
        pass

    def clear(self, *, essence: Any) -> Any:  # noqa: ANN401
        return essence
