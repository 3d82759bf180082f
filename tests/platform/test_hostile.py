"""A malicious tenant at the API server: references outside the namespace, false reports, too large objects."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from kube.kubelet import Ends, eventually
from kube.operators import Operator
from kube.plane import Namespace, Plane
from property.builders import texts_in
from tunemill_api.constants import ANNOTATION_RUN_SPEC, LABEL_FINETUNE, LABEL_STAGE, PLURAL
from tunemill_api.failures import Reason
from tunemill_api.plain_text import plain
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report

Json = dict[str, Any]
NASTY = "a\n\x1b[2K\x9b31m\u202e<script>"
REPOSITORIES = [
    *("acme/../x", "../x", "acme/x/../../y", "acme/%2e%2e", "acme/.x", "acme//x", "datasets/acme/x", "https://hub/x/y"),
    *("acme/x?y=z", "acme/x#y", "acme/x y", "acme/x\n", "acme/x\u200b", "\u202eacme/x", "\u0430cme/x", ""),
]
ESCAPES = ["../kube-system/x", "kube-system/x", "..", "x\n", "x\0", "\u0430", "%2e%2e", "x" * 254, "a/../b", "a\\b"]
REFERENCES: dict[str, Callable[[str], Json]] = {
    "data": lambda name: {"dataset": {"credentialsSecretRef": {"name": name}}},
    "workspace": lambda name: {"workspace": {"credentialsSecretRef": {"name": name}}},
    "read token": lambda name: {"baseModel": {"tokenSecretRef": {"name": name}}},
    "write token": lambda name: {"publish": {"tokenSecretRef": {"name": name}}},
    "tools": lambda name: {"tools": {"configMapKeyRef": {"name": name, "key": "x"}}},
    "template": lambda name: {"tokenizer": {"chatTemplate": {"configMapKeyRef": {"name": name, "key": "x"}}}},
    "claim": lambda name: {"compute": {"modelCache": {"claimName": name}}},
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_name_cannot_refer_outside_the_namespace(namespace: Namespace, kind: str) -> None:
    """The API server rejects it with the field."""
    for name in ESCAPES:
        assert "spec." in namespace.refusal_of("escaping", **REFERENCES[kind](name))


def test_the_key_of_a_reference_cannot_be_a_path(namespace: Namespace) -> None:
    """Nor does it determine the file name in the pod."""
    for key in ("../token", "a/b", "..\\x", "x\n", ""):
        assert "spec." in namespace.refusal_of("escaping", publish={"tokenSecretRef": {"name": "hf", "key": key}})


def test_a_namespace_in_a_reference_is_ignored(plane: Plane, namespace: Namespace, operator: Operator) -> None:
    """The API server drops it, and mounts are always from the pod's own namespace."""
    foreign = {"credentialsSecretRef": {"name": "theirs", "namespace": "kube-system"}}
    assert namespace.apply("reaching", dataset=foreign)["spec"]["dataset"]["credentialsSecretRef"] == {"name": "theirs"}
    (job,) = eventually(lambda: namespace.jobs("reaching"), "there is a Job")
    assert job["metadata"]["namespace"] == namespace.name
    sources = [volume["secret"] for volume in job["spec"]["template"]["spec"]["volumes"] if "secret" in volume]
    assert {"theirs"} <= {source["secretName"] for source in sources}
    assert not any("namespace" in source for source in sources)


def test_a_repository_must_be_owner_and_name(namespace: Namespace) -> None:
    """It cannot lead to another page of the Hub, nor contain confusable characters."""
    for repository in REPOSITORIES:
        assert "spec.publish.repository" in namespace.refusal_of("escaping", publish={"repository": repository})
        assert "spec.baseModel.id" in namespace.refusal_of("escaping", baseModel={"id": repository})


def test_an_endpoint_with_credentials_is_rejected(namespace: Namespace) -> None:
    """The spec is readable by everyone with access to the object, and copied into pods."""
    for endpoint in ("https://me:pa55@hub", "https://hub/?token=x", "https://hub/#x", "file:///etc"):
        for part in ("hub", "dataset", "workspace"):
            assert f"spec.{part}.endpoint" in namespace.refusal_of("telling", **{part: {"endpoint": endpoint}})


def test_no_field_weakens_the_security_of_a_pod(namespace: Namespace) -> None:
    """The namespaces of these tests reject pods that are not restricted."""
    fields = {
        "securityContext",
        "hostNetwork",
        "hostPath",
        "hostPID",
        "command",
        "containers",
        "automountServiceAccountToken",
    }
    loose = {field: {"privileged": True} for field in fields}
    made = namespace.apply("loose", compute=loose, podTemplates={"train": loose})["spec"]
    assert not fields & {*made.get("compute", {}), *made.get("podTemplates", {}).get("train", {})}
    host = [{"name": "host", "hostPath": {"path": "/"}}]
    assert "set exactly one of" in namespace.refusal_of("mounting", podTemplates={"train": {"volumes": host}})


