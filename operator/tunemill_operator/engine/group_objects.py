"""What a Job with several nodes has in addition: an Indexed Job, a headless Service, and a NetworkPolicy.

The Service gives the pods their DNS names. The NetworkPolicy lets them talk to each other, and nobody else to them.
Both have the name of the Job and are deleted with it.
"""

from tunemill_api import constants

from tunemill_operator.engine.objects import ANNOTATION_INDEX, FIRST, LABEL_JOB_NAME
from tunemill_operator.engine.volumes import Manifest


def group_job(nodes: int, retries: int) -> Manifest:
    """Return the fields of the Job's spec. Each index may fail as often as the only pod of another Job.

    The Job is complete when the first pod has succeeded, which has written the outputs then.
    """
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimitPerIndex": retries,
        "maxFailedIndexes": 0,
        "successPolicy": {"rules": [{"succeededIndexes": str(FIRST)}]},
    }


def group_pod(pod: Manifest, job: str, nodes: int) -> Manifest:
    """Return the pod's spec with its DNS name, and the variables with which the pods find each other."""
    rank = {"fieldRef": {"fieldPath": f"metadata.annotations['{ANNOTATION_INDEX}']"}}
    env = [
        {"name": constants.ENV_NODES, "value": str(nodes)},
        {"name": constants.ENV_NODE_RANK, "valueFrom": rank},
        {"name": constants.ENV_COORDINATOR, "value": f"{job}-{FIRST}.{service_name(job)}"},
    ]
    (container,) = pod["containers"]
    return {**pod, "subdomain": service_name(job), "containers": [{**container, "env": [*container["env"], *env]}]}


def service_name(job: str) -> str:
    """Return the name of the Service: the Job's, but names of Services start with a letter."""
    return job if job[0].isalpha() else f"n-{job}"


def companion_names(job: str) -> dict[str, str]:
    """Return the names of the companions of a Job, by kind."""
    return {"Service": service_name(job), "NetworkPolicy": job}


def companions_of(job: Manifest) -> tuple[Manifest, ...]:
    """Return the Service and the NetworkPolicy of a Job, which are created before it. Nothing for one node."""
    if job["spec"].get("completionMode") != "Indexed":
        return ()
    metadata = job["metadata"]
    own = {constants.LABEL_FINETUNE: metadata["labels"][constants.LABEL_FINETUNE], LABEL_JOB_NAME: metadata["name"]}
    pods = {"matchLabels": own}
    common = {name: metadata[name] for name in ("namespace", "ownerReferences")}
    common["labels"] = {
        name: metadata["labels"][name]
        for name in (constants.LABEL_FINETUNE, constants.LABEL_STAGE, "app.kubernetes.io/managed-by")
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**common, "name": service_name(metadata["name"])},
        "spec": {
            "clusterIP": "None",
            # The pods look for each other before they are ready.
            "publishNotReadyAddresses": True,
            "selector": own,
            "ports": [{"name": "coordinator", "port": constants.COORDINATOR_PORT}],
        },
    }
    # NCCL and gloo use ephemeral ports. Egress is left to the policies of the namespace: a rule here would be the only
    # one where there are none.
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {**common, "name": metadata["name"]},
        "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": pods}]}]},
    }
    return service, policy
