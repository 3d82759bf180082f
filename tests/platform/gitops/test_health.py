"""The health of objects in Argo CD, Flux and kstatus, for every status of real runs."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from gitops.engines import FLUX_FINETUNES, REPOSITORY, Verdict, health
from kube.kubelet import Ends, Runs, Waits, eventually, fails
from kube.plane import Json, Namespace, Plane
from kube.test_progress import Endpoint, an_endpoint, token_of
from tunemill_api.constants import ANNOTATION_REQUESTED_AT, API_VERSION, PLURAL
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase
from tunemill_dev.played import a_report

PAGE = REPOSITORY / "docs" / "how-to" / "gitops.md"
MISSED_GATE = [{"metric": "exact_match", "min": "0.95"}]
STAYS = "acme/support-tools stays published."
OTHER_DATA = Ends(message=a_report(Stage.PREPARE, key="fedcba9876543210"))
Shown = tuple[str, str, str]
"""What Argo CD, Flux with our expressions, and kstatus show."""
PROGRESSING: Shown = ("Progressing", "InProgress", "InProgress")
HEALTHY: Shown = ("Healthy", "Current", "Current")
DEGRADED: Shown = ("Degraded", "Failed", "Failed")
SUSPENDED: Shown = ("Suspended", "InProgress", "InProgress")
DELETED: Shown = ("Progressing", "InProgress", "Terminating")

TABLE: dict[str, Shown] = {
    "just applied, not processed by the operator yet": PROGRESSING,
    "preparing": PROGRESSING,
    "waiting for a GPU": PROGRESSING,
    "waiting in a queue": PROGRESSING,
    "training": PROGRESSING,
    "evaluating": PROGRESSING,
    "publishing": PROGRESSING,
    "retrying after a temporary failure": PROGRESSING,
    "published": HEALTHY,
    "retrained, and the new model was not better": HEALTHY,
    "held by a gate": DEGRADED,
    "held by a gate, with a draft": DEGRADED,
    "failed, the user must act": DEGRADED,
    "failed, the platform team must act": DEGRADED,
    "`spec.suspend`, still saving a checkpoint": PROGRESSING,
    "`spec.suspend`, stopped": SUSPENDED,
    "published, then the manifest was changed": PROGRESSING,
    "published, and a new model is being trained": PROGRESSING,
    "published, and the next model failed": DEGRADED,
    "being deleted": DELETED,
}
"""The table of the page on GitOps."""


@dataclass
class Story:
    """The recorded versions of the objects of a namespace."""

    versions: list[Json] = field(default_factory=list)
    """Every version that the API server ever had."""
    moments: dict[str, Json] = field(default_factory=dict)
    """The object at each line of the table."""

    def first(self, name: str, holds: Callable[[Json], bool]) -> Json:
        """Return the first version of an object that satisfies a condition."""
        return next(body for body in self.versions if body["metadata"]["name"] == name and holds(body))


@contextmanager
def recorded(namespace: Namespace, into: Path, story: Story) -> Iterator[None]:
    """Watch the objects of a namespace while the block runs."""
    since = namespace.plane.api.get(namespace.path(PLURAL))["metadata"]["resourceVersion"]
    path = f"{namespace.path(PLURAL)}?watch=true&resourceVersion={since}"
    command = [namespace.plane.kubectl, "--kubeconfig", namespace.plane.kubeconfig, "get", "--raw", path]
    with into.open("w") as output, subprocess.Popen(command, stdout=output) as watch:
        try:
            yield
            namespace.apply("last", suspend=True)
            eventually(lambda: '"last"' in into.read_text(), "the watch has caught up")
        finally:
            watch.terminate()
    events = [json.loads(line) for line in into.read_text().splitlines() if line.endswith("}")]
    assert {event["type"] for event in events} <= {"ADDED", "MODIFIED", "DELETED"}
    story.versions = [event["object"] for event in events if event["type"] != "DELETED"]


@pytest.fixture(scope="module")
def story(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Objects that go through every phase and have every result."""
    folder = tmp_path_factory.mktemp("gitops")
    namespace = plane.namespace("gitops-health", {"pod-security.kubernetes.io/enforce": "restricted"})
    story = Story()
    with recorded(namespace, folder / "watch.json", story):
        story.moments["just applied, not processed by the operator yet"] = namespace.apply("new")
        with an_endpoint(plane, folder) as endpoint:
            _begin(namespace)
            _report_end_of_train(endpoint, namespace, "evaluating")
            _proceed(namespace, story)
    changed = story.first("edited", lambda body: body["metadata"]["generation"] == 2)
    story.moments["published, then the manifest was changed"] = changed
    stopping = story.first("suspended", lambda body: _phase(body) == "Suspended" and not _holds(body, "Suspended"))
    story.moments["`spec.suspend`, still saving a checkpoint"] = stopping
    going = story.first("deleted", lambda body: "deletionTimestamp" in body["metadata"])
    story.moments["being deleted"] = going
    yield story
    plane.api.delete(f"/api/v1/namespaces/{namespace.name}")


