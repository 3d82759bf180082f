"""Builds the Jobs: security context, volumes, resources and failure policy of their pods."""

from collections.abc import Iterable, Sequence

from tunemill_api import constants
from tunemill_api.failures import FINAL_EXIT_CODES, ExitCode
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.pod_template import DEFAULT_REQUESTS, PodTemplate, is_extended_resource
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage

from tunemill_operator.engine.bad_nodes import avoiding
from tunemill_operator.engine.group_objects import group_job, group_pod
from tunemill_operator.engine.objects import ANNOTATION_MEMORY_KILLS, ANNOTATION_POD, FineTune
from tunemill_operator.engine.pod_inputs import pod_fields, pod_inputs
from tunemill_operator.engine.stages import Ledger, Work
from tunemill_operator.engine.volumes import (
    ANNOTATION_CA_BUNDLE,
    ANNOTATION_PROGRESS_CA,
    ANNOTATION_SIGSTORE,
    WORK_DIRECTORY,
    Manifest,
    Platform,
    Volume,
    dump,
    network_env,
    progress_env,
    sigstore_config,
    traces_env,
    user_mounts,
    volumes_of,
)
from tunemill_operator.engine.workspaces import workspace_for

RUN_SPEC_BYTES = 200 * 1024
"""Maximum size of the RunSpec. All annotations of an object may have 256 KiB, and others need space, too."""
GRACE_RESERVE = 10
"""Seconds at the end of the termination grace period in which the kubelet can record the stage's report."""


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
    """Return the Job for the work. Its pods avoid `avoid_nodes`.

    Raises:
        SpecTooLargeError: the RunSpec is larger than RUN_SPEC_BYTES.
    """
    labels = {constants.LABEL_FINETUNE: finetune.meta.name, constants.LABEL_STAGE: work.label}
    queue, template, name = _queue(spec, work), spec.pod_templates.of(work.label), work.job_name(finetune.meta.name)
    pod = avoiding(_pod(spec, work, platform, _env(finetune, spec, run_id, platform, template)), avoid_nodes)
    sigstore = sigstore_config(spec, work.label, platform)
    nodes = spec.compute.nodes if work.label == "train" else 1
    if nodes > 1:
        pod = group_pod(pod, name, nodes)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": finetune.meta.namespace,
            "labels": {**labels, "app.kubernetes.io/managed-by": "tunemill", **queue},
            "annotations": {
                constants.ANNOTATION_KEY: work.key,
                constants.ANNOTATION_GENERATION: str(finetune.generation),
                constants.ANNOTATION_REQUESTED_AT: finetune.requested,
                ANNOTATION_POD: pod_digest(spec, work),
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
            **({"backoffLimit": spec.retry.limit} if nodes == 1 else group_job(nodes, spec.retry.limit)),
            "podReplacementPolicy": "Failed",  # never two pods on one checkpoint
            # Kueue resumes it. Without Kueue, it stays suspended instead of running without quota.
            **({"suspend": True} if queue else {}),
            "podFailurePolicy": {"rules": _failure_rules(work.label, nodes)},
            "template": {
                "metadata": {
                    "labels": {**template.labels, **labels},
                    "annotations": {
                        **template.annotations,
                        constants.ANNOTATION_RUN_SPEC: _run_spec(finetune, spec, ledger, run_id, platform.cluster),
                        **({ANNOTATION_PROGRESS_CA: platform.progress_ca} if platform.progress_ca else {}),
                        **({ANNOTATION_CA_BUNDLE: platform.ca_bundle} if platform.ca_bundle else {}),
                        **({} if sigstore is None else {ANNOTATION_SIGSTORE: sigstore}),
                    },
                },
                "spec": pod,
            },
        },
    }


def image_of(spec: FineTuneSpec, platform: Platform) -> str:
    """Return the trainer image of the run."""
    return spec.compute.trainer_image or platform.image


def pod_digest(spec: FineTuneSpec, work: Work) -> str:
    """Return the digest of the pod settings in the spec, for example 1-0123abcd.

    The key of the work does not contain them, because they change no output. An active Job with another digest is
    replaced, so that a corrected Secret name or a higher memory limit takes effect. Settings of the operator are not
    included, so that an upgrade of the operator does not interrupt training.
    """
    return pod_inputs(spec, work, _queue(spec, work)).digest


def _queue(spec: FineTuneSpec, work: Work) -> dict[str, str]:
    """Return Kueue's labels for the Job. Only the train Job is queued.

    prepare finds errors before a run waits for a GPU, and publish must not wait with a trained model.
    """
    if spec.queue is None or work.label != "train":
        return {}
    priority = {constants.LABEL_PRIORITY: spec.queue.priority_class} if spec.queue.priority_class else {}
    return {constants.LABEL_QUEUE: spec.queue.name, **priority}


def _failure_rules(container: str, nodes: int) -> list[Manifest]:
    """Return the rules of the podFailurePolicy. Exit codes apply to the stage's container only, not to sidecars."""
    interruptions = [ExitCode.INTERRUPTED, *([ExitCode.PEER_LOST] if nodes > 1 else [])]
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        # A stage exits with this code only after SIGTERM and a saved checkpoint. It does not count as failed, so that
        # preemptions that the platform does not mark as a disruption are not counted as retries. A pod that has lost
        # another pod of its group ends because of that one.
        {"action": "Ignore", "onExitCodes": _exit_codes(container, interruptions)},
        {"action": "FailJob", "onExitCodes": _exit_codes(container, FINAL_EXIT_CODES)},
    ]


