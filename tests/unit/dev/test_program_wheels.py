"""The cluster's programs as wheels: their content, and their use instead of a build."""

import base64
import csv
import hashlib
import io
import re
import stat
import zipfile
from pathlib import Path

import pytest
from tunemill_dev.cluster import binaries, prerequisites, wheels

GROUP = binaries.Group("two", ("example.org/a/cmd/one", "go.example.org/server/v3"), renamed=(("server", "etcd"),))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without Go and without built programs."""
    monkeypatch.setenv("TUNEMILL_HOME", str(tmp_path / "home"))

    def no_build(group: binaries.Group, _: Path) -> None:
        raise AssertionError(f"{group.name} is built")

    monkeypatch.setattr(binaries, "_build", no_build)
    return tmp_path / "home"


def build(group: binaries.Group) -> None:
    """Put programs where a build puts them."""
    folder = binaries.folder(group)
    folder.mkdir(parents=True, exist_ok=True)
    for program in group.programs:
        (folder / program).write_text(f"program {program}")


def install(wheel: Path, home: Path) -> None:
    """Unpack a wheel like pip and uv, which keep the executable bit."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = Path(archive.extract(info, home / "wheels"))
            if info.external_attr >> 16 & 0o111:
                path.chmod(0o755)


def test_every_program_of_the_cluster_is_in_exactly_one_wheel() -> None:
    """A missing one would need a build with Go."""
    packed = [
        (group.name, name) for content in wheels.WHEELS.values() for group, names in content.items() for name in names
    ]
    assert sorted(packed) == sorted((group.name, name) for group in binaries.ALL for name in group.programs)


def test_programs_have_the_names_of_their_packages() -> None:
    """As `go build` names them."""
    assert GROUP.programs == ("one", "etcd")
    assert binaries.KUBERNETES.programs[:2] == ("etcd", "kube-apiserver")
    assert binaries.COREDNS.programs == ("coredns",)


def test_a_wheel_is_valid_and_reproducible(home: Path, tmp_path: Path) -> None:
    """RECORD has the digest of each file; static programs run with every libc."""
    build(GROUP)
    content = {GROUP: GROUP.programs}
    wheel = wheels.write_wheel("tunemill-programs-x", content, "1.2.3", "aarch64", tmp_path)
    assert wheel.name == (
        "tunemill_programs_x-1.2.3-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl"
    )
    first = wheel.read_bytes()
    assert wheels.write_wheel("tunemill-programs-x", content, "1.2.3", "aarch64", tmp_path).read_bytes() == first
    with zipfile.ZipFile(wheel) as archive:
        info = "tunemill_programs_x-1.2.3.dist-info"
        records = {row[0]: row[1:] for row in csv.reader(io.StringIO(archive.read(f"{info}/RECORD").decode()))}
        assert set(records) == set(archive.namelist())
        for name, (digest, size) in records.items():
            if name.endswith("/RECORD"):
                continue
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={expected}", str(len(data)))
        tags = re.findall(r"^Tag: (.+)$", archive.read(f"{info}/WHEEL").decode(), re.MULTILINE)
        assert tags == [f"py3-none-{libc}_aarch64" for libc in ("manylinux_2_17", "manylinux2014", "musllinux_1_1")]


def test_installed_programs_are_used_without_go(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a group's programs come in several wheels; an incomplete group is built."""
    build(GROUP)
    parts = [wheels.write_wheel(f"part-{name}", {GROUP: (name,)}, "1", "x86_64", tmp_path) for name in GROUP.programs]
    for built in (home / "bin").iterdir():
        for file in built.iterdir():
            file.unlink()
        built.rmdir()
    install(parts[0], home)
    with pytest.raises(AssertionError, match="two is built"):
        binaries.ensure([GROUP])
    install(parts[1], home)
    found = binaries.ensure([GROUP])["two"]
    assert found.is_relative_to(home / "wheels")
    assert all((found / program).stat().st_mode & stat.S_IXUSR for program in GROUP.programs)
    # Go is not looked for.
    monkeypatch.setattr(binaries, "ALL", (GROUP,))
    monkeypatch.setattr(binaries, "go", lambda: pytest.fail("Go is looked for"))
    monkeypatch.setattr(prerequisites, "check_platform", lambda: None)
    monkeypatch.setattr(prerequisites, "_install", lambda _: None)
    monkeypatch.setattr(prerequisites, "_FREE_GIB", 0)
    prerequisites.check()
    assert not binaries.missing([GROUP])
