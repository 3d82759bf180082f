"""Properties of the images, checked in the last stage of their Dockerfiles."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IMAGES = [ROOT / "operator" / "Dockerfile", ROOT / "trainer_image" / "Dockerfile"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return keyword and arguments of each instruction of the last stage, with continued lines joined."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#"))
    found = [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    last = max(number for number, (word, *_) in enumerate(found) if word == "FROM")
    return [(word, " ".join(rest)) for word, *rest in found[last:]]


@pytest.mark.parametrize("dockerfile", IMAGES, ids=["operator", "trainer"])
def test_the_image_runs_as_a_numeric_user_that_owns_no_files(dockerfile: Path):
    """Kubernetes can verify a numeric user."""
    steps = instructions(dockerfile)
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["65532:65532"]
    made_after = steps[steps.index(("USER", users[0])) + 1 :]
    assert {word for word, _ in made_after} <= {"ENTRYPOINT", "CMD", "EXPOSE"}
    assert not [rest for _, rest in steps if re.search(r"chown|--chown|chmod [0-7]*[2367]|[ug]\+s", rest)]


@pytest.mark.parametrize("dockerfile", IMAGES, ids=["operator", "trainer"])
def test_the_image_contains_no_secret_and_no_download_cache(dockerfile: Path):
    """Both are mounts of the build."""
    steps = instructions(dockerfile)
    assert {word for word, _ in steps} <= {"FROM", "RUN", "ENV", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    for word, rest in steps:
        if word == "ENV":
            assert not re.search("TOKEN|SECRET|PASSWORD|KEY|_PROXY", rest, re.IGNORECASE)
        if word == "RUN":
            assert "--mount=type=cache,target=/root/.cache" in rest
            assert "apt-get" not in rest or rest.endswith("rm -rf /var/lib/apt/lists/*")


@pytest.mark.parametrize("dockerfile", IMAGES, ids=["operator", "trainer"])
def test_every_installed_package_is_pinned(dockerfile: Path):
    """By hash, except for our own packages, which are installed from the build context without dependencies."""
    installs = [part for _, rest in instructions(dockerfile) for part in rest.split("&&") if "pip install" in part]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-deps" in install


@pytest.mark.parametrize(
    "dockerfile", [*IMAGES, ROOT / "dev" / "hub" / "Dockerfile"], ids=["operator", "trainer", "hub"]
)
def test_the_image_builds_for_both_architectures(dockerfile: Path):
    """It names no architecture, so BuildKit builds it for each requested platform."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#"))
    assert not re.search(r"amd64|arm64|x86[_-]64|aarch64|--platform|TARGETARCH|BUILDARCH", text)
    assert {base for _, base in re.findall(r"^(FROM) (\S+)", text, re.MULTILINE)} == {"${BASE_IMAGE}"}


def test_the_operator_image_has_no_compiler_and_the_trainer_image_is_checked():
    """Triton compiles at run time; a build without a working compiler fails, and the driver library is found."""
    operator, trainer = (instructions(dockerfile) for dockerfile in IMAGES)
    assert "apt-get" not in " ".join(rest for _, rest in operator)
    runs = [rest for word, rest in trainer if word == "RUN"]
    installed = next(at for at, rest in enumerate(runs) if "apt-get install" in rest)
    checked = next(at for at, rest in enumerate(runs) if "check_compiler.py" in rest)
    assert installed < checked
    assert "--no-install-recommends gcc libc6-dev" in runs[installed]
    environment = " ".join(rest for word, rest in trainer if word == "ENV")
    assert "LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in environment
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in environment


def test_the_compiler_check_of_triton_needs_a_c_compiler(tmp_path: Path):
    """It succeeds with a compiler, and fails without one."""
    check = [sys.executable, str(ROOT / "trainer_image" / "check_compiler.py")]
    environment = {**os.environ, "HOME": str(tmp_path)}
    assert subprocess.run(check, env=environment, check=True, capture_output=True).stdout == b"Triton can compile\n"
    failed = subprocess.run(check, env={**environment, "PATH": str(tmp_path)}, check=False, capture_output=True)
    assert failed.returncode
    assert b"Failed to find C compiler" in failed.stderr
