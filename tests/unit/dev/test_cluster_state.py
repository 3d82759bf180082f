"""State of the local cluster: programs by content, kernel settings, package sources, credentials, manifests."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tunemill_dev.cluster import addons, binaries, kernel_settings
from tunemill_dev.cluster.base_image import matching_sources
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.home import SOURCES, ClusterFolder


def _module(folder: Path, requirement: str = "v1.0.0", checksum: str = "h1:abc") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "go.mod").write_text(f"module m\nrequire example.org/m {requirement}\n")
    (folder / "go.sum").write_text(f"example.org/m {requirement} {checksum}\n")
    return folder


def test_programs_are_rebuilt_when_any_input_changes(tmp_path: Path) -> None:
    """The key depends only on go.mod, go.sum, flags and the program's own source."""
    group, own = binaries.Group("m", ("example.org/m",)), binaries.Group("m", ("./own",))
    key = binaries.content_key(group, _module(tmp_path / "a"))
    own_key = binaries.content_key(own, tmp_path / "a")
    (_module(tmp_path / "b") / "own").mkdir()
    (tmp_path / "b/own/main.go").write_text("package main\n")
    assert binaries.content_key(group, tmp_path / "b") == key
    others = [
        own_key,
        binaries.content_key(own, tmp_path / "b"),
        binaries.content_key(group, _module(tmp_path / "c", requirement="v1.0.1")),
        binaries.content_key(group, _module(tmp_path / "d", checksum="h1:xyz")),
        binaries.content_key(replace(group, tags="seccomp"), tmp_path / "a"),
        binaries.content_key(replace(group, cgo=True), tmp_path / "a"),
        binaries.content_key(replace(group, linker_flags="-s"), tmp_path / "a"),
    ]
    assert len({key, *others}) == 8


def test_every_program_is_a_tool_of_its_module() -> None:
    """`go mod tidy` removes modules without a tool, and an unused tool would still be downloaded."""
    groups = (*binaries.TESTED, binaries.KWOK, binaries.KUBEFLOW)
    for module in {group.source for group in groups}:
        listed = re.findall(r"^(?:tool |\t)(\S+/\S+)$", (module / "go.mod").read_text(), re.MULTILINE)
        built = [package for group in groups if group.source == module for package in group.packages]
        assert sorted(listed) == sorted(package for package in built if not package.startswith("./")), module


def test_the_dns_server_has_the_plugins_that_its_configuration_names() -> None:
    """CoreDNS fails at startup without one, and others only cost build time."""
    corefile = next(
        document["data"]["Corefile"]
        for document in yaml.safe_load_all((SOURCES / "manifests/dns.yaml").read_text())
        if document["kind"] == "ConfigMap"
    )
    source = (binaries.COREDNS.source / "coredns/main.go").read_text()
    assert sorted(re.findall(r"coredns/plugin/(\w+)", source)) == sorted(
        re.findall(r"^ {4}(\w+)", corefile, re.MULTILINE)
    )


@pytest.mark.parametrize(
    ("free_gib", "kept"), [(60, True), (20, False)], ids=["with room for the tests' programs", "on a small disk"]
)
def test_the_compile_cache_is_kept_for_the_programs_of_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: int, kept: bool
) -> None:
    """They share most packages with the cluster's programs. Then it is removed."""
    monkeypatch.setenv("TUNEMILL_HOME", str(tmp_path))
    monkeypatch.setattr(binaries.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_gib << 30))
    monkeypatch.setattr(binaries, "_build", lambda _, target: target.mkdir(parents=True))
    binaries.compiled().mkdir()
    binaries.ensure(binaries.ALL[:-1])
    assert binaries.compiled().exists()
    binaries.ensure(binaries.ALL)
    assert binaries.compiled().exists() is kept
    binaries.ensure(binaries.TESTED)
    assert not binaries.compiled().exists()


