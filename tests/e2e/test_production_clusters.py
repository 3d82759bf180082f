"""Runs in production clusters: sidecars, cleaners, drained nodes, quotas without defaults, a new operator."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e.world import World
from tunemill_api.constants import LABEL_FINETUNE
from tunemill_api.failures import Reason
from tunemill_api.status import FineTuneStatus, Phase, StageState
from tunemill_dev.cluster import running
from tunemill_dev.demo.results import stages_run
from tunemill_dev.kubectl import CommandError, Object
from tunemill_dev.testbed import HUB_SECRET, FineTune, Testbed, json_lines
from tunemill_dev.tiny import rows

RUN_SECONDS = 600
PREPARE_SECONDS = 300
POLICY_SECONDS = 60
LONG = {"maxSteps": 100_000, "checkpoint": {"everySteps": 100}, "divergence": "Ignore"}
"""A training that does not end while a test lasts. The base has random weights, so its loss says nothing."""
REGISTRATION = "admissionregistration.k8s.io/v1"
# Not of the fixtures: building the images for the first time takes minutes.
pytestmark = [pytest.mark.timeout(1500, func_only=True), pytest.mark.xdist_group("chart")]


def sidecar(image: str, name: str, *, native: bool) -> Object:
    """Return a container that runs until SIGTERM, like a proxy or a log agent."""
    return {
        "name": name,
        "image": image,
        "command": ["python3", "-c", "import signal; signal.sigwait([signal.SIGTERM])"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"restartPolicy": "Always"} if native else {}),
    }


def cel(value: object) -> str:
    """Return a JSON value as an untyped CEL expression."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: dyn({cel(item)})" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(cel(item) for item in value) + "]"
    return json.dumps(value)


def adds(path: str, value: object) -> str:
    """Return a JSON patch operation, in CEL, that adds a value."""
    return f'JSONPatch{{op: "add", path: {json.dumps(path)}, value: {cel(value)}}}'


@contextmanager
def mutating_policy(
    world: World, resource: str, example: Object, *operations: str, changed: Callable[[Object], bool]
) -> Iterator[None]:
    """Let the API server change every object of a kind that is created in the namespace, as a mesh or a cleaner does.

    Args:
        world: names the namespace.
        resource: the plural of the kind.
        example: an object of the kind; it is sent as a dry run until the policy is enforced.
        operations: JSON patch operations in CEL.
        changed: whether an object was changed by them.
    """
    name, kubectl = f"{world.name}-{resource}", world.testbed.kubectl
    group = example["apiVersion"].rpartition("/")[0]
    rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}
    policy: Object = {
        "apiVersion": REGISTRATION,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "resourceRules": [rule],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": world.name}},
            },
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{', '.join(operations)}]"}}],
        },
    }
    binding = {"apiVersion": REGISTRATION, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": name}}
    kubectl.apply(policy, {**binding, "spec": {"policyName": name}})
    asked = ("create", "--namespace", world.name, "--dry-run=server", "--output", "json", "--filename", "-")
    deadline = time.monotonic() + POLICY_SECONDS
    try:
        while not changed(json.loads(kubectl(*asked, stdin=json.dumps(example)))):
            assert time.monotonic() < deadline, "the API server does not take the policy up"
            time.sleep(0.5)
        yield
    finally:
        kubectl("delete", "mutatingadmissionpolicybindings,mutatingadmissionpolicies", name)


def a_pod(image: str) -> Object:
    """Return a pod that meets the enforced Pod Security Standard."""
    spec = {"containers": [sidecar(image, "stage", native=False)], "initContainers": [], "restartPolicy": "Never"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "example-"}, "spec": spec}


def a_job(image: str) -> Object:
    """Return a Job of such a pod."""
    spec = {"template": {"spec": a_pod(image)["spec"]}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"generateName": "example-"}, "spec": spec}


