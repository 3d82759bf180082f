"""How a cluster comes up and goes down."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tunemill_dev.cluster import addons, binaries, cgroups, link, node, prerequisites, tree
from tunemill_dev.cluster.addresses import Addresses
from tunemill_dev.cluster.base_image import base_archive
from tunemill_dev.cluster.cluster import DEFAULT_NAME, Cluster, open_cluster
from tunemill_dev.cluster.components import CLIENTS, ControlPlane, sign_control_plane
from tunemill_dev.cluster.console import ClusterError, say, step
from tunemill_dev.cluster.home import SOURCES, ClusterFolder, locked
from tunemill_dev.cluster.pki import Authority
from tunemill_dev.cluster.plan import Plan
from tunemill_dev.cluster.probes import is_there
from tunemill_dev.cluster.processes import replace_file, run, succeeds, wait_until

_API_SECONDS = 60
_NODE_SECONDS = 60
_ADDON_SECONDS = 120
_ADDON_URLS = {"kube-dns": "tcp:{}:53", "s3": "http://{}:7070/healthz", "hub": "http://{}:8080/healthz"}
_BUILD_CACHE_GIB = 16
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def up(name: str = DEFAULT_NAME) -> Cluster:
    """Start the cluster with this name, or make sure that it runs; ClusterError with the reason when it does not."""
    folder = ClusterFolder.of(name)
    with locked(folder.lock):
        prerequisites.check()
        programs = ensure_programs()
        if not tree.first_process(folder):
            tree.stop(folder)
            with step("prepare certificates, configuration, network"):
                addresses = tree.choose_addresses(folder)
                _prepare(folder, addresses, programs)
                tree.start(folder, addresses)
            binaries.prune(in_use=[other.plan for other in ClusterFolder.all()])
        cluster = open_cluster(folder, programs)
        _wait_for_node(cluster, folder)
        _apply_addons(cluster, folder, programs)
    say(f"  kubeconfig: {cluster.kubeconfig}")
    return cluster


def ensure_programs() -> dict[str, Path]:
    """Build the cluster's programs and the base image's file system, where they are missing, side by side.

    The programs need the processor, the file system the network. Returns the folder of each group of programs.
    """
    with ThreadPoolExecutor(1) as pool:
        base = pool.submit(base_archive)
        programs = binaries.ensure(binaries.ALL)
        base.result()
    return programs


def down(name: str = DEFAULT_NAME, *, purge: bool = False) -> None:
    """Stop the cluster and delete its objects. Images stay for the next start, unless `purge` is set."""
    prerequisites.check_platform()
    folder = ClusterFolder.of(name)
    with locked(folder.lock), step(f"stop {name} and remove what it left"):
        tree.stop(folder)
        tree.forget(folder, purge=purge)


def _prepare(folder: ClusterFolder, addresses: Addresses, programs: Mapping[str, Path]) -> None:
    """Write everything that the components read."""
    for path in (folder.kubelet, folder.logs / "pods", folder.images, folder.config / "cni"):
        path.mkdir(parents=True, exist_ok=True)
    pki = Authority.ensure(folder.pki)
    plane = ControlPlane(
        programs=programs["kubernetes"],
        pki=pki,
        config=folder.config,
        address=addresses.node,
        port=6443,
        etcd_folder=folder.etcd,
        etcd_port=2379,
        etcd_peer_port=2380,
        services=str(addresses.services),
    )
    sign_control_plane(pki, (addresses.node, addresses.api))
    pki.sign("kubelet", user=f"system:node:{folder.name}", group="system:nodes", hosts=(folder.name, addresses.node))
    for name in (*CLIENTS, "kubelet"):
        replace_file(folder.config / f"{name}.kubeconfig", pki.kubeconfig(name, plane.server))
    (folder.config / "admin.kubeconfig").replace(folder.kubeconfig)
    cgroup, resolver = cgroups.root_of(folder.name), folder.config / "resolv.conf"
    for file, text in {
        "containerd.toml": node.containerd_config(folder, programs),
        "cni/tunemill.conflist": node.cni_config(addresses),
        "buildkitd.toml": node.buildkit_config(folder, cgroup, _BUILD_CACHE_GIB),
        "kubelet.yaml": node.kubelet_config(pki, addresses, cgroup, resolver),
        "kube-proxy.yaml": node.proxy_config(folder.name, addresses, folder.config / "kube-proxy.kubeconfig"),
        "resolv.conf": node.resolver_config(_host_resolver().read_text()),
        f"registries/{addresses.registry}/hosts.toml": node.registry_config(addresses.registry),
    }.items():
        replace_file(folder.config / file, text, mode=0o644)
    search_path = f"{programs['containerd']}:{programs['runc']}:{_SYSTEM_PATH}"
    components = (
        plane.etcd(),
        node.containerd(folder, programs, search_path),
        node.buildkit(folder, programs, search_path),
        plane.api_server(
            kubelet_preferred_address_types="InternalIP",
            kubelet_certificate_authority=str(pki.certificate("ca")),
            kubelet_client_certificate=str(pki.certificate("admin")),
            kubelet_client_key=str(pki.key("admin")),
        ),
        plane.controller_manager(),
        plane.scheduler(),
        plane.kubelet(folder.name, folder.config / "kubelet.yaml"),
        plane.proxy(folder.config / "kube-proxy.yaml"),
    )
    setup = (
        *node.namespace_commands(folder),
        *node.resolver_commands(resolver),
        *link.inside_commands(addresses),
        *node.bridge_commands(addresses),
    )
    Plan(components, logs=str(folder.logs), status=str(folder.status), setup=setup).write(folder.plan)


def _host_resolver() -> Path:
    """The host's list of nameservers; systemd-resolved keeps the real ones apart from its own on loopback."""
    real = Path("/run/systemd/resolve/resolv.conf")
    return real if real.exists() else Path("/etc/resolv.conf")


