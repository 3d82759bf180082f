"""The command lines of the Kubernetes components. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunemill_dev.cluster.pki import Authority
from tunemill_dev.cluster.plan import Component

CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class ControlPlane:
    """The addresses and folders of a control plane, from which its components are built."""

    programs: Path
    pki: Authority
    config: Path
    """Holds the kubeconfigs of the components, as NAME.kubeconfig."""
    address: str
    """The IP address at which clients reach the API server."""
    port: int
    etcd_folder: Path
    etcd_port: int
    etcd_peer_port: int
    services: str
    """CIDR of the Services."""
    durable: bool = True
    """Whether API objects survive a power failure, at the cost of slower writes."""

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{self.port}"

    def etcd(self) -> Component:
        """Return etcd, which stores the API objects and listens on loopback only."""
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self.etcd_peer_port}"
        flags = {
            "name": "default",
            "data-dir": self.etcd_folder,
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "auto-compaction-retention": "10m",
            "log-level": "warn",
        }
        extra = () if self.durable else ("--unsafe-no-fsync",)
        return Component("etcd", (*_argv(self.programs / "etcd", flags), *extra))

    def api_server(self, **more: str) -> Component:
        """The API server; `more` are further flags, with underscores for dashes."""
        flags = {
            "advertise-address": self.address,
            "bind-address": self.address,
            "secure-port": self.port,
            "etcd-servers": f"http://127.0.0.1:{self.etcd_port}",
            "service-cluster-ip-range": self.services,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "allow-privileged": "true",
            "client-ca-file": self.pki.certificate("ca"),
            "tls-cert-file": self.pki.certificate("apiserver"),
            "tls-private-key-file": self.pki.key("apiserver"),
            "service-account-issuer": f"https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            "service-account-key-file": self.pki.certificate("service-account"),
            "service-account-signing-key-file": self.pki.key("service-account"),
            "profiling": "false",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        needs = (f"tcp:127.0.0.1:{self.etcd_port}",)
        return Component("kube-apiserver", _argv(self.programs / "kube-apiserver", flags), needs)

    def controller_manager(self, **more: str) -> Component:
        """The built-in controllers: Jobs, garbage collection, service accounts and so on."""
        flags = {
            **self._client("kube-controller-manager"),
            "leader-elect": "false",
            # The default of 20 requests a second alone makes the controllers take 4 s to start.
            "kube-api-qps": 500,
            "kube-api-burst": 500,
            "use-service-account-credentials": "true",
            "root-ca-file": self.pki.certificate("ca"),
            "service-account-private-key-file": self.pki.key("service-account"),
            "cluster-signing-cert-file": self.pki.certificate("ca"),
            "cluster-signing-key-file": self.pki.key("ca"),
            "profiling": "false",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        return self._component("kube-controller-manager", flags)

    def scheduler(self) -> Component:
        """The scheduler."""
        flags = {**self._client("kube-scheduler"), "leader-elect": "false", "profiling": "false"}
        return self._component("kube-scheduler", flags)

    def kubelet(self, node: str, config: Path) -> Component:
        """The node agent."""
        flags = {"kubeconfig": self.config / "kubelet.kubeconfig", "config": config, "hostname-override": node}
        component = self._component("kubelet", {**flags, "node-ip": self.address})
        return Component(component.name, component.argv, (*component.needs, "unix:/run/containerd/containerd.sock"))

    def proxy(self, config: Path) -> Component:
        """Return kube-proxy, which implements Services on the node."""
        return self._component("kube-proxy", {"config": config})

    def _client(self, name: str) -> dict[str, object]:
        path = self.config / f"{name}.kubeconfig"
        return {
            "kubeconfig": path,
            "authentication-kubeconfig": path,
            "authorization-kubeconfig": path,
            "bind-address": "127.0.0.1",
        }

    def _component(self, name: str, flags: dict[str, object]) -> Component:
        return Component(name, _argv(self.programs / name, flags), (f"{self.server}/readyz",))


CLIENTS = {
    "admin": "system:masters",
    "kube-controller-manager": "",
    "kube-scheduler": "",
    "kube-proxy": "",
}
"""The API server's clients other than the kubelet, and their groups. The built-in RBAC rules go by these names."""


def sign_control_plane(pki: Authority, hosts: tuple[str, ...]) -> None:
    """Make the certificates of the API server, which is reached at `hosts`, and of its clients."""
    pki.sign("apiserver", user="kube-apiserver", hosts=("kubernetes.default.svc", "kubernetes.default", *hosts))
    pki.sign("service-account", user="service-account")
    for name, group in CLIENTS.items():
        pki.sign(name, user=name if group else f"system:{name}", group=group)


def _argv(program: Path, flags: dict[str, object]) -> tuple[str, ...]:
    return (str(program), *(f"--{name}={value}" for name, value in flags.items()))
