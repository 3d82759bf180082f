"""The chart's admission policies: what a program with the operator's permissions cannot do."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from chart.releases import TEAMS, Cluster
from chart.rendering import NAMESPACE, RELEASE
from kube.kubelet import eventually
from property.builders import a_finetune_body
from tunemill_api.constants import LABEL_LEADER
from tunemill_api.stage_report import Stage
from tunemill_dev.chart.helm import rendered
from tunemill_dev.played import prepared_facts
from tunemill_operator.engine.group_objects import companions_of
from tunemill_operator.engine.objects import finetune_of
from tunemill_operator.engine.pods import job_of
from tunemill_operator.engine.stages import Facts, Ledger, Work
from tunemill_operator.engine.volumes import Platform

OPERATOR = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "tunemill-0",
        "namespace": NAMESPACE,
        "labels": {
            "app.kubernetes.io/name": "tunemill",
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/component": "operator",
        },
    },
    "spec": {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "operator",
                "image": "registry.example.com/op:1",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}
Json = dict[str, Any]


def a_job(namespace: str = "team-a", change: Callable[[Json], object] = lambda job: None, **parts: Any) -> Json:
    """Return a Job of the operator with one foreign change."""
    finetune = finetune_of(a_finetune_body(namespace=namespace, **parts))
    assert finetune.spec is not None
    work = Work("train", (Stage.TRAIN, Stage.EVALUATE), "0123456789abcdef")
    platform = Platform(
        "registry.example.com/trainer:1", progress_url="https://progress:8443", progress_ca="-----BEGIN"
    )
    job = copy.deepcopy(job_of(finetune, finetune.spec, work, Ledger(Facts(prepared_facts())), "run1", platform))
    change(job)
    return job


def pod_of(job: Json) -> Json:
    """Return the spec of a Job's pods."""
    pod: Json = job["spec"]["template"]["spec"]
    return pod


def container_of(job: Json) -> Json:
    """Return the container of a Job's pods."""
    container: Json = pod_of(job)["containers"][0]
    return container