def test_old_programs_are_removed_unless_a_cluster_uses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running cluster restarts its components from them."""
    monkeypatch.setenv("TUNEMILL_HOME", str(tmp_path))
    current, used, old = binaries.folder(binaries.HELM), tmp_path / "bin/helm-aaa", tmp_path / "bin/helm-bbb"
    for folder in (current, used, old):
        folder.mkdir(parents=True)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"argv": [f"{used}/helm"]}))
    binaries.prune(in_use=[plan, tmp_path / "missing.json"])
    assert (current.exists(), used.exists(), old.exists()) == (True, True, False)


def _kernel(folder: Path, boot: str = "boot-1") -> Path:
    for name, value in {
        "net/ipv4/ip_forward": "0",
        "vm/overcommit_memory": "0",
        "kernel/random/boot_id": boot,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    return folder


def test_kernel_settings_are_restored_after_the_last_cluster(tmp_path: Path) -> None:
    """A second cluster must not record the first one's changes as the original values."""
    memory, sysctl = tmp_path / "memory", _kernel(tmp_path / "sys")
    kernel_settings.remember(memory=memory, sysctl=sysctl)
    (sysctl / "net/ipv4/ip_forward").write_text("1")
    kernel_settings.remember(memory=memory, sysctl=sysctl)
    kernel_settings.restore(memory=memory, sysctl=sysctl)
    assert (sysctl / "net/ipv4/ip_forward").read_text().strip() == "0"
    assert not memory.exists()


def test_kernel_settings_of_an_earlier_boot_are_not_restored(tmp_path: Path) -> None:
    """The reboot has reset them, and the administrator may have changed them."""
    memory, sysctl = tmp_path / "memory", _kernel(tmp_path / "sys")
    kernel_settings.remember(memory=memory, sysctl=sysctl)
    _kernel(sysctl, boot="boot-2")
    (sysctl / "vm/overcommit_memory").write_text("2")
    kernel_settings.restore(memory=memory, sysctl=sysctl)
    assert (sysctl / "vm/overcommit_memory").read_text() == "2"


def test_the_base_image_uses_only_package_sources_of_the_hosts_release(tmp_path: Path) -> None:
    """Both formats are read; sources of vendors, or of releases with a similar name, are skipped."""
    files = {
        "a.sources": "# comment\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n",
        "b.list": "# bookworm\ndeb [signed-by=/k.gpg arch=amd64] http://mirror.example/s bookworm-security main\n",
        "c.list": "deb https://vendor.example/apt cloud-sdk-bookworm main\n",
        "d.sources": "Types: deb\nSuites: nodistro\n",
        "e.list": "deb http://mirror.example/debian trixie main\n",
        "f.list": "\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert [path.name for path in matching_sources("bookworm", sorted(tmp_path.iterdir()))] == ["a.sources", "b.list"]


@pytest.mark.parametrize("name", ["", "Upper", "a_b", "-a", "a-", "../escape", "x" * 21])
def test_an_invalid_node_name_is_rejected(name: str) -> None:
    """The message names the option to change."""
    with pytest.raises(ClusterError, match="Change --name"):
        ClusterFolder.of(name)


def test_credentials_are_generated_once_and_kept_private(tmp_path: Path) -> None:
    """They are reused at the next start, and two clusters never share a key."""
    made = addons.Credentials.ensure(tmp_path / "one")
    assert addons.Credentials.ensure(tmp_path / "one") == made
    assert addons.Credentials.ensure(tmp_path / "two").s3_secret_key != made.s3_secret_key
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    assert made.s3_secret_key not in repr(made)


def test_every_service_pod_meets_the_restricted_pod_security_standard() -> None:
    """The namespace enforces it."""
    text = addons.services(addons.Credentials(), s3_image="localhost/s3:1", hub_image="localhost/hub:1")
    documents = list(yaml.safe_load_all(text))
    (namespace,) = [document for document in documents if document["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment"]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert re.fullmatch(r"localhost/(s3|hub):1", container["image"])


def test_the_secrets_match_the_credentials_of_pods_and_tests() -> None:
    """The accounts are valid for the Hub server, with a token of each role."""
    from tunemill_dev.hub.accounts import Accounts

    credentials = addons.Credentials()
    accounts = Accounts.model_validate(credentials.hub_accounts())
    roles = {token.value: token.role for token in accounts.tokens}
    assert roles == {
        credentials.hub_write_token: "write",
        credentials.hub_read_token: "read",
        credentials.hub_scoped_token: "fineGrained",
    }
