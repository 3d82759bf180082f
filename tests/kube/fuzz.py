"""Sends mutated objects to a real API server: what it takes in, the operator gets."""

import contextlib
import json
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

import urllib3
from kube.api import MERGE_PATCH, ApiError
from kube.plane import PROFILES, Namespace
from property.hostile_worlds import PROFILE, REPORT, worlds
from property.mutations import json_of, mutated, text_of
from tunemill_api.constants import API_VERSION, KIND, LABEL_FINETUNE, PLURAL, PROFILE_KIND

Json = dict[str, Any]
_NAMES = 20
"""Objects of a kind that are there at a time; each is replaced by the next of its name."""
_HEADS = {
    "object": {"apiVersion": API_VERSION, "kind": KIND},
    "profile": {"apiVersion": API_VERSION, "kind": PROFILE_KIND},
    "jobs": {"apiVersion": "batch/v1", "kind": "Job"},
    "pods": {"apiVersion": "v1", "kind": "Pod"},
}


@dataclass
class Fuzz:
    """A tenant who sends what a seed says."""

    namespace: Namespace
    taken: Counter[str] = field(default_factory=Counter)
    """What the API server took in, by kind."""
    refused: Counter[str] = field(default_factory=Counter)

    def send(self, seed: int) -> None:
        """Send one mutated thing, in place of the one of its name that was there before."""
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

    def remove_all(self) -> None:
        """Remove everything that was sent."""
        api = self.namespace.plane.api
        for number in range(_NAMES):
            self._delete(self.namespace.path(PLURAL, _name(number)))
            self._delete(f"{PROFILES}/{_name(number)}")
        for kind in ("jobs", "pods"):
            for item in api.get(self.namespace.path(kind))["items"]:
                self._delete(self.namespace.path(kind, item["metadata"]["name"]))

    def _object(self, random: Random, body: Json, number: int) -> None:
        path = self.namespace.path(PLURAL, _name(number))
        self._delete(path)
        changed = mutated(random, body, random.choice([0, 1, 1, 2, 5]))
        self._put(random, self.namespace.path(PLURAL), path, "object", changed, body, number)

    def _child(self, random: Random, kind: str, body: Json | None, number: int) -> None:
        """Send a Job or a pod that claims to be of an object that is there."""
        if body is None:
            return
        body = deepcopy(body)
        for reference in body["metadata"].get("ownerReferences", []):
            owner = self._uid(PLURAL if reference["kind"] == KIND else "jobs", number)
            if owner:
                reference.update(name=_name(number), uid=owner)
        body["metadata"].setdefault("labels", {})[LABEL_FINETUNE] = _name(number)
        if kind == "pods":  # those of the simulator have no more than the operator looks at
            body["spec"] = {"containers": [{"name": "train", "image": "x"}], **body.get("spec", {})}
            for reference in body["metadata"]["ownerReferences"]:
                reference.setdefault("apiVersion", "batch/v1")
        path = self.namespace.path(kind, _name(number))
        self._delete(path)
        changed = mutated(random, body, random.choice([0, 1, 2, 5]))
        if isinstance(changed.get("spec"), dict) and kind == "jobs":
            changed["spec"] |= {"suspend": True, "parallelism": 1}  # the controller is not to make a thousand pods
        self._put(random, self.namespace.path(kind), path, kind, changed, body, number)

    def _profile(self, random: Random, number: int) -> None:
        path = f"{PROFILES}/{_name(number)}"
        self._delete(path)
        changed = mutated(random, PROFILE, random.choice([1, 2, 5]))
        if isinstance(changed.get("spec"), dict):
            changed["spec"]["namespaces"] = [self.namespace.name]  # who writes profiles is no tenant
        self._put(random, PROFILES, path, "profile", changed, PROFILE, number)

    def _annotations(self, random: Random, number: int) -> None:
        """Change the annotations of the things that are there, and put a report where a pod leaves its own."""
        owned = {"annotations": worlds()[2].live_pods()[0]["metadata"]["annotations"]}
        text = json_of({"metadata": mutated(random, owned, 2)})
        for kind in (PLURAL, "jobs", "pods"):
            self._request("annotations", "PATCH", self.namespace.path(kind, _name(number)), text, MERGE_PATCH)
        message = text_of(random, mutated(random, REPORT["report"], random.choice([1, 2])))
        state = {"terminated": {"exitCode": random.choice([0, 64, 137]), "message": message, "reason": "x"}}
        status = {"name": "train", "state": state, "ready": False, "restartCount": 0, "image": "x", "imageID": "x"}
        text = json.dumps({"status": {"phase": "Failed", "containerStatuses": [status]}})
        self._request("report", "PATCH", f"{self.namespace.path('pods', _name(number))}/status", text, MERGE_PATCH)

    def _put(self, random: Random, folder: str, path: str, kind: str, changed: Json, body: Json, number: int) -> None:
        # What is refused whole is sent with the right spec and metadata, so that its status is tried.
        for content in (changed, body):
            whole = {**content, **_HEADS[kind], "metadata": {**_kept(content.get("metadata")), "name": _name(number)}}
            if self._request(kind, "POST", folder, json_of(whole)):
                break
        status = changed.get("status")
        if status is None or random.random() < 0.2:
            status = mutated(random, body.get("status", {}), 2)
        self._request(f"{kind} status", "PATCH", f"{path}/status", json_of({"status": status}), MERGE_PATCH)

    def _uid(self, kind: str, number: int) -> str:
        with contextlib.suppress(ApiError, urllib3.exceptions.HTTPError):
            if found := self.namespace.plane.api.find(self.namespace.path(kind, _name(number))):
                return str(found["metadata"]["uid"])
        return ""

    def _delete(self, path: str) -> None:
        api = self.namespace.plane.api
        with contextlib.suppress(ApiError, urllib3.exceptions.HTTPError):
            api.patch(path, {"metadata": {"finalizers": None}})
            api.delete(path, {"gracePeriodSeconds": 0, "propagationPolicy": "Background"})
            api.patch(path, {"metadata": {"finalizers": None}})

    def _request(self, kind: str, method: str, path: str, text: str, content_type: str = "application/json") -> bool:
        try:
            self.namespace.plane.api.send(method, path, text, content_type)
        except (ApiError, urllib3.exceptions.HTTPError):  # the API server may also take too long over it
            self.refused[kind] += 1
            return False
        self.taken[kind] += 1
        return True


def _kept(metadata: Any) -> Json:
    """Return the parts of metadata that a client may set."""
    mine = ("labels", "annotations", "ownerReferences", "finalizers")
    return {part: metadata[part] for part in mine if part in metadata} if isinstance(metadata, dict) else {}


def _name(number: int) -> str:
    return f"hostile-{number}"