@pytest.fixture(scope="module")
def installed(bare_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with the chart's roles and policies, once the policies are enforced."""
    kinds = {"ServiceAccount", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    roles = {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    objects = [item for item in yaml.safe_load_all(rendered({})) if item and item["kind"] in kinds | roles]
    manifest = yaml.safe_dump_all(objects)
    done = bare_cluster.kubectl("apply", "--server-side", "--filename=-", stdin=manifest)
    assert done.returncode == 0, done.stderr
    bare_cluster.kubectl("create", "--filename=-", stdin=json.dumps(POD))
    # kubectl reads a pod before it labels it, which the operator may not.
    bare_cluster.kubectl("create", "role", "reads", "--verb=get", "--resource=pods", "-n", NAMESPACE)
    account = f"--serviceaccount={NAMESPACE}:{RELEASE}"
    bare_cluster.kubectl("create", "rolebinding", "reads", "--role=reads", account, "-n", NAMESPACE)
    eventually(
        lambda: NO_OWNER in refusal(bare_cluster, a_job(change=lambda job: job["metadata"].pop("ownerReferences"))),
        "the policy for Jobs is in force",
    )
    eventually(lambda: "only the label" in labelled(bare_cluster, "a=b"), "the policy for pods is in force")
    yield bare_cluster
    bare_cluster.kubectl("delete", "role/reads", "rolebinding/reads", "-n", NAMESPACE)
    bare_cluster.kubectl("delete", "pod", "tunemill-0", "-n", NAMESPACE, "--grace-period=0", "--force")
    bare_cluster.kubectl("delete", "--ignore-not-found", "--filename=-", stdin=manifest)


def refusal(cluster: Cluster, job: Json, user: str = OPERATOR) -> str:
    """Return the API server's error for a Job of the operator; empty if it is accepted."""
    done = cluster.kubectl("create", "--dry-run=server", f"--as={user}", "--filename=-", stdin=json.dumps(job))
    return "" if done.returncode == 0 else done.stderr


def labelled(cluster: Cluster, *labels: str, pod: str = "tunemill-0") -> str:
    """Return the API server's error for labels of a pod in the operator's namespace; empty if accepted."""
    done = cluster.kubectl("label", "pod", pod, "-n", NAMESPACE, "--overwrite", f"--as={OPERATOR}", *labels)
    return "" if done.returncode == 0 else done.stderr


def test_the_operators_own_jobs_are_accepted_in_every_team_namespace(installed: Cluster) -> None:
    """The policies deny nothing that the operator needs."""
    for team in TEAMS:
        assert refusal(installed, a_job(team)) == ""
        group = a_job(team, compute={"nodes": 4})
        for item in (group, *companions_of(group)):
            assert refusal(installed, item) == ""


@pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease", NAMESPACE])
def test_a_job_in_a_system_namespace_is_denied(installed: Cluster, namespace: str) -> None:
    """It could use Secrets and accounts of the cluster; RBAC alone would permit it."""
    assert installed.may(OPERATOR, "create", "jobs", "-n", namespace)
    assert "must not create Jobs in this namespace" in refusal(installed, a_job(namespace))


NO_OWNER = "only Jobs owned by a FunctionCallFineTune"
PRIVILEGED = "must be unprivileged and drop all capabilities"
NON_ROOT = "must run as non-root with a seccomp profile"
HOST = "must not use hostNetwork"
MOUNTS = "must not mount volumes of the node"
TOKEN = "must not get a token for the Kubernetes API"
SIGSTORE_TOKEN = {
    "name": "sigstore",
    "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "sigstore"}}]},
}
API_TOKEN = {"name": "api", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda job: job["metadata"].pop("ownerReferences"), NO_OWNER),
        (lambda job: job["metadata"]["ownerReferences"][0].update(kind="ConfigMap", apiVersion="v1"), NO_OWNER),
        (lambda job: job["metadata"]["ownerReferences"][0].update(controller=False), NO_OWNER),
        (lambda job: pod_of(job).update(hostNetwork=True), HOST),
        (lambda job: pod_of(job).update(hostPID=True), HOST),
        (lambda job: pod_of(job).update(hostIPC=True), HOST),
        (lambda job: pod_of(job).update(nodeName="control-plane-0"), HOST),
        (lambda job: pod_of(job).pop("securityContext"), NON_ROOT),
        (lambda job: pod_of(job)["securityContext"].update(runAsNonRoot=False), NON_ROOT),
        (lambda job: pod_of(job)["securityContext"].update(runAsUser=0), NON_ROOT),
        (lambda job: pod_of(job)["securityContext"].update(seccompProfile={"type": "Unconfined"}), NON_ROOT),
        (lambda job: container_of(job).pop("securityContext"), PRIVILEGED),
        (lambda job: container_of(job)["securityContext"].update(privileged=True), "privileged"),
        (lambda job: container_of(job)["securityContext"].update(allowPrivilegeEscalation=True), PRIVILEGED),
        (lambda job: container_of(job)["securityContext"].update(runAsUser=0), PRIVILEGED),
        (lambda job: container_of(job)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), PRIVILEGED),
        (lambda job: container_of(job)["securityContext"]["capabilities"].pop("drop"), PRIVILEGED),
        (lambda job: container_of(job).update(ports=[{"containerPort": 80, "hostPort": 80}]), PRIVILEGED),
        (lambda job: pod_of(job).update(initContainers=[{"name": "i", "image": "i"}]), PRIVILEGED),
        (lambda job: pod_of(job)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}), MOUNTS),
        (lambda job: pod_of(job)["volumes"].append({"name": "n", "nfs": {"server": "s", "path": "/"}}), MOUNTS),
        (lambda job: pod_of(job).pop("automountServiceAccountToken"), TOKEN),
        (lambda job: pod_of(job)["volumes"].append(API_TOKEN), TOKEN),
        (lambda job: pod_of(job)["volumes"].append(SIGSTORE_TOKEN), TOKEN),
    ],
)
def test_a_modified_job_is_denied(installed: Cluster, change: Callable[[Json], object], words: str) -> None:
    """One change to a Job of the operator each. Other accounts are not affected."""
    job = a_job(change=change)
    assert words in refusal(installed, job)
    assert "Tunemill operator" not in refusal(installed, job, "cluster-admin")