def test_user_labels_and_annotations_cannot_override_ours(namespace: Namespace) -> None:
    """A pod belongs to its own object, gets the operator's RunSpec, and waits in the Job's queue."""
    forged = [
        {"labels": {LABEL_FINETUNE: "other"}},
        {"labels": {LABEL_STAGE: "publish"}},
        {"labels": {"kueue.x-k8s.io/queue-name": "free"}},
        {"annotations": {ANNOTATION_RUN_SPEC: "{}"}},
    ]
    for template in forged:
        for stage in ("prepare", "train", "publish"):
            assert "are set by the operator" in namespace.refusal_of("posing", podTemplates={stage: template})


def test_an_object_without_a_valid_pod_is_reported_and_does_not_block_others(
    namespace: Namespace, operator: Operator
) -> None:
    """Too large annotations for a pod, or an invalid service account; the next object is served."""
    huge = {f"example.com/a{number}": "x" * 4096 for number in range(64)}
    namespace.apply("huge", podTemplates={"prepare": {"annotations": huge}})
    account = {"prepare": {"serviceAccountName": "../kube-system/admin"}}
    assert "serviceAccountName" in namespace.refusal_of("odd", podTemplates=account)
    namespace.apply("next")
    eventually(lambda: namespace.condition("huge", "Stalled").get("status") == "True", "it is stalled")
    assert namespace.status("huge")["failure"]["reason"] == Reason.INVALID_SPEC
    assert namespace.jobs("huge") == []
    namespace.wait_for("next", "Succeeded")


def test_false_reports_of_a_pod_are_escaped(plane: Plane, namespace: Namespace, operator: Operator) -> None:
    """Escape sequences in facts, failures and invalid reports become plain text in status and events."""
    facts = json.loads(a_report(Stage.PREPARE))
    facts["prepared"]["tokenizerMode"] = NASTY
    facts["prepared"]["dataset"]["format"] = NASTY
    plane.kubelet.behave("false-report", Stage.PREPARE, Ends(0, json.dumps(facts)))
    failure = {"reason": "DatasetMalformed", "message": NASTY * 50, "remedy": NASTY}
    message = json.dumps({key: facts[key] for key in ("stage", "startedAt", "finishedAt")} | {"failure": failure})
    plane.kubelet.behave("failing", Stage.PREPARE, Ends(65, message))
    plane.kubelet.behave("babbling", Stage.PREPARE, Ends(70, NASTY * 300))
    for name in ("false-report", "failing", "babbling"):
        namespace.apply(name, retry={"limit": 0})
    namespace.wait_for("false-report", "Succeeded")
    for name in ("failing", "babbling"):
        namespace.wait_for(name, "Failed")
        eventually(lambda name=name: namespace.events(name), f"an event reports {name}")
    events = namespace.plane.api.get(namespace.path("events"))["items"]
    statuses = [namespace.status(name) for name in ("false-report", "failing", "babbling")]
    assert [text for text in texts_in([statuses, events]) if plain(text) != text] == []
    assert all(len(event.get("note") or event.get("message", "")) <= 1024 for event in events)
    assert r"\u001b[2K" in namespace.status("false-report")["prepared"]["tokenizerMode"]
    assert plain(operator.log.read_text(), keep="\n") == operator.log.read_text()


def everything(plane: Plane) -> dict[str, str]:
    """Return all objects that the API server lists, as JSON, by the path of their list."""
    roots = ["/api/v1"]
    for group in plane.api.get("/apis")["groups"]:
        roots += [f"/apis/{version['groupVersion']}" for version in group["versions"]]
    found = {}
    for root in roots:
        for resource in plane.api.get(root)["resources"]:
            if "list" in resource["verbs"]:
                listed = plane.api.find(f"{root}/{resource['name']}")
                found[f"{root}/{resource['name']}"] = json.dumps(listed)
    return found


def test_the_values_of_secrets_are_in_no_object_log_or_metric(
    plane: Plane, namespace: Namespace, operator: Operator
) -> None:
    """A successful run and one that fails at each stage, with Secrets in every reference."""
    canaries = {name: f"canary-{name}-7d1f0c" for name in ("data", "space", "read", "write")}
    for name, value in canaries.items():
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "token")
        namespace.make("secrets", name, stringData={key: f"{value}-{key}" for key in keys})
    parts: Json = {
        "dataset": {"credentialsSecretRef": {"name": "data"}},
        "workspace": {"uri": "s3://team-a-space/x/", "credentialsSecretRef": {"name": "space"}},
        "baseModel": {"tokenSecretRef": {"name": "read"}},
        "publish": {"tokenSecretRef": {"name": "write"}},
        "retry": {"limit": 0},
    }
    for stage in Stage:
        plane.kubelet.behave(f"bad-{stage}", stage, Ends(70, "Traceback (most recent call last): …"))
        namespace.apply(f"bad-{stage}", **parts)
    namespace.apply("good", **parts)
    namespace.wait_for("good", "Succeeded")
    for stage in Stage:
        namespace.wait_for(f"bad-{stage}", "Failed")

    objects = everything(plane)
    assert "Y2FuYXJ5L" in objects.pop("/api/v1/secrets"), "canary- in base64"
    assert len(objects) > 40
    assert f"bad-{Stage.TRAIN}" in objects[f"/apis/tunemill.dev/v1alpha1/{PLURAL}"]
    said = {**objects, "log": operator.log.read_text(), "metrics": operator.probe("/metrics")[1]}
    for where, text in said.items():
        assert "canary-" not in text, where
        assert "Y2FuYXJ5L" not in text, where
