"""FineTuneProfiles with a real API server: validation, status, and their effect on an operator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube.api import APPLY_PATCH, ApiError
from kube.kubelet import Runs, eventually
from kube.operators import an_operator
from kube.plane import PROFILES, Namespace, Plane
from property.builders import a_spec
from tunemill_api.constants import API_VERSION, KIND, PLURAL
from tunemill_api.stage_report import Stage

GPU = "nvidia.com/gpu"


@pytest.fixture
def platform(plane: Plane) -> Iterator[Plane]:
    """The control plane of a platform team, whose profiles are removed after the test: a default one affects all."""
    yield plane
    for profile in plane.api.get(PROFILES)["items"]:
        plane.api.delete(f"{PROFILES}/{profile['metadata']['name']}")


def gpu_resource_of(namespace: Namespace, name: str) -> str:
    """Return the resource name of the GPU in the train Job of an object."""
    (job,) = [job for job in namespace.live_jobs(name) if "-train-" in job["metadata"]["name"]]
    limits: dict[str, str] = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    (name,) = limits
    return name


def about_profile(namespace: Namespace, name: str) -> str:
    """Return the profile message of the object."""
    message: str = namespace.condition(name, "ProfileCurrent").get("message", "")
    return message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"limits": {"maxGpus": 0}, "defaults": {"compute": {"gpus": 1}}}, "gpus must be at most limits.maxGpus"),
        ({"limits": {"maxGpuHours": "9"}, "defaults": {"maxGpuHours": "10.5"}}, "must be at most limits.maxGpuHours"),
        ({"limits": {"maxGpuHours": "0"}}, "maxGpuHours must be above 0"),
        ({"limits": {"maxGpus": -1}}, "spec.limits.maxGpus"),
        ({"limits": {"baseModels": ["google/[a-z]*"]}}, "spec.limits.baseModels[0]"),
        ({"limits": {"maxMoons": 1}}, "maxMoons"),
        ({"limits": {"podTemplateFields": ["hostNetwork"]}}, "spec.limits.podTemplateFields[0]"),
        ({"defaults": {"compute": {"gpus": 17}}}, "compute.gpus: Invalid value: 17"),
        ({"defaults": {"podTemplates": {"train": {"hostPID": True}}}}, "hostPID"),
        ({"defaults": {"podTemplates": {"train": {"env": [{"name": "HOME"}]}}}}, "sets this variable itself"),
        ({"defaults": {"compute": {"gpus": "4"}}}, "spec.defaults.compute.gpus"),
        ({"defaults": {"evaluation": {"gates": [{"metric": "exact_match"}]}}}, "a gate needs at least one of min"),
        ({"defaults": {"publish": {"tokenSecretRef": {"key": "token"}}}}, "tokenSecretRef.name: Required value"),
        ({"defaults": {"publish": {"repository": "acme/all"}}}, "repository"),
        ({"defaults": {"training": {"epochs": 3}}}, "training"),
        ({"namespaces": "team-a"}, "spec.namespaces"),
    ],
)
def test_an_invalid_profile_is_rejected_with_its_field(plane: Plane, spec: dict[str, Any], words: str) -> None:
    """Also fields that have no default, such as the rows to train on and the repository."""
    with pytest.raises(ApiError) as refused:
        plane.profile("bad", **spec)
    assert words in refused.value.message


def test_fields_with_profile_defaults_are_not_defaulted_by_the_api_server(plane: Plane, namespace: Namespace) -> None:
    """For created objects, and for repeated server-side apply as in GitOps."""
    assert "compute" not in namespace.apply("created")["spec"]
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "applied"}, "spec": a_spec()}
    body["spec"]["compute"] = {"gpus": 1}
    body["spec"]["podTemplates"] = {"train": {"nodeSelector": {}}}
    path = f"{namespace.path(PLURAL, 'applied')}?fieldManager=gitops&force=true"
    for _ in range(2):
        applied = plane.api.request("PATCH", path, body, APPLY_PATCH)
        assert applied["spec"]["compute"] == {"gpus": 1}
        assert applied["spec"]["podTemplates"] == {"train": {"nodeSelector": {}}}
        assert applied["metadata"]["generation"] == 1
    del body["spec"]["compute"], body["spec"]["podTemplates"]
    assert not {"compute", "podTemplates"} & {*plane.api.request("PATCH", path, body, APPLY_PATCH)["spec"]}


def test_a_refused_spec_waits_without_a_job_until_it_is_permitted(
    platform: Plane, namespace: Namespace, tmp_path: Path
) -> None:
    """Status and event have limit, field, value and remedy; a changed profile takes effect at once."""
    platform.profile("small", limits={"maxGpus": 0, "trainerImages": []})
    platform.profile("others", namespaces=["another-team"])
    with an_operator(platform.kubeconfig, tmp_path / "operator.log", "--no-leader-election") as operator:
        namespace.apply("greedy", profile="small", compute={"gpus": 1, "trainerImage": "evil.example/miner"})
        namespace.apply("lost", profile="gold")
        namespace.apply("stranger", profile="others")
        status = namespace.wait_for("greedy", "Failed")
        failure = status["failure"]
        assert failure["reason"] == "LimitExceeded"
        assert "limits.maxGpus allows 0, spec.compute.gpus asks for 1" in failure["message"]
        assert "limits.trainerImages allows none" in failure["message"]
        assert namespace.condition("greedy", "Stalled")["status"] == "True"
        assert namespace.wait_for("lost", "Failed")["failure"]["reason"] == "ProfileNotFound"
        assert namespace.wait_for("stranger", "Failed")["failure"]["reason"] == "ProfileNotAllowed"
        eventually(lambda: "LimitExceeded" in namespace.events("greedy"), "an event reports it")
        assert not [job for name in ("greedy", "lost", "stranger") for job in namespace.jobs(name)]
        platform.profile("small", limits={"maxGpus": 1, "trainerImages": ["evil.example/*"]})
        platform.profile("gold", default=True, namespaces=[namespace.name])
        namespace.wait_for("greedy", "Succeeded")
        assert namespace.wait_for("lost", "Succeeded")["profile"]["name"] == "gold"
        namespace.apply("early")
        assert namespace.wait_for("early", "Succeeded")["profile"]["name"] == "gold"
        platform.profile("silver", default=True, namespaces=[namespace.name])
        eventually(lambda: "gold, silver" in about_profile(namespace, "early"), "the started object names both")
        namespace.apply("torn")
        message = namespace.wait_for("torn", "Failed")["failure"]["message"]
        assert "gold, silver" in message
        assert namespace.status("early")["phase"] == "Succeeded"
        assert not operator.logged("Traceback"), operator.log.read_text()


def test_a_running_object_keeps_its_profile(platform: Plane, namespace: Namespace, tmp_path: Path) -> None:
    """Through a changed profile, another operator and a deleted profile; an edit uses the current one."""
    defaults = {
        "compute": {"gpuResource": "a.example/gpu"},
        "historyLimit": 3,
        "publish": {"tokenSecretRef": {"name": "platform"}},
    }
    platform.profile("gold", default=True, namespaces=[namespace.name], defaults=defaults)
    for name in ("silent", "says"):
        platform.kubelet.behave(name, Stage.TRAIN, Runs())
    with an_operator(platform.kubeconfig, tmp_path / "first.log", "--no-leader-election") as operator:
        namespace.apply("silent")
        namespace.apply("says", compute={"gpuResource": GPU})
        before = namespace.wait_for("silent", "Training")
        namespace.wait_for("says", "Training")
        assert (gpu_resource_of(namespace, "silent"), gpu_resource_of(namespace, "says")) == ("a.example/gpu", GPU)
        assert before["profile"]["fields"]["compute.gpuResource"] == "a.example/gpu"
        jobs = [job["metadata"]["uid"] for job in namespace.jobs("silent")]
        platform.profile(
            "gold", default=True, namespaces=[namespace.name], defaults={"compute": {"gpuResource": "b.example/gpu"}}
        )
        eventually(lambda: "b.example/gpu" in about_profile(namespace, "silent"), "the object says what would change")
        eventually(lambda: "historyLimit 5 in place of 3" in about_profile(namespace, "says"), "so does the other")
        assert "spec.compute.gpuResource" not in about_profile(namespace, "says")
        assert operator.stop() == 0
    with an_operator(platform.kubeconfig, tmp_path / "second.log", "--no-leader-election") as operator:
        platform.api.delete(f"{PROFILES}/gold")
        eventually(lambda: "no FineTuneProfile" in about_profile(namespace, "silent"), "the object says what is gone")
        after = namespace.status("silent")
        for status in (before, after):
            status["run"].pop("gpuSeconds", None)  # it has run on meanwhile
        assert (after["phase"], after["run"], after["profile"]) == ("Training", before["run"], before["profile"])
        assert [job["metadata"]["uid"] for job in namespace.jobs("silent")] == jobs
        namespace.edit("silent", maxRuntime="7h")
        assert "profile" not in namespace.wait_for("silent", "Training")
        assert gpu_resource_of(namespace, "silent") == GPU
        assert platform.kubelet.starts_of("silent", Stage.PREPARE) == 1
        assert not operator.logged("Traceback"), operator.log.read_text()
