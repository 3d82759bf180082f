"""Builds the Jobs: what their pods may do, what they get mounted, and which failures end them."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from tunemill_api import constants
from tunemill_api.compute import Resources
from tunemill_api.failures import FINAL_EXIT_CODES, ExitCode
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage

from tunemill_operator.engine.bad_nodes import avoiding
from tunemill_operator.engine.objects import ANNOTATION_MEMORY_KILLS, ANNOTATION_POD, FineTune
from tunemill_operator.engine.stages import Ledger, Work
from tunemill_operator.engine.volumes import (
    ANNOTATION_CA_BUNDLE,
    ANNOTATION_PROGRESS_CA,
    SECRETS_OF_WORK,
    WORK_DIRECTORY,
    Manifest,
    Platform,
    Volume,
    config_maps_of,
    model_claim,
    network_env,
    progress_env,
    secrets_of,
    traces_env,
    volumes_of,
)

RUN_SPEC_BYTES = 200 * 1024
"""All annotations of an object together may have 256 KiB; users' and the platform's need room beside the RunSpec."""
GRACE_SECONDS = 60
"""Enough to write and upload a checkpoint after SIGTERM."""


class SpecTooLargeError(Exception):
    """The RunSpec does not fit into an annotation."""


def job_of(
    finetune: FineTune,
    spec: FineTuneSpec,
    work: Work,
    ledger: Ledger,
    run_id: str,
    platform: Platform,
    avoid_nodes: Sequence[str] = (),
) -> Manifest:
    """Return the Job that does the work, on other nodes than those to avoid.

    Raises:
        SpecTooLargeError: when the RunSpec is larger than RUN_SPEC_BYTES.
    """
    labels = {constants.LABEL_FINETUNE: finetune.meta.name, constants.LABEL_STAGE: work.label}
    pod = avoiding(_pod(spec, work, platform, _env(finetune, run_id, platform)), avoid_nodes)
    queue = _queue(spec, work)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": work.job_name(finetune.meta.name),
            "namespace": finetune.meta.namespace,
            "labels": {**labels, "app.kubernetes.io/managed-by": "tunemill", **queue},
            "annotations": {
                constants.ANNOTATION_KEY: work.key,
                constants.ANNOTATION_GENERATION: str(finetune.generation),
                constants.ANNOTATION_REQUESTED_AT: finetune.asked,
                ANNOTATION_POD: pod_digest(spec, work, ledger),
                **({ANNOTATION_MEMORY_KILLS: str(ledger.memory_kills())} if work.label == "train" else {}),
            },
            "ownerReferences": [
                {
                    "apiVersion": constants.API_VERSION,
                    "kind": constants.KIND,
                    "name": finetune.meta.name,
                    "uid": finetune.meta.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "backoffLimit": spec.retry.limit,
            "podReplacementPolicy": "Failed",  # never two pods on one checkpoint
            # Kueue lets it go. Where there is no Kueue, nothing runs without the quota that was asked for.
            **({"suspend": True} if queue else {}),
            "podFailurePolicy": {"rules": _failure_rules(pod)},
            "template": {
                "metadata": {
                    "labels": {**spec.compute.pod_labels, **labels},
                    "annotations": {
                        **spec.compute.pod_annotations,
                        constants.ANNOTATION_RUN_SPEC: _run_spec(finetune, spec, ledger, run_id),
                        **({ANNOTATION_PROGRESS_CA: platform.progress_ca} if platform.progress_ca else {}),
                        **({ANNOTATION_CA_BUNDLE: platform.ca_bundle} if platform.ca_bundle else {}),
                    },
                },
                "spec": pod,
            },
        },
    }


def image_of(spec: FineTuneSpec, platform: Platform) -> str:
    """Return the image of the run's stages."""
    return spec.compute.trainer_image or platform.image


def pod_digest(spec: FineTuneSpec, work: Work, ledger: Ledger) -> str:
    """Return a digest of what the spec, and how often memory was not enough, say about a pod beyond its work.

    The key of the work does not hold it, as it changes no output. A live Job with another digest is replaced, so that a
    corrected Secret name or a larger memory limit takes effect. The operator's own settings are no part of it: an
    upgrade of the operator interrupts no training.
    """
    wish: Manifest = {
        "secrets": {name: _dump(ref) for name, ref in secrets_of(spec).items() if name in SECRETS_OF_WORK[work.label]},
        "checkpoint": _dump(spec.training.checkpoint) if work.label == "train" else None,
        "configMaps": {name: _dump(ref) for name, (ref, _) in config_maps_of(spec).items() if work.label == "prepare"},
        "pod": _placement(spec, work),
        "metadata": [spec.compute.pod_labels, spec.compute.pod_annotations],
        "image": spec.compute.trainer_image,
    }
    if claim := model_claim(spec, work.label):
        wish["modelCache"] = claim
    if work.label == "train" and (kills := ledger.memory_kills()):
        wish["memoryKills"] = kills
    if queue := _queue(spec, work):
        wish["queue"] = queue
    return hashlib.sha256(json.dumps(wish, sort_keys=True).encode()).hexdigest()[:8]


