"""The operator's requests to the API server: plain JSON, with a timeout and an observer for each."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient
from tunemill_api.constants import (
    API_VERSION,
    FIELD_MANAGER,
    GROUP,
    KIND,
    LABEL_FINETUNE,
    PLURAL,
    PROFILE_PLURAL,
    VERSION,
)

from tunemill_operator.engine.workloads import LABEL_JOB
from tunemill_operator.kube.decoding import decoded
from tunemill_operator.kube.errors import NotFoundError, UnavailableError, error_of
from tunemill_operator.kube.transport import PAGE

Json = dict[str, Any]
"""An object as returned by the API server."""

REQUEST_SECONDS = 30.0
"""Timeout of a request in seconds. Watches are not included: kopf handles them."""
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

Observer = Callable[[str, str, int, float], None]
"""Called after every request with its method, path, HTTP status (0 without an answer) and duration in seconds."""


@dataclass(frozen=True)
class Resource:
    """A resource of the API server."""

    group: str
    version: str
    plural: str
    selector: str = ""
    """Label selector of the operator's objects."""
    fields: str = ""
    """Field selector of the operator's objects."""

    def path(self, namespace: str | None, name: str = "") -> str:
        """Return the path of the collection, or of one object. None means all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        where = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{where}/{self.plural}{f'/{name}' if name else ''}"


FINETUNES = Resource(GROUP, VERSION, PLURAL)
PROFILES = Resource(GROUP, VERSION, PROFILE_PLURAL)
JOBS = Resource("batch", "v1", "jobs", LABEL_FINETUNE)
PODS = Resource("", "v1", "pods", LABEL_FINETUNE)
CORE_EVENTS = Resource("", "v1", "events")
EVENTS = Resource("events.k8s.io", "v1", "events")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
SECRETS = Resource("", "v1", "secrets")
SERVICES = Resource("", "v1", "services")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies")


class KubeClient:
    """Client for the API server. Every method raises a KubeError if the request fails."""

    def __init__(
        self, api: ApiClient, observer: Observer = lambda *_: None, may_write: Callable[[], bool] = lambda: True
    ) -> None:
        self._api = api
        self._observer = observer
        self._may_write = may_write

    def fenced(self, may_write: Callable[[], bool]) -> "KubeClient":
        """Return a client with the same connections that writes only while `may_write()` is true."""
        return KubeClient(self._api, self._observer, may_write)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def check_discovered(self, resource: Resource) -> None:
        """Raise NotFoundError until discovery lists the kind, which is a moment after it is served."""
        groups = (await self.request("GET", "/apis"))["groups"]
        if any(group["name"] == resource.group for group in groups):
            kinds = (await self.request("GET", f"/apis/{resource.group}/{resource.version}"))["resources"]
            if any(kind["name"] == resource.plural for kind in kinds):
                return
        raise NotFoundError(f"the API server does not list {resource.plural}.{resource.group} in its discovery", 404)

    async def pages(self, resource: Resource, namespace: str | None) -> AsyncIterator[tuple[list[Json], int]]:
        """Yield the objects of a kind page by page, each with the resource version of the list."""
        query = {"labelSelector": resource.selector, "fieldSelector": resource.fields, "limit": str(PAGE)}
        while True:
            path = resource.path(namespace)
            page = await self._page(path, query)
            items, metadata = page.get("items"), page.get("metadata")
            if not isinstance(items, list) or not isinstance(metadata, dict):
                raise UnavailableError(f"GET {path}: the answer is not a list of objects")
            del page  # keep only one page in memory
            yield items, int(metadata["resourceVersion"])
            del items
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def _page(self, path: str, query: Mapping[str, str]) -> Json:
        """Return a page. Failed requests are repeated, so that a long list does not fail because of one of them."""
        for wait in (0.2, 0.5, 1.0):
            try:
                return await self.request("GET", path, query)
            except UnavailableError as error:
                await asyncio.sleep(error.retry_after or wait)
        return await self.request("GET", path, query)

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return an object."""
        return await self.request("GET", resource.path(namespace, name))

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create an object and return it. Jobs with unknown fields are rejected."""
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict" if resource == JOBS else ""}
        return await self.request("POST", resource.path(namespace), query, body)

    async def replace(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Replace an object if its resource version is still the one in the body."""
        return await self.request("PUT", resource.path(namespace, body["metadata"]["name"]), {}, body)

    async def delete(self, resource: Resource, namespace: str, name: str) -> None:
        """Delete an object."""
        await self.request("DELETE", resource.path(namespace, name))

    async def delete_job(self, namespace: str, name: str, uid: str) -> Json:
        """Delete a Job after its pods have ended, if it still has this uid."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        return await self.request("DELETE", JOBS.path(namespace, name), {}, body)

    async def apply_status(self, namespace: str, name: str, resource_version: int, status: Json) -> Json:
        """Write the status if the object still has this resource version. Return the object."""
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": namespace, "resourceVersion": str(resource_version)},
            "status": status,
        }
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self.request("PATCH", f"{FINETUNES.path(namespace, name)}/status", query, body, APPLY_PATCH)

    async def pods_of(self, namespace: str, finetune: str) -> tuple[list[Json], int]:
        """Return the pods of a FunctionCallFineTune, and the resource version of the list."""
        theirs, found, version = replace(PODS, selector=f"{LABEL_FINETUNE}={finetune}"), list[Json](), 0
        async for page, version in self.pages(theirs, namespace):  # noqa: B007 - that of the last page
            found += map(_slim, page)
        return found, version

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return the Warning events of a namespace."""
        warnings = replace(CORE_EVENTS, fields="type=Warning")
        return [_slim(event) async for page, _ in self.pages(warnings, namespace) for event in page]

    async def workloads_of(self, namespace: str, jobs: Iterable[str]) -> list[Json] | None:
        """Return Kueue's Workloads for the Jobs with these uids. None if Kueue is not installed."""
        theirs = replace(WORKLOADS, selector=f"{LABEL_JOB} in ({','.join(jobs)})")
        try:
            return [workload async for page, _ in self.pages(theirs, namespace) for workload in page]
        except NotFoundError:
            return None

    async def label_pod(self, namespace: str, name: str, labels: Mapping[str, str | None]) -> None:
        """Set labels of a pod; None removes one."""
        body = {"metadata": {"labels": dict(labels)}}
        await self.request("PATCH", PODS.path(namespace, name), {}, body, MERGE_PATCH)

    async def review_token(self, token: str, audience: str) -> Json:
        """Return the status of a TokenReview for the token."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        review = await self.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", {}, body)
        status: Json = review.get("status") or {}
        return status

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        """Make a request and return the object in the answer."""
        if method != "GET" and not self._may_write():
            raise UnavailableError(f"{method} {path}: not sent, because another operator may be the leader")
        started, code = time.monotonic(), 0
        try:
            _, url, headers, _, _ = await self._api.param_serialize(
                method,
                path,
                query_params=[(key, value) for key, value in (query or {}).items() if value],
                header_params={"Accept": "application/json", "Content-Type": content_type},
                auth_settings=["BearerToken"],
            )
            # The body is plain JSON, so the client's serialization is skipped.
            response = await self._api.call_api(
                method, url, header_params=headers, body=body, _request_timeout=REQUEST_SECONDS
            )
            code = response.status
            text = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnavailableError(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            self._observer(method, path, code, time.monotonic() - started)
        answer = _object(text)
        if code >= 400:
            message = answer.get("message") or text.decode(errors="replace")[:500]
            wait = response.headers.get("Retry-After", "")
            raise error_of(code, answer.get("reason", ""), message, float(wait) if wait.isdigit() else None)
        return answer


def _slim(body: Json) -> Json:
    """Return a pod or an event without large parts that are not used. There may be thousands of them."""
    if isinstance(metadata := body.get("metadata"), dict):
        metadata.pop("managedFields", None)
        metadata.pop("annotations", None)
    if isinstance(spec := body.get("spec"), dict):
        body["spec"] = {"nodeName": spec.get("nodeName")}
    return body


def _object(text: bytes) -> Json:
    try:
        answer = decoded(text)
    except ValueError:  # a proxy's error page
        return {}
    return answer if isinstance(answer, dict) else {}
