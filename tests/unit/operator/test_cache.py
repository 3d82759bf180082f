"""The cache of cluster objects never goes back to an older version."""

from copy import deepcopy
from typing import Any

from property.builders import a_finetune_body
from tunemill_api.constants import ANNOTATION_REQUESTED_AT
from tunemill_operator.engine.objects import finetune_of
from tunemill_operator.runtime.cache import Cache

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
KEY = ("team-a", "support")


def a_body(version: int, uid: str = "one", **spec: Any) -> dict[str, Any]:
    """Return an object at this version."""
    body = deepcopy(a_finetune_body(**spec))
    body["metadata"] |= {"resourceVersion": str(version), "uid": uid}
    return body


def test_an_older_version_is_ignored() -> None:
    """The response to a write may arrive before the watch event, which then repeats it."""
    store = Cache().finetunes
    assert store.put(a_body(5)) == KEY
    assert store.put(a_body(5)) is None
    assert store.put(a_body(4, suspend=True)) is None
    (known,) = store.of(KEY)
    spec = known.view().spec
    assert spec is not None
    assert not spec.suspend
    assert store.put(a_body(6, suspend=True)) == KEY


def test_a_deleted_object_does_not_come_back() -> None:
    """The response to a request may arrive after the watch event of the deletion."""
    store = Cache().finetunes
    store.put(a_body(5))
    assert store.remove("one") == KEY
    assert store.put(a_body(6)) is None
    assert store.of(KEY) == ()
    assert store.put(a_body(7, uid="two")) == KEY


def test_a_recreated_object_replaces_the_old_one() -> None:
    """The newer object wins."""
    cache = Cache()
    cache.finetunes.put(a_body(5))
    cache.finetunes.put(a_body(9, uid="two"))
    found = cache.finetune(KEY)
    assert found is not None
    assert found.meta.uid == "two"


def test_a_complete_list_removes_objects_missed_by_the_watch() -> None:
    """But not objects created after the list, or in namespaces that were not listed."""
    store = Cache().finetunes
    store.put(a_body(5, uid="gone"))
    store.put(a_body(6, uid="there"))
    store.put(a_body(12, uid="new"))
    other = a_body(5, uid="elsewhere")
    other["metadata"]["namespace"] = "team-b"
    store.put(other)
    assert store.prune(["there"], version=10, namespace="team-a") == [KEY]
    assert {view.meta.uid for view in store} == {"there", "new", "elsewhere"}
    assert len(store) == 3


def test_an_object_is_stored_compactly_without_losing_fields() -> None:
    """As text without managed fields; the engine decides on the same content."""
    body = a_body(5)
    body["metadata"]["managedFields"] = [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:x": {}} | {"y" * 9000: {}}}}]
    body["metadata"]["annotations"] = {LAST_APPLIED: "z" * 9000, ANNOTATION_REQUESTED_AT: "now"}
    cache = Cache()
    cache.finetunes.put(body)
    (stored,) = cache.finetunes.of(KEY)
    assert len(stored.text) < 3000
    assert cache.finetune(KEY) == finetune_of(body)


def test_an_object_is_new_until_it_has_a_job_or_a_status() -> None:
    """New objects are served first."""
    cache = Cache()
    assert not cache.unserved(KEY)
    cache.finetunes.put(a_body(5))
    assert cache.unserved(KEY)
    observed = a_body(6)
    observed["status"] = {"phase": "Pending"}
    cache.finetunes.put(observed)
    assert not cache.unserved(KEY)


def test_unused_annotations_are_not_stored() -> None:
    """A user's large annotation must not cost the operator memory."""
    store = Cache().pods
    body = {
        "metadata": {
            "namespace": "team-a",
            "name": "pod",
            "uid": "pod",
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-21T12:00:00Z",
            "annotations": {"tunemill.dev/run-spec": "x" * 100_000},
        },
        "spec": {"containers": [{"name": "x", "env": [{"name": "y", "value": "z" * 100_000}]}]},
    }
    store.put(body)
    assert len(repr(store.get("pod"))) < 1000