def _exit_codes(container: str, codes: Iterable[int]) -> Manifest:
    return {"containerName": container, "operator": "In", "values": [int(code) for code in codes]}


def _run_spec(finetune: FineTune, spec: FineTuneSpec, ledger: Ledger, run_id: str, cluster: str) -> str:
    run = RunSpec(
        namespace=finetune.meta.namespace,
        name=finetune.meta.name,
        uid=finetune.meta.uid,
        cluster=cluster,
        run_id=run_id,
        spec=spec.model_copy(update={"workspace": workspace_for(finetune, spec)}),
        prepared=ledger.facts.prepared,
        keys={stage.value: key for stage, key in ledger.wanted.items() if stage is not Stage.PREPARE},
        memory_kills=ledger.memory_kills(),
        rival=ledger.rival,
    )
    # Stages do not need the pod templates, which may contain variables for other stages.
    text = run.model_dump_json(by_alias=True, exclude_none=True, exclude={"spec": {"pod_templates"}})
    size = len(text.encode())
    if size > RUN_SPEC_BYTES:
        raise SpecTooLargeError(
            f"the spec has {size} bytes as JSON, but at most {RUN_SPEC_BYTES} fit into a pod's annotation: "
            "shorten spec.dataset or spec.evaluation.gates"
        )
    return text


def _pod(spec: FineTuneSpec, work: Work, platform: Platform, env: dict[str, str]) -> Manifest:
    template, volumes = spec.pod_templates.of(work.label), volumes_of(spec, work.label, platform)
    user = platform.run_as_user
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": template.termination_grace_period_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # variables for thousands of Services would not fit into the environment
        "securityContext": {
            "runAsNonRoot": True,
            **({} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, work, platform, volumes, env)],
        "volumes": [{"name": name, **volume.source} for name, volume in volumes.items()],
        "imagePullSecrets": [{"name": name} for name in platform.image_pull_secrets],
        **pod_fields(template),
    }
    return {name: value for name, value in pod.items() if value not in ("", [], {}, None)}


def _resources(spec: FineTuneSpec, work: Work) -> Manifest:
    """Return the container's resources: those of the template, default requests, and the GPUs of the train pod."""
    template, compute = spec.pod_templates.of(work.label), spec.compute
    given = template.resources
    # If only a limit is set, Kubernetes uses it as the request.
    defaults = {
        name: quantity
        for name, quantity in DEFAULT_REQUESTS[work.label].items()
        if name not in given.requests and name not in given.limits
    }
    gpus = {compute.gpu_resource: str(compute.gpus)} if work.label == "train" and compute.gpus else {}
    claims = [{"name": claim.name} for claim in template.resource_claims]
    return {
        "requests": {**defaults, **given.requests, **gpus},
        **({"limits": {**given.limits, **gpus}} if given.limits or gpus else {}),
        **({"claims": claims} if claims else {}),
    }


def _without_gpus(resources: Manifest) -> dict[str, str]:
    """Return the variable that prevents NVIDIA's container runtime from adding GPUs that were not requested.

    An image can request all GPUs of its node with NVIDIA_VISIBLE_DEVICES=all. If a container requests a device, the
    device plugin sets the variable, and ours would override it.
    """
    requested = {*resources["requests"], *resources.get("limits", {})}
    if any(map(is_extended_resource, requested)):
        return {}
    return {"NVIDIA_VISIBLE_DEVICES": "void"}


def _env(
    finetune: FineTune, spec: FineTuneSpec, run_id: str, platform: Platform, template: PodTemplate
) -> dict[str, str]:
    grace = template.termination_grace_period_seconds
    return {
        "HOME": WORK_DIRECTORY,
        "USER": "tunemill",  # a user ID chosen by the cluster has no name in the image
        "HF_HOME": f"{WORK_DIRECTORY}/huggingface",
        "TUNEMILL_WORK": WORK_DIRECTORY,
        constants.ENV_GRACE_SECONDS: str(max(grace - GRACE_RESERVE, grace // 2)),
        constants.ENV_IMAGE: image_of(spec, platform),
        **({constants.ENV_BUILDER_ID: platform.builder_id} if platform.builder_id else {}),
        **network_env(platform),
        **progress_env(finetune, platform),
        **traces_env(finetune, run_id, platform),
    }


def _container(
    spec: FineTuneSpec, work: Work, platform: Platform, volumes: dict[str, Volume], env: dict[str, str]
) -> Manifest:
    """Return the pod's container, named after the work. train and evaluate are two processes in one container."""
    template, resources = spec.pod_templates.of(work.label), _resources(spec, work)
    env = {**env, **_without_gpus(resources)}
    stages = [stage.value for stage in work.stages]
    container: Manifest = {
        "name": work.label,
        "image": image_of(spec, platform),
        "imagePullPolicy": platform.image_pull_policy,
        "command": ["tunemill-trainer", *(["stages", *stages] if len(stages) > 1 else stages)],
        # The operator's variables come last: for duplicate names, the last one wins.
        "env": [dump(variable) for variable in template.env if variable.name not in env]
        + [{"name": name, "value": value} for name, value in env.items()],
        "resources": resources,
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
            if volume.path
        ]
        + user_mounts(template),
    }
    return {name: value for name, value in container.items() if value not in ("", {})}