def _report_end_of_train(endpoint: Endpoint, namespace: Namespace, name: str) -> None:
    """Post the report of a pod at the end of train, which no status shows."""
    kubelet = namespace.plane.kubelet
    eventually(lambda: kubelet.starts_of(name, Stage.EVALUATE), "evaluate runs")
    pod = next(pod for pod in namespace.pods(name) if pod["status"]["phase"] == "Running")
    key = kubelet.run_specs[name, Stage.TRAIN].keys[Stage.TRAIN]
    report = a_report(Stage.TRAIN, key=key, finished_at=datetime.now(UTC))
    body = json.dumps({"report": json.loads(report)}).encode()
    token = token_of(namespace, pod)
    # The operator refuses a report until it has seen the pod.
    eventually(lambda: endpoint.post(namespace.name, name, token, body=body) == 200, "the report is accepted")


def _begin(namespace: Namespace) -> None:
    """Apply all objects at once."""
    behave = namespace.plane.kubelet.behave
    behave("preparing", Stage.PREPARE, Runs())
    behave("queued", Stage.TRAIN, Waits())
    for name in ("held-back", "training", "suspended", "deleted"):
        behave(name, Stage.TRAIN, Runs())
    behave("evaluating", Stage.EVALUATE, Runs())
    behave("publishing", Stage.PUBLISH, Runs())
    behave("retrying", Stage.TRAIN, fails(Stage.TRAIN, Reason.S3_UNREACHABLE, "no route to s3.example.com"))
    behave("draft", Stage.PUBLISH, Ends(message=a_report(Stage.PUBLISH, draft=True)))
    denied = fails(Stage.PREPARE, Reason.HUB_WRITE_DENIED, "the token may not write to acme/support-tools")
    behave("denied", Stage.PREPARE, denied)
    behave("imageless", Stage.PREPARE, Waits("InvalidImageName", "could not parse image reference"))
    for name in ("preparing", "queued", "held-back", "training", "evaluating", "publishing", "retrying", "denied"):
        namespace.apply(name)
    for name in ("imageless", "published", "edited", "retraining", "overtaken", "suspended", "deleted"):
        namespace.apply(name)
    namespace.apply("held", evaluation={"gates": MISSED_GATE})
    namespace.apply("draft", evaluation={"gates": MISSED_GATE, "onGateFailure": "Draft"})
    namespace.apply("no-better", retrain={"schedule": "0 0 1 1 *", "promote": "IfBetter"})


