"""The configuration of the node's programs: containerd, CNI, BuildKit, kubelet, kube-proxy; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tunemill_dev.cluster.addresses import Addresses
from tunemill_dev.cluster.components import CLUSTER_DOMAIN
from tunemill_dev.cluster.home import ClusterFolder
from tunemill_dev.cluster.pki import Authority
from tunemill_dev.cluster.plan import Component

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
BUILDKIT_SOCKET = "/run/buildkit/buildkitd.sock"
"""As seen inside the cluster's namespaces, where /run is the cluster's own."""
IMAGE_NAMESPACE = "k8s.io"
PAUSE_IMAGE = "localhost/tunemill-pause:1"
"""The sandbox image; its name is fixed, because containerd's configuration holds it."""
_BRIDGE = "cni0"


def containerd_config(folder: ClusterFolder, programs: Mapping[str, Path]) -> str:
    """The configuration of containerd, version 3."""
    return f"""version = 3
root = "{folder.images / "containerd"}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{folder.config / "registries"}"

[plugins."io.containerd.cri.v1.runtime"]
  # In a container, root often lacks CAP_SYS_RESOURCE, and sandboxes fail when their OOM score cannot be lowered.
  restrict_oom_score_adj = true

  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{programs["containerd"]}"]
    conf_dir = "{folder.config / "cni"}"

  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"

    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{programs["runc"] / "runc"}"
      SystemdCgroup = false
"""


def registry_config(registry: str) -> str:
    """The hosts.toml with which containerd uses plain HTTP for a registry."""
    return f'server = "http://{registry}"\n'


def cni_config(addresses: Addresses) -> str:
    """The pod network: a bridge, addresses from the cluster's pod range."""
    ranges = [[{"subnet": str(addresses.pods), "gateway": str(addresses.pods[1])}]]
    bridge = {
        "type": "bridge",
        "bridge": _BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        # The host masquerades what leaves the cluster; inside, pods are seen under their own address.
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            # Below /run, so that addresses of pods that died with the cluster are free again.
            "dataDir": "/run/cni",
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0", "gw": str(addresses.pods[1])}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "tunemill", "plugins": [bridge, ports]}, indent=1)


def bridge_commands(addresses: Addresses) -> tuple[tuple[str, ...], ...]:
    """Make the pods' bridge beforehand: a first sandbox that fails would leave a half-made one."""
    address = f"{addresses.pods[1]}/{addresses.pods.prefixlen}"
    return (
        ("ip", "link", "add", _BRIDGE, "address", "02:00:00:00:00:01", "type", "bridge"),
        ("ip", "address", "add", address, "dev", _BRIDGE),
        ("ip", "link", "set", _BRIDGE, "up"),
    )


def buildkit_config(folder: ClusterFolder, cgroup: str, cache_gib: int) -> str:
    """BuildKit's configuration: it builds with the cluster's containerd, so that images are at once the kubelet's."""
    return f"""root = "{folder.images / "buildkit"}"

[grpc]
  address = ["unix://{BUILDKIT_SOCKET}"]

[worker.oci]
  enabled = false

[worker.containerd]
  address = "{CONTAINERD_SOCKET}"
  namespace = "{IMAGE_NAMESPACE}"
  networkMode = "host"
  defaultCgroupParent = "{cgroup}/buildkit"
  gc = true

  # Package caches are worth little once the layer made from them is cached.
  [[worker.containerd.gcpolicy]]
    filters = ["type==exec.cachemount", "type==source.local"]
    maxUsedSpace = "1GB"

  # A layer counts twice here, as files and as a blob.
  [[worker.containerd.gcpolicy]]
    all = true
    maxUsedSpace = "{cache_gib}GB"
"""


def kubelet_config(pki: Authority, addresses: Addresses, cgroup: str, resolver: Path) -> str:
    """The kubelet's configuration."""
    # No image can be pulled again, so a full disk must neither evict pods nor delete images.
    hardly_ever = "1%"
    import yaml

    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": addresses.node,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(pki.certificate("ca"))},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [addresses.dns],
            "clusterDomain": CLUSTER_DOMAIN,
            "resolvConf": str(resolver),
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "evictionHard": {
                "memory.available": hardly_ever,
                "nodefs.available": hardly_ever,
                "nodefs.inodesFree": hardly_ever,
                "imagefs.available": hardly_ever,
                "imagefs.inodesFree": hardly_ever,
            },
            "imageGCHighThresholdPercent": 100,
            # How soon a mounted Secret follows a change: one node can afford more often than each minute.
            "syncFrequency": "10s",
            "tlsCertFile": str(pki.certificate("kubelet")),
            "tlsPrivateKeyFile": str(pki.key("kubelet")),
        }
    )


def proxy_config(node: str, addresses: Addresses, kubeconfig: Path) -> str:
    """kube-proxy's configuration."""
    import yaml

    return yaml.safe_dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "hostnameOverride": node,
            "clusterCIDR": str(addresses.pods),
            "mode": "iptables",
            # The limits are the whole machine's, which a cluster in a namespace may not set.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
    )


def resolver_config(host: str) -> str:
    """The resolv.conf of CoreDNS and of image builds: the host's, without nameservers on the host's loopback."""
    lines = [line for line in host.splitlines() if not line.startswith(("nameserver 127.", "nameserver ::1"))]
    return "\n".join(lines) + "\n"


def containerd(folder: ClusterFolder, programs: Mapping[str, Path], path: str) -> Component:
    """The container runtime; `path` is where it finds its shim and the packet filter."""
    argv = (str(programs["containerd"] / "containerd"), "--config", str(folder.config / "containerd.toml"))
    return Component("containerd", argv, environment={"PATH": path})


def buildkit(folder: ClusterFolder, programs: Mapping[str, Path], path: str) -> Component:
    """The image builder."""
    argv = (str(programs["buildkit"] / "buildkitd"), "--config", str(folder.config / "buildkitd.toml"))
    return Component("buildkitd", argv, (f"unix:{CONTAINERD_SOCKET}",), {"PATH": path})


def namespace_commands(folder: ClusterFolder) -> tuple[tuple[str, ...], ...]:
    """Mounts and names that make the namespaces the cluster's own."""
    pod_logs = folder.logs / "pods"
    return (
        ("mount", "-t", "proc", "proc", "/proc"),
        # A fresh /run is what programs find after a boot: no sockets, shims or addresses of an earlier start.
        ("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"),
        ("mount", "-t", "tmpfs", "tmpfs", "/var/lib/cni"),
        ("mount", "--bind", str(folder.kubelet), "/var/lib/kubelet"),
        ("mount", "--bind", str(pod_logs), "/var/log"),
        ("hostname", folder.name),
    )


def resolver_commands(resolver: Path) -> tuple[tuple[str, ...], ...]:
    """Make image builds, which read /etc/resolv.conf, see the cluster's own; it may be a link to the hidden /run."""
    place = Path("/etc/resolv.conf").resolve()
    hidden = (("mkdir", "-p", str(place.parent)), ("touch", str(place))) if place.is_relative_to("/run") else ()
    return (*hidden, ("mount", "--bind", str(resolver), str(place)))