def _queue(spec: FineTuneSpec, work: Work) -> dict[str, str]:
    """Return the labels with which a Job asks Kueue for its quota: only the one that needs GPUs does.

    Prepare is to find mistakes before anybody waits for a GPU, and publish is not to leave a trained model waiting.
    """
    if spec.queue is None or work.label != "train":
        return {}
    priority = {constants.LABEL_PRIORITY: spec.queue.priority_class} if spec.queue.priority_class else {}
    return {constants.LABEL_QUEUE: spec.queue.name, **priority}


def _failure_rules(pod: Manifest) -> list[Manifest]:
    """Return what the exit codes of the stages mean; those of a sidecar mean nothing."""
    stages = [item["name"] for item in [*pod.get("initContainers", []), *pod["containers"]]]
    # A stage ends with INTERRUPTED only after a SIGTERM from outside, having saved a checkpoint. That is no failure of
    # the work: a preemption that the platform does not mark as a disruption costs no retry either.
    final = [int(code) for code in FINAL_EXIT_CODES]
    actions = [("Ignore", [int(ExitCode.INTERRUPTED)]), ("FailJob", final)]
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        *(
            {"action": action, "onExitCodes": {"containerName": stage, "operator": "In", "values": codes}}
            for action, codes in actions
            for stage in stages
        ),
    ]


def _run_spec(finetune: FineTune, spec: FineTuneSpec, ledger: Ledger, run_id: str) -> str:
    run = RunSpec(
        namespace=finetune.meta.namespace,
        name=finetune.meta.name,
        run_id=run_id,
        spec=spec,
        prepared=ledger.facts.prepared,
        keys={stage.value: key for stage, key in ledger.wanted.items() if stage is not Stage.PREPARE},
        memory_kills=ledger.memory_kills(),
        rival=ledger.rival,
    )
    text = run.model_dump_json(by_alias=True, exclude_none=True)
    size = len(text.encode())
    if size > RUN_SPEC_BYTES:
        raise SpecTooLargeError(
            f"the spec has {size} bytes as JSON, at most {RUN_SPEC_BYTES} fit into a pod's annotation: "
            "shorten spec.compute.affinity, podAnnotations or tolerations"
        )
    return text


def _pod(spec: FineTuneSpec, work: Work, platform: Platform, env: dict[str, str]) -> Manifest:
    volumes = volumes_of(spec, work.label, platform)
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # thousands of Services in a namespace would not fit into the environment
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": constants.USER_ID,
            "runAsGroup": constants.USER_ID,
            "fsGroup": constants.USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, work, platform, volumes, env)],
        "volumes": [{"name": name, **volume.source} for name, volume in volumes.items()],
        "imagePullSecrets": [{"name": name} for name in platform.image_pull_secrets],
        "serviceAccountName": spec.compute.service_account_name,
        **{name: value for name, value in _placement(spec, work).items() if name != "resources"},
    }
    return {name: value for name, value in pod.items() if value not in ("", [], {}, None)}


def _placement(spec: FineTuneSpec, work: Work) -> Manifest:
    """Return what the spec says about where the pod runs and what it gets."""
    compute = spec.compute
    if work.label != "train":
        return {"resources": _dump(compute.prepare_resources), "serviceAccountName": compute.service_account_name}
    return {
        "resources": _gpu_resources(compute.resources, compute.gpu_resource, compute.gpus),
        "serviceAccountName": compute.service_account_name,
        "nodeSelector": compute.node_selector,
        "tolerations": [_dump(toleration) for toleration in compute.tolerations],
        "affinity": compute.affinity,
        "priorityClassName": compute.priority_class_name,
        "runtimeClassName": compute.runtime_class_name,
    }


def _gpu_resources(resources: Resources, gpu_resource: str, gpus: int) -> Manifest:
    gpu = {gpu_resource: str(gpus)} if gpus else {}
    return {"requests": {**resources.requests, **gpu}, "limits": {**resources.limits, **gpu}}


def _env(finetune: FineTune, run_id: str, platform: Platform) -> dict[str, str]:
    return {
        "HOME": WORK_DIRECTORY,
        "HF_HOME": f"{WORK_DIRECTORY}/huggingface",
        "TUNEMILL_WORK": WORK_DIRECTORY,
        **network_env(platform),
        **progress_env(finetune, platform),
        **traces_env(finetune, run_id, platform),
    }


def _container(
    spec: FineTuneSpec, work: Work, platform: Platform, volumes: dict[str, Volume], env: dict[str, str]
) -> Manifest:
    stages = [stage.value for stage in work.stages]
    container: Manifest = {
        "name": work.label,
        "image": image_of(spec, platform),
        "imagePullPolicy": platform.image_pull_policy,
        "command": ["tunemill-trainer", *(["stages", *stages] if len(stages) > 1 else stages)],
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "resources": _placement(spec, work)["resources"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": constants.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": name, "mountPath": volume.path, **({"readOnly": True} if volume.read_only else {})}
            for name, volume in volumes.items()
        ],
    }
    return {name: value for name, value in container.items() if value not in ("", {})}


def _dump(part: Any) -> Any:  # noqa: ANN401 - any part of the API, or None
    return None if part is None else part.model_dump(mode="json", by_alias=True, exclude_none=True)
