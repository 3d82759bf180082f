"""What the images may hold, read off their Dockerfiles: what they leave behind is what their last stage does."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IMAGES = [ROOT / "operator" / "Dockerfile", ROOT / "trainer_image" / "Dockerfile"]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return word and rest of each instruction of the last stage, continued lines joined."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#"))
    found = [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    last = max(number for number, (word, *_) in enumerate(found) if word == "FROM")
    return [(word, " ".join(rest)) for word, *rest in found[last:]]


@pytest.mark.parametrize("dockerfile", IMAGES, ids=["operator", "trainer"])
def test_it_runs_as_a_numeric_user_that_owns_nothing(dockerfile: Path):
    """Kubernetes can check a number, and no file is made for that user."""
    steps = instructions(dockerfile)
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["65532:65532"]
    made_after = steps[steps.index(("USER", users[0])) + 1 :]
    assert {word for word, _ in made_after} <= {"ENTRYPOINT", "CMD", "EXPOSE"}
    assert not [rest for _, rest in steps if re.search(r"chown|--chown|chmod [0-7]*[2367]|[ug]\+s", rest)]


@pytest.mark.parametrize("dockerfile", IMAGES, ids=["operator", "trainer"])
def test_no_secret_and_no_download_cache_stays_in_it(dockerfile: Path):
    """What a build needs to know, or keeps for the next one, is mounted while it lasts."""
    steps = instructions(dockerfile)
    assert {word for word, _ in steps} <= {"FROM", "RUN", "ENV", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    for word, rest in steps:
        if word == "ENV":
            assert not re.search("TOKEN|SECRET|PASSWORD|KEY|_PROXY", rest, re.IGNORECASE)
        if word == "RUN":
            assert "--mount=type=cache,target=/root/.cache" in rest
            assert "apt-get" not in rest


@pytest.mark.parametrize("dockerfile", IMAGES, ids=["operator", "trainer"])
def test_everything_that_is_installed_is_pinned(dockerfile: Path):
    """By hash, but for our own packages, which come from the build's context and bring nothing with them."""
    installs = [part for _, rest in instructions(dockerfile) for part in rest.split("&&") if "pip install" in part]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-deps" in install