def _wait_for_node(cluster: Cluster, folder: ClusterFolder) -> None:
    kubectl: list[str | Path] = [cluster.kubectl, "--kubeconfig", cluster.kubeconfig]
    with step("API server ready"):
        if not wait_until(lambda: succeeds([*kubectl, "get", "--raw=/readyz"]), seconds=_API_SECONDS):
            raise _component_failure(folder, f"The API server was not ready within {_API_SECONDS} s.", "kube-apiserver")
    with step("image builder ready"):
        if not wait_until(lambda: succeeds(cluster.image_store.probe()), seconds=_NODE_SECONDS):
            raise _component_failure(folder, f"BuildKit was not ready within {_NODE_SECONDS} s.", "buildkitd")
        cluster.image_store.pause()
    with step("node ready"):
        ready = [*kubectl, "wait", "--for=condition=Ready", f"node/{folder.name}", "--timeout=5s"]
        if not wait_until(lambda: succeeds(ready), seconds=_NODE_SECONDS):
            raise _component_failure(folder, f"The node was not Ready within {_NODE_SECONDS} s.", "kubelet")


def _component_failure(folder: ClusterFolder, message: str, blamed: str) -> ClusterError:
    """The message with the log of whatever keeps dying, or else of the part that the message is about."""
    states = json.loads(folder.status.read_text()) if folder.status.exists() else {}
    stopped = [name for name, state in states.items() if state["last_exit"] is not None]
    if not tree.first_process(folder):
        stopped = ["supervisor"]
    name = stopped[0] if stopped else blamed
    return ClusterError.with_log(message, folder.logs / f"{name}.log")


def _apply_addons(cluster: Cluster, folder: ClusterFolder, programs: Mapping[str, Path]) -> None:
    addresses = Addresses.read(folder.network)
    assert addresses
    store = cluster.image_store
    with step("images of DNS, S3 and Hub"):
        coredns = store.program(programs["coredns"] / "coredns")
        s3 = store.program(programs["versitygw"] / "versitygw")
        root = SOURCES.parents[1]
        hub = cluster.build_image("tunemill-hub", root, root / "dev" / "hub" / "Dockerfile")
    credentials = addons.Credentials.ensure(folder.credentials)
    services = addons.services(credentials, s3_image=s3, hub_image=hub)
    with step("DNS, S3 and Hub ready"):
        manifests = f"{addons.dns(coredns, addresses.dns)}\n---\n{services}"
        applied, key = folder.config / "addons.sha256", hashlib.sha256(manifests.encode()).hexdigest()
        probes = _addon_probes(cluster)
        alive = len(probes) == len(_ADDON_URLS) and all(is_there(url) for url in probes)
        if alive and applied.exists() and applied.read_text() == key:
            return
        cluster.run_kubectl("apply", "-f", "-", stdin=manifests)
        _wait_for_rollout(cluster, "kube-system", "coredns")
        _wait_for_rollout(cluster, addons.NAMESPACE, "s3", "hub")
        # After a crash, the Deployments' status is older than the crash.
        for address in _addon_probes(cluster):
            if not wait_until(functools.partial(is_there, address), seconds=_ADDON_SECONDS):
                raise ClusterError.with_log(
                    f"{address} did not answer within {_ADDON_SECONDS} s.", folder.logs / "kubelet.log"
                )
        replace_file(applied, key)


def _addon_probes(cluster: Cluster) -> tuple[str, ...]:
    jsonpath = "-o=jsonpath={range .items[*]}{.metadata.name}={.spec.clusterIP} {end}"
    listed = cluster.run_kubectl("get", "services", "--all-namespaces", jsonpath)
    addresses = dict(pair.split("=") for pair in listed.split())
    return tuple(url.format(addresses[name]) for name, url in _ADDON_URLS.items() if name in addresses)


def _wait_for_rollout(cluster: Cluster, namespace: str, *names: str) -> None:
    kubectl: list[str | Path] = [cluster.kubectl, "--kubeconfig", cluster.kubeconfig, "-n", namespace]
    deployments = [f"deployment/{name}" for name in names]
    if not succeeds([*kubectl, "rollout", "status", *deployments, f"--timeout={_ADDON_SECONDS}s"]):
        events = run([*kubectl, "get", "events", "--sort-by=.lastTimestamp"])
        last = "\n".join(events.splitlines()[-8:])
        raise ClusterError(
            f"{' and '.join(names)} were not ready within {_ADDON_SECONDS} s. The last events of {namespace}:\n{last}"
        )