@contextmanager
def sidecars(world: World) -> Iterator[None]:
    """Inject a classic and a native sidecar into every pod of the namespace."""
    image = world.testbed.trainer_image
    native = adds("/spec/initContainers", [sidecar(image, "log-agent", native=True)])
    classic = adds("/spec/containers/-", sidecar(image, "mesh-proxy", native=False))
    example = a_pod(image)
    del example["spec"]["initContainers"]
    with mutating_policy(world, "pods", example, native, classic, changed=lambda pod: "initContainers" in pod["spec"]):
        yield


@contextmanager
def cleaner(world: World, seconds: int) -> Iterator[None]:
    """Set a TTL of this many seconds on every Job of the namespace."""
    example = a_job(world.testbed.trainer_image)
    ttl = adds("/spec/ttlSecondsAfterFinished", seconds)
    with mutating_policy(world, "jobs", example, ttl, changed=lambda job: "ttlSecondsAfterFinished" in job["spec"]):
        yield


def state_of(status: FineTuneStatus, stage: str) -> StageState | None:
    """Return the state of a stage."""
    return next((each.state for each in status.stages if each.name == stage), None)


def keys_of(status: FineTuneStatus, stages: list[str]) -> dict[str, str]:
    """Return the keys of these stages."""
    return {entry.name: entry.key for entry in status.stages if entry.name in stages}


def until_training(finetune: FineTune) -> FineTuneStatus:
    """Wait until the train stage runs."""
    return finetune.follow(lambda status: state_of(status, "train") == StageState.RUNNING, RUN_SECONDS)


def until_gone(finetune: FineTune, kind: str = "jobs") -> None:
    """Wait until all of the object's Jobs, or pods, are deleted."""
    deadline = time.monotonic() + PREPARE_SECONDS
    while finetune.kubectl.list(kind, finetune.namespace, f"{LABEL_FINETUNE}={finetune.name}"):
        assert time.monotonic() < deadline, f"the {kind} stay"
        time.sleep(1)


def test_sidecars_that_never_end_do_not_block_a_run(world: World):
    """A run succeeds, and an invalid row is reported, in pods with a native and a classic sidecar."""
    world.put_rows()
    good = json_lines(rows(20)).splitlines()
    wrong = f"s3://{world.name}/wrong.jsonl"
    world.testbed.store.put(wrong, "\n".join([*good[:6], '{"messages": [', *good[6:]]))
    with sidecars(world):
        finetune = world.apply()
        dataset = world.manifest()["spec"]["dataset"]
        bad = world.apply("bad-row", dataset={**dataset, "uri": wrong})
        failure = bad.reach(Phase.FAILED, PREPARE_SECONDS).failure
        assert (failure.stage, failure.reason) == ("prepare", Reason.DATASET_MALFORMED)
        assert "wrong.jsonl line 7" in failure.message
        until_training(finetune)
        names = {item["name"] for pod in finetune.pods("train") for item in pod["spec"]["containers"]}
        assert names == {"train", "mesh-proxy"}
        status = finetune.reach(Phase.SUCCEEDED, RUN_SECONDS)
        assert {stage.name: stage.attempts for stage in status.stages} == dict.fromkeys(
            ("prepare", "train", "evaluate", "publish"), 1
        )
        # The failed pod's sidecars end, too, and the failure stays as it was.
        until_gone(bad, "pods")
        assert bad.status().failure == failure


def test_a_job_cleaner_restarts_no_stage(world: World):
    """Jobs are deleted seconds after their end: failed runs stay failed, and others continue."""
    world.put_rows()
    with cleaner(world, seconds=2):
        bad = world.apply(
            "bad", dataset={**world.manifest()["spec"]["dataset"], "uri": f"s3://{world.name}/none.jsonl"}
        )
        finetune = world.apply()
        failure = bad.reach(Phase.FAILED, PREPARE_SECONDS).failure
        assert failure.reason == Reason.OBJECT_NOT_FOUND
        until_gone(bad)
        status = finetune.reach(Phase.SUCCEEDED, RUN_SECONDS)
        assert set(stages_run(FineTuneStatus(), status).values()) == {1}
        until_gone(finetune)
        assert finetune.status().phase == Phase.SUCCEEDED
        assert bad.status().failure == failure
        assert world.testbed.kubectl.list("jobs", world.name) == []