def _proceed(namespace: Namespace, story: Story) -> None:
    """Bring every object to its final state."""
    plane, moments = namespace.plane, story.moments

    def keep(title: str, name: str, phase: str) -> None:
        namespace.wait_for(name, phase)
        moments[title] = namespace.get(name)

    for name in ("edited", "retraining", "overtaken", "no-better"):
        namespace.wait_for(name, "Succeeded")
    namespace.edit("edited", publish={"repository": "acme/other"})
    plane.kubelet.behave("overtaken", Stage.TRAIN, fails(Stage.TRAIN, Reason.TRAINING_DIVERGED, "the loss is NaN"))
    namespace.edit("overtaken", training={"learningRate": "1"})
    plane.kubelet.behave("retraining", Stage.PREPARE, OTHER_DATA)
    plane.kubelet.behave("retraining", Stage.TRAIN, Runs())
    plane.kubelet.behave("no-better", Stage.PREPARE, OTHER_DATA)
    no_better = a_report(Stage.EVALUATE, tuned="0.9000", published="0.9000")
    plane.kubelet.behave("no-better", Stage.EVALUATE, Ends(message=no_better))
    for name in ("retraining", "no-better"):
        namespace.annotate(name, ANNOTATION_REQUESTED_AT, "now")
    for name in ("suspended", "deleted", "held-back"):
        namespace.wait_for(name, "Training")
    namespace.edit("suspended", suspend=True)
    plane.api.delete(namespace.path(PLURAL, "deleted"), {"propagationPolicy": "Foreground"})
    (job,) = [job for job in namespace.live_jobs("held-back") if "-train-" in job["metadata"]["name"]]
    plane.api.patch(namespace.path("jobs", job["metadata"]["name"]), {"spec": {"suspend": True}})

    keep("preparing", "preparing", "Preparing")
    keep("waiting for a GPU", "queued", "Queued")
    keep("waiting in a queue", "held-back", "Queued")
    keep("training", "training", "Training")
    keep("evaluating", "evaluating", "Evaluating")
    keep("publishing", "publishing", "Publishing")
    retrying = eventually(lambda: _when(namespace, "retrying", "Reconciling", "Retrying"), "it is tried again")
    moments["retrying after a temporary failure"] = retrying
    keep("published", "published", "Succeeded")
    not_better = eventually(lambda: _when(namespace, "no-better", "Ready", "NotBetter"), "it is no better")
    moments["retrained, and the new model was not better"] = not_better
    keep("held by a gate", "held", "Held")
    keep("held by a gate, with a draft", "draft", "Held")
    keep("failed, the user must act", "denied", "Failed")
    keep("failed, the platform team must act", "imageless", "Failed")
    eventually(lambda: _when(namespace, "suspended", "Suspended", "Suspended"), "it has stopped")
    keep("`spec.suspend`, stopped", "suspended", "Suspended")
    keep("published, and a new model is being trained", "retraining", "Training")
    keep("published, and the next model failed", "overtaken", "Failed")
    eventually(lambda: plane.api.find(namespace.path(PLURAL, "deleted")) is None, "it is deleted")


def _when(namespace: Namespace, name: str, condition: str, reason: str) -> Json | None:
    body = namespace.get(name)
    found = [item["reason"] for item in body.get("status", {}).get("conditions", []) if item["type"] == condition]
    return body if found == [reason] else None


def _phase(body: Json) -> str:
    phase: str = body.get("status", {}).get("phase", "")
    return phase


def _holds(body: Json, condition: str) -> bool:
    conditions = body.get("status", {}).get("conditions", [])
    return any(item["type"] == condition and item["status"] == "True" for item in conditions)


def _shown(verdicts: dict[str, Verdict]) -> Shown:
    return verdicts["argo"].status, verdicts["flux"].status, verdicts["kstatus"].status


def _expected(body: Json) -> Shown:
    """Return the expected health, derived from the phase, which no engine uses."""
    if "deletionTimestamp" in body["metadata"]:
        return DELETED
    if body["status"]["observedGeneration"] != body["metadata"]["generation"]:
        return PROGRESSING
    match Phase(_phase(body)):
        case Phase.SUCCEEDED:
            return HEALTHY
        case Phase.HELD | Phase.FAILED:
            return DEGRADED
        case Phase.SUSPENDED if _holds(body, "Suspended"):
            return SUSPENDED
    return PROGRESSING


