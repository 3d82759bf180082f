"""The pod with which `helm test` checks a GPU of the cluster."""

import argparse

from chart.rendering import render
from tunemill_trainer.gpu_check import command


def test_the_gpu_check_is_disabled_by_default() -> None:
    """A cluster without GPUs has nothing to test."""
    assert not render().all("Pod")


def test_the_gpu_check_runs_the_trainer_image_on_one_gpu() -> None:
    """The image is that of the stages, and the trainer accepts the arguments."""
    pod = render(gpuCheck={"enabled": True, "minutes": 3}, trainer={"image": "registry.example.com/trainer:1"}).one(
        "Pod"
    )
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "registry.example.com/trainer:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    name, *flags = container["args"]
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    options = parser.parse_args(flags)
    assert (name, options.minutes, options.device, options.full) == ("gpu-check", 3, "cuda", False)


def test_the_gpu_check_has_no_more_permissions_than_a_stage() -> None:
    """Pod Security Standards: restricted, and no token for the API server."""
    spec = render(gpuCheck={"enabled": True}).one("Pod")["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_no_service_of_the_operator_selects_the_gpu_check() -> None:
    """Its labels do not match the chart's selectors."""
    rendered = render(gpuCheck={"enabled": True}, metrics={"enabled": True})
    labels = rendered.one("Pod")["metadata"]["labels"].items()
    selectors = [service["spec"]["selector"] for service in rendered.all("Service")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in rendered.all("PodDisruptionBudget")]
    assert selectors
    assert not any(selector.items() <= labels for selector in selectors)