def test_a_drained_node_interrupts_training_only_if_its_disruption_budget_allows(world: World):
    """A training pod is Ready, so a budget protects it. Without one the run resumes on another node."""
    kubectl = world.testbed.kubectl
    steps = 150
    world.put_rows()
    # A name that no other test uses: the drain selects pods by it, in all namespaces.
    name = "drained"
    finetune = world.apply(name, training={"maxSteps": steps, "checkpoint": {"everySteps": 5}}, retry={"limit": 0})
    finetune.follow(lambda _: bool(world.checkpoints()), RUN_SECONDS)
    (pod,) = finetune.pods("train")
    ready = {each["type"]: each["status"] for each in pod["status"]["conditions"]}
    assert (pod["status"]["phase"], ready["Ready"]) == ("Running", "True")
    labels = {LABEL_FINETUNE: finetune.name}
    budget: Object = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget"}
    spec = {"minAvailable": 1, "selector": {"matchLabels": labels}}
    kubectl.apply({**budget, "metadata": {"name": "training", "namespace": world.name}, "spec": spec})
    drain = ("drain", pod["spec"]["nodeName"], "--pod-selector", f"{LABEL_FINETUNE}={finetune.name}")
    options = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout")
    try:
        with pytest.raises(CommandError, match="disruption budget"):
            kubectl(*drain, *options, "10s")
        assert finetune.status().run.preemptions == 0
        kubectl("delete", "poddisruptionbudget", "training", "--namespace", world.name)
        kubectl(*drain, *options, "120s")
        finetune.follow(lambda status: status.run.preemptions == 1, PREPARE_SECONDS)
    finally:
        kubectl("uncordon", pod["spec"]["nodeName"])
    status = finetune.follow(lambda status: state_of(status, "train") == StageState.SUCCEEDED, RUN_SECONDS)
    assert status.trained.steps == steps
    assert 0 < status.trained.resumed_from_step < steps


def test_a_quota_without_defaults_admits_every_stage_or_is_reported_with_a_field(world: World):
    """Requests have defaults, so a quota of requests admits the pods. For a quota of limits the field is named."""
    kubectl = world.testbed.kubectl
    metadata = {"name": "team", "namespace": world.name}
    hard = {"requests.cpu": "2", "requests.memory": "16Gi", "limits.cpu": "4"}
    kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}})
    # A maximum for the CPU would be a default limit, too.
    bounds = {"type": "Container", "max": {"memory": "16Gi"}, "min": {"cpu": "50m"}}
    kubectl.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": {"limits": [bounds]}})
    world.put_rows()
    templates = world.manifest()["spec"]["podTemplates"]
    finetune = world.apply(podTemplates={"train": templates["train"]})
    failure = finetune.follow(lambda status: status.failure is not None, PREPARE_SECONDS).failure
    assert failure.reason == Reason.QUOTA_EXCEEDED
    assert "spec.podTemplates.prepare.resources.limits.cpu" in failure.remedy + failure.message
    limited = {"resources": {"limits": {"cpu": "1"}}}
    finetune.edit({"podTemplates": {"prepare": limited, "publish": limited}})
    finetune.reach(Phase.SUCCEEDED, RUN_SECONDS)