HEADLESS = "must be headless and select pods of a FunctionCallFineTune"
ONE_GROUP = "must select pods of a FunctionCallFineTune and let only those in"
NOT_OWNED = "only Services and NetworkPolicies owned by a FunctionCallFineTune"


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("Service", lambda item: item["metadata"].pop("ownerReferences"), NOT_OWNED),
        ("Service", lambda item: item["spec"].pop("clusterIP"), HEADLESS),
        ("Service", lambda item: item["spec"].update(externalIPs=["10.0.0.1"]), HEADLESS),
        ("Service", lambda item: item["spec"].update(selector={"app": "database"}), HEADLESS),
        ("NetworkPolicy", lambda item: item["metadata"].pop("ownerReferences"), NOT_OWNED),
        ("NetworkPolicy", lambda item: item["spec"].update(podSelector={}), ONE_GROUP),
        ("NetworkPolicy", lambda item: item["spec"].update(ingress=[{}]), ONE_GROUP),
        ("NetworkPolicy", lambda item: item["spec"]["ingress"][0]["from"].append({"namespaceSelector": {}}), ONE_GROUP),
        ("NetworkPolicy", lambda item: item["spec"].update(policyTypes=["Egress"]), ONE_GROUP),
    ],
)
def test_foreign_services_and_network_policies_are_denied(
    installed: Cluster, kind: str, change: Callable[[Json], object], words: str
) -> None:
    """They could redirect traffic of others, or block it."""
    (item,) = [item for item in companions_of(a_job(compute={"nodes": 2})) if item["kind"] == kind]
    item = copy.deepcopy(item)
    change(item)
    assert words in refusal(installed, item)
    assert "Tunemill operator" not in refusal(installed, item, "cluster-admin")


def test_deleting_foreign_jobs_is_denied(installed: Cluster) -> None:
    """Only Jobs of FunctionCallFineTunes can be deleted."""
    foreign = a_job(change=lambda job: job["metadata"].pop("ownerReferences"))
    foreign["metadata"]["name"] = "foreign"
    assert installed.kubectl("create", "--filename=-", stdin=json.dumps(foreign)).returncode == 0
    try:
        done = installed.kubectl("delete", "job", "foreign", "-n", "team-a", "--dry-run=server", f"--as={OPERATOR}")
        assert NO_OWNER in done.stderr
    finally:
        installed.kubectl("delete", "job", "foreign", "-n", "team-a", "--cascade=background")


def test_the_operator_can_set_only_one_label_of_its_pods(installed: Cluster) -> None:
    """Neither the image, which the patch permission would allow, nor labels selected by other Services."""
    assert labelled(installed, f"{LABEL_LEADER}=true") == ""
    assert labelled(installed, f"{LABEL_LEADER}-") == ""
    assert "may change only the label tunemill.dev/leader" in labelled(installed, "app=payments")
    assert "may change only the label tunemill.dev/leader" in labelled(installed, "app.kubernetes.io/component-")
    image = {"spec": {"containers": [{"name": "operator", "image": "evil.example/miner"}]}}
    patch = ("patch", "pod", "tunemill-0", "-n", NAMESPACE, f"--as={OPERATOR}", "--patch", json.dumps(image))
    assert "may change only the label tunemill.dev/leader" in installed.kubectl(*patch).stderr
    note = ("annotate", "pod", "tunemill-0", "-n", NAMESPACE, f"--as={OPERATOR}", "a=b")
    assert "may change only the label tunemill.dev/leader" in installed.kubectl(*note).stderr
    other = {**POD, "metadata": {"name": "other", "namespace": NAMESPACE, "labels": {"app": "database"}}}
    assert installed.kubectl("create", "--filename=-", stdin=json.dumps(other)).returncode == 0
    try:
        assert "may change only its own pod" in labelled(installed, f"{LABEL_LEADER}=true", pod="other")
    finally:
        installed.kubectl("delete", "pod", "other", "-n", NAMESPACE, "--grace-period=0", "--force")
