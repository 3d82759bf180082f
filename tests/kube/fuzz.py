"""Sends mutated objects to a real API server; the operator gets those that it accepts."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

import urllib3
from kube.api import MERGE_PATCH, Api, ApiError
from kube.plane import PROFILES, Namespace
from property.hostile_worlds import PROFILE, REPORT, worlds
from property.mutations import json_of, mutated, text_of
from tunemill_api.constants import API_VERSION, KIND, LABEL_FINETUNE, PLURAL, PROFILE_KIND

Json = dict[str, Any]
SENDERS = 4
"""How many send at the same time. Each has names of its own, so that the order of the requests for a name is fixed."""
_AT_ONCE = {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
_NAMES = 20
"""Objects of a kind that are there at a time; each is replaced by the next of its name. A multiple of SENDERS."""
_HEADS = {
    "object": {"apiVersion": API_VERSION, "kind": KIND},
    "profile": {"apiVersion": API_VERSION, "kind": PROFILE_KIND},
    "jobs": {"apiVersion": "batch/v1", "kind": "Job"},
    "pods": {"apiVersion": "v1", "kind": "Pod"},
}


@dataclass
class Sender:
    """A tenant that sends the documents of its seeds: those with the same remainder of SENDERS as its number."""

    namespace: Namespace
    number: int
    post_report: Callable[[bytes], int]
    """Posts a progress report and returns the HTTP status."""
    taken: Counter[str] = field(default_factory=Counter)
    """The mutated documents that were taken in, by kind."""
    refused: Counter[str] = field(default_factory=Counter)
    """The mutated documents that were refused."""
    stopped: bool = False
    """Whether it is to send nothing more."""
    answers: Counter[int] = field(default_factory=Counter)
    """The HTTP statuses of progress reports; 0 if there is none."""
    _uids: dict[str, str] = field(default_factory=dict)
    """The uid of each object that was created, by path."""

    def send(self, seeds: range) -> None:
        """Send the documents of its own seeds."""
        for seed in seeds:
            if seed % SENDERS == self.number and not self.stopped:
                self._send(seed)

    def forget(self) -> None:
        """Treat all created objects as removed."""
        self._uids.clear()

    def _send(self, seed: int) -> None:
        random = Random(seed)
        number = seed % _NAMES
        world = random.choice(worlds())
        match random.randrange(6):
            case 0 | 1:
                self._object(random, world.finetune_body, number)
            case 2:
                self._child(random, "jobs", random.choice([*world.jobs.values()] or [None]), number)
            case 3:
                self._child(random, "pods", random.choice([*world.pods.values()] or [None]), number)
            case 4:
                self._profile(random, number)
            case _:
                self._annotations(random, number)
        if seed // SENDERS % 10 == 9:
            self._report(Random(f"report {seed}"))

    def _object(self, random: Random, body: Json, number: int) -> None:
        changed = mutated(random, body, random.choice([0, 1, 1, 2, 5]))
        self._put(random, self.namespace.path(PLURAL), "object", changed, body, number)

    def _child(self, random: Random, kind: str, body: Json | None, number: int) -> None:
        """Send a Job or a pod that claims to belong to an existing object."""
        if body is None:
            return
        body = deepcopy(body)
        for reference in body["metadata"].get("ownerReferences", []):
            owner = PLURAL if reference["kind"] == KIND else "jobs"
            if uid := self._uids.get(self.namespace.path(owner, _name(number))):
                reference.update(name=_name(number), uid=uid)
        body["metadata"].setdefault("labels", {})[LABEL_FINETUNE] = _name(number)
        if kind == "pods":  # those of the simulator have no more than the operator looks at
            body["spec"] = {"containers": [{"name": "train", "image": "x"}], **body.get("spec", {})}
            for reference in body["metadata"]["ownerReferences"]:
                reference.setdefault("apiVersion", "batch/v1")
        changed = mutated(random, body, random.choice([0, 1, 2, 5]))
        if isinstance(changed.get("spec"), dict) and kind == "jobs":
            changed["spec"] |= {"suspend": True, "parallelism": 1}  # the controller is not to make a thousand pods
        self._put(random, self.namespace.path(kind), kind, changed, body, number)

    def _profile(self, random: Random, number: int) -> None:
        changed = mutated(random, PROFILE, random.choice([1, 2, 5]))
        if isinstance(changed.get("spec"), dict):
            changed["spec"]["namespaces"] = [self.namespace.name]  # who writes profiles is no tenant
        self._put(random, PROFILES, "profile", changed, PROFILE, number)

    def _annotations(self, random: Random, number: int) -> None:
        """Change annotations of existing objects, and put a report where a pod leaves its own."""
        owned = {"annotations": worlds()[2].live_pods()[0]["metadata"]["annotations"]}
        text = json_of({"metadata": mutated(random, owned, 2)})
        for kind in (PLURAL, "jobs", "pods"):
            path = self.namespace.path(kind, _name(number))
            if path in self._uids:
                self._mutation("annotations", path, text)
        message = text_of(random, mutated(random, REPORT["report"], random.choice([1, 2])))
        state = {"terminated": {"exitCode": random.choice([0, 64, 137]), "message": message, "reason": "x"}}
        status = {"name": "train", "state": state, "ready": False, "restartCount": 0, "image": "x", "imageID": "x"}
        text = json.dumps({"status": {"phase": "Failed", "containerStatuses": [status]}})
        path = self.namespace.path("pods", _name(number))
        if path in self._uids:
            self._mutation("report", f"{path}/status", text)

    def _report(self, random: Random) -> None:
        """Post a progress report."""
        report = text_of(random, mutated(random, REPORT, random.choice([0, 1, 1, 2, 5])))
        try:
            answer = self.post_report(report.encode(errors="surrogatepass"))
        except (ApiError, urllib3.exceptions.HTTPError, OSError):  # on a busy machine a connection may time out
            answer = 0
        self.answers[answer] += 1
        (self.taken if answer == 200 else self.refused)["progress report"] += 1

    def _put(self, random: Random, folder: str, kind: str, changed: Json, body: Json, number: int) -> None:
        """Replace the object of this name by a mutated one, and mutate its status."""
        path = f"{folder}/{_name(number)}"
        self._delete(path)
        taken = self._create(kind, folder, path, changed, number)
        (self.taken if taken else self.refused)[kind] += 1
        # What is refused whole is sent with the right spec and metadata, so that its status is tried.
        if not taken and not self._create(kind, folder, path, _suspended(body) if kind == "object" else body, number):
            return
        status = changed.get("status")
        if status is None or random.random() < 0.2:
            status = mutated(random, body.get("status", {}), 2)
        self._mutation(f"{kind} status", f"{path}/status", json_of({"status": status}))

    def _create(self, kind: str, folder: str, path: str, content: Json, number: int) -> bool:
        whole = {**content, **_HEADS[kind], "metadata": {**_kept(content.get("metadata")), "name": _name(number)}}
        answer = self._request("POST", folder, json_of(whole), "application/json")
        if answer is None:
            return False
        self._uids[path] = json.loads(answer)["metadata"]["uid"]
        return True

    def _delete(self, path: str) -> None:
        self._uids.pop(path, None)
        _delete(self.namespace.plane.api, path)

    def _mutation(self, kind: str, path: str, text: str) -> None:
        """Change an existing object."""
        taken = self._request("PATCH", path, text, MERGE_PATCH) is not None
        (self.taken if taken else self.refused)[kind] += 1

    def _request(self, method: str, path: str, text: str, content_type: str) -> bytes | None:
        """Return the response; None if the API server rejects the request or is too slow."""
        try:
            return self.namespace.plane.api.send(method, path, text, content_type)
        except (ApiError, urllib3.exceptions.HTTPError):
            return None


def remove_all(namespace: Namespace) -> None:
    """Remove everything that was sent to a namespace, and the objects that the operator created."""
    api = namespace.plane.api
    for number in range(_NAMES):
        _delete(api, f"{PROFILES}/{_name(number)}")
    for kind in (PLURAL, "jobs", "pods"):
        api.delete(namespace.path(kind), _AT_ONCE)
        for item in api.get(namespace.path(kind))["items"]:
            _delete(api, namespace.path(kind, item["metadata"]["name"]))


def _delete(api: Api, path: str) -> None:
    """Remove an object that may be there."""
    with contextlib.suppress(ApiError, urllib3.exceptions.HTTPError):
        if api.delete(path, _AT_ONCE).get("metadata", {}).get("finalizers"):
            api.patch(path, {"metadata": {"finalizers": None}})


def _kept(metadata: Any) -> Json:
    """Return the parts of metadata that a client may set."""
    mine = ("labels", "annotations", "ownerReferences", "finalizers")
    return {part: metadata[part] for part in mine if part in metadata} if isinstance(metadata, dict) else {}


def _suspended(body: Json) -> Json:
    """Return an object without Jobs, each of which costs the API server more than ten documents."""
    return {**body, "spec": {**body["spec"], "suspend": True}}


def _name(number: int) -> str:
    return f"hostile-{number}"