def new_operator_image(testbed: Testbed, cluster: str, folder: Path) -> str:
    """Build an operator that differs from the running one in the number of every recipe."""
    (folder / "Dockerfile").write_text(
        f"FROM {testbed.operator_image}\nUSER root\n"
        "RUN sed -i -E '/^RECIPES/s/: ([0-9]+)([,}])/: 9\\1\\2/g'"
        " /opt/tunemill/lib/python3*/site-packages/tunemill_api/keys.py"
        " && grep -q '^RECIPES.*: 9[0-9]' /opt/tunemill/lib/python3*/site-packages/tunemill_api/keys.py\n"
        "USER 65532:65532\n"
    )
    return running(cluster).build_image("tunemill-operator-next", folder, folder / "Dockerfile")


def test_a_new_operator_restarts_no_stage(world: World, request: pytest.FixtureRequest, tmp_path: Path):
    """Twenty objects in all phases: with an operator image with new recipes, no Job changes."""
    testbed, kubectl = world.testbed, world.testbed.kubectl
    if request.config.getoption("--context"):
        pytest.skip("builds an image, which a cluster of yours would have to pull")
    world.put_rows()
    spec = world.manifest()["spec"]
    elsewhere = {"train": {**spec["podTemplates"]["train"], "nodeSelector": {"no-such": "node"}}}
    finetunes = {
        "done": [world.apply("done")],
        "held": [world.apply("held", evaluation={"gates": [{"metric": "exact_match", "min": "1"}]})],
    }
    for group in finetunes.values():
        group[0].follow(lambda status: status.phase in {Phase.SUCCEEDED, Phase.HELD}, RUN_SECONDS)
    finetunes["training"] = [world.apply(f"training-{n}", training={**LONG, "seed": n}) for n in range(2)]
    finetunes["queued"] = [world.apply(f"queued-{n}", podTemplates=elsewhere, training={"seed": n}) for n in range(4)]
    finetunes["suspended"] = [world.apply(f"suspended-{n}", suspend=True) for n in range(4)]
    finetunes["failed"] = [
        world.apply(f"failed-{n}", dataset={**spec["dataset"], "uri": f"s3://{world.name}/none-{n}.jsonl"})
        for n in range(4)
    ]
    missing = {"repository": world.repository, "tokenSecretRef": {"name": f"not-{HUB_SECRET}"}}
    finetunes["blocked"] = [world.apply(f"blocked-{n}", publish=missing) for n in range(4)]
    phases = {
        "done": Phase.SUCCEEDED,
        "held": Phase.HELD,
        "training": Phase.TRAINING,
        "queued": Phase.QUEUED,
        "suspended": Phase.SUSPENDED,
        "failed": Phase.FAILED,
        "blocked": Phase.FAILED,
    }
    for kind, group in finetunes.items():
        for finetune in group:
            finetune.follow(lambda status, wanted=phases[kind]: status.phase == wanted, RUN_SECONDS)
    assert sum(len(group) for group in finetunes.values()) == 20

    def jobs_and_pods() -> set[tuple[str, str]]:
        found = kubectl.list("jobs,pods", world.name)
        return {(each["metadata"]["name"], each["metadata"]["uid"]) for each in found}

    before = jobs_and_pods()
    statuses = {finetune.name: finetune.status() for group in finetunes.values() for finetune in group}
    image = new_operator_image(testbed, request.config.getoption("--cluster"), tmp_path)
    repository, _, tag = image.rpartition(":")
    try:
        testbed.install(image={"repository": repository, "tag": tag})
        # The new operator has reconciled all objects when it has served a new one.
        world.apply("after", suspend=True).follow(lambda status: status.phase == Phase.SUSPENDED, PREPARE_SECONDS)
        time.sleep(20)
        assert jobs_and_pods() == before
        for group in finetunes.values():
            for finetune in group:
                old, new = statuses[finetune.name], finetune.status()
                assert (new.phase, new.run.id, new.failure) == (old.phase, old.run.id, old.failure)
                # A stage that has no Job yet will be done by the new recipe.
                begun = [entry.name for entry in old.stages if entry.job]
                assert keys_of(new, begun) == keys_of(old, begun)
                assert new.history == old.history
    finally:
        testbed.install()