def test_every_recorded_status_has_the_expected_health(story: Story) -> None:
    """In all three engines, for each version of each object, and never unknown."""
    verdicts = health(story.versions, FLUX_FINETUNES)
    wrong = [
        f"{body['metadata']['name']}, generation {body['metadata']['generation']}, {_phase(body)}: {shown}\n"
        f"{yaml.safe_dump(body.get('status'))}"
        for body, shown in zip(story.versions, verdicts, strict=True)
        if _shown(shown) != _expected(body)
    ]
    assert wrong == []
    assert {_phase(body) for body in story.versions} - {""} == set(Phase)


def test_the_table_of_the_page_matches_the_engines(story: Story) -> None:
    """Every line is a status of a real run, and the page has the same lines."""
    assert set(story.moments) == set(TABLE)
    verdicts = health([story.moments[title] for title in TABLE], FLUX_FINETUNES)
    assert dict(zip(TABLE, map(_shown, verdicts), strict=True)) == TABLE
    page = PAGE.read_text()
    for title, shown in TABLE.items():
        assert f"| {title} | {' | '.join(shown)} |" in page


def test_a_failure_is_shown_with_its_remedy(story: Story) -> None:
    """Argo CD shows the message, the remedy, and what is still published."""
    failed = [story.moments[title] for title, shown in TABLE.items() if shown == DEGRADED]
    for body, verdicts in zip(failed, health(failed, FLUX_FINETUNES), strict=True):
        failure = body["status"]["failure"]
        stays = f" {STAYS}" if "published" in body["status"] else ""
        assert verdicts["argo"].message == f"{failure['reason']}: {failure['message']}. {failure['remedy']}{stays}"
        assert verdicts["kstatus"].message == failure["message"]


def test_a_running_object_is_shown_with_its_progress(story: Story) -> None:
    """And with the model that is still published."""
    body = deepcopy(story.moments["published, and a new model is being trained"])
    body["status"] |= {"progress": "45%", "eta": "3m10s"}
    (verdicts,) = health([body], FLUX_FINETUNES)
    (doing,) = [item["message"] for item in body["status"]["conditions"] if item["type"] == "Reconciling"]
    assert verdicts["argo"].message == f"Training: {doing}, 45%, 3m10s left. {STAYS}"


def _set(body: Json, kind: str) -> None:
    for condition in body["status"]["conditions"]:
        if condition["type"] == kind:
            condition["status"] = "True"


SPOILT: dict[str, tuple[Callable[[Json], object], Shown]] = {
    "no status": (lambda body: body.pop("status"), ("Progressing", "Unknown", "Current")),
    "no conditions": (lambda body: body["status"].pop("conditions"), ("Progressing", "InProgress", "Current")),
    "no generation": (lambda body: body["status"].pop("observedGeneration"), (*PROGRESSING[:2], "Current")),
    "an older generation": (lambda body: body["metadata"].update(generation=2), PROGRESSING),
    "reconciling too": (lambda body: _set(body, "Reconciling"), PROGRESSING),
    "stalled too": (lambda body: _set(body, "Stalled"), DEGRADED),
}
"""Statuses of a published object written by other programs."""


@pytest.mark.parametrize("what", SPOILT)
def test_an_impossible_status_is_not_healthy(story: Story, what: str) -> None:
    """Each part of the checks is needed: without it one of these would be healthy."""
    change, shown = SPOILT[what]
    body = deepcopy(story.moments["published"])
    change(body)
    (verdicts,) = health([body], FLUX_FINETUNES)
    assert _shown(verdicts) == shown


def test_a_new_object_is_in_progress_in_every_engine(story: Story) -> None:
    """The CRD has a default status, as kstatus treats an object without one as current."""
    new = story.first("new", lambda body: True)
    assert new["apiVersion"] == API_VERSION
    assert new["status"]["observedGeneration"] == 0
    assert "conditions" not in new["status"] or new["status"]["conditions"] == []
