"""Permissions of the GitHub workflows, and the content of a release; `make lint` checks the syntax with actionlint."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[str, Any]] = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
RELEASE = WORKFLOWS["release"]["jobs"]
PINNED = re.compile(r"uses: (?:\./\S+|[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)")


def steps(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a job; none if it calls a workflow."""
    return job.get("steps", [])


def used(job: dict[str, Any]) -> set[str]:
    """Return the actions of a job, without their versions."""
    return {step["uses"].partition("@")[0] for step in steps(job) if "uses" in step}


def commands(job: dict[str, Any]) -> str:
    """Return what a job runs."""
    return "\n".join(step["run"] for step in steps(job) if "run" in step)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    """A tag can be moved; the version in the comment is for readers and Dependabot."""
    for line in path.read_text().splitlines():
        if "uses:" in line:
            assert PINNED.search(line), line


def test_an_action_has_one_commit_in_all_workflows() -> None:
    """An update changes it everywhere."""
    pins = {pin for path in FILES for pin in re.findall(r"uses: ([^.\s]\S+@[0-9a-f]{40} # \S+)", path.read_text())}
    repositories = ["/".join(pin.partition("@")[0].split("/")[:2]) for pin in pins]
    versions = {name: {pin.partition("@")[2] for pin in pins if pin.startswith(name)} for name in repositories}
    assert all(len(found) == 1 for found in versions.values()), versions


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_have_only_the_permissions_they_declare(name: str) -> None:
    """Workflows grant none; a job that writes nothing has at most read access to the code. Every job has a timeout."""
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {}
    for title, job in workflow["jobs"].items():
        assert "permissions" in job, title
        assert "timeout-minutes" in job or "uses" in job, title
        written = {scope for scope, right in job["permissions"].items() if right == "write"}
        if name in {"ci", "nightly"}:
            assert not written, title
        assert job["permissions"].get("actions") is None


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_untrusted_text_is_used_in_a_shell(name: str) -> None:
    """Expressions are expanded before the shell runs, so scripts use environment variables."""
    for title, job in WORKFLOWS[name]["jobs"].items():
        assert "${{" not in commands(job), title


def test_only_jobs_that_push_keep_the_token_in_the_checkout() -> None:
    """Later steps could read it there."""
    for name, workflow in WORKFLOWS.items():
        for title, job in workflow["jobs"].items():
            for step in steps(job):
                if step.get("uses", "").startswith("actions/checkout@"):
                    keeps = step["with"].get("persist-credentials", True)
                    assert keeps is (name == "docs"), f"{name}: {title}"


def test_pull_requests_run_the_quick_tests_and_merges_run_all_tests() -> None:
    """In a clean checkout, with the commands of a contributor."""
    jobs = WORKFLOWS["ci"]["jobs"]
    assert "make test-quick" in commands(jobs["quick"])
    assert "bash .ci/run" in commands(jobs["test"])
    assert "make test-long" in commands(WORKFLOWS["nightly"]["jobs"]["test-long"])


def test_a_release_is_tested_before_anything_is_published() -> None:
    """Every job with write permissions comes after the tests."""

    def needs(title: str) -> set[str]:
        direct = RELEASE[title].get("needs", [])
        direct = {direct} if isinstance(direct, str) else set(direct)
        return direct.union(*(needs(each) for each in direct))

    for title, job in RELEASE.items():
        if "write" in job["permissions"].values():
            assert {"version", "test"} <= needs(title), title


def test_both_images_are_built_for_both_architectures_with_provenance_and_sbom() -> None:
    """Each on a native runner: emulation would take hours for the trainer image."""
    job = RELEASE["image"]
    assert job["strategy"]["matrix"]["image"] == ["tunemill-operator", "tunemill-trainer"]
    assert job["strategy"]["matrix"]["architecture"] == ["amd64", "arm64"]
    (build,) = (step for step in steps(job) if step.get("id") == "build")
    assert (build["with"]["provenance"], build["with"]["sbom"]) == ("mode=max", True)
    files = [ROOT / entry["dockerfile"] for entry in job["strategy"]["matrix"]["include"]]
    assert len(files) == 2
    assert all(file.is_file() for file in files)


@pytest.mark.parametrize("title", ["sign-image", "chart"])
def test_pushed_images_are_signed_and_attested_by_digest(title: str) -> None:
    """Keyless: the signature has the identity of this workflow and the tag."""
    job = RELEASE[title]
    assert re.search(r'cosign sign --yes .*@\$DIGEST"', commands(job))
    assert "actions/attest-build-provenance" in used(job)
    assert {"id-token", "attestations", "packages"} <= {
        key for key, right in job["permissions"].items() if right == "write"
    }


def test_a_github_release_has_manifests_chart_wheels_and_signed_checksums() -> None:
    """PyPI gets the packages and the programs by trusted publishing."""
    job = RELEASE["github"]
    assert "cp charts/install.yaml crds/tunemill.dev_*.yaml dist/" in commands(job)
    assert "cosign sign-blob --yes --bundle SHA256SUMS.sigstore.json SHA256SUMS" in commands(job)
    assert "actions/attest-build-provenance" in used(job)
    assert "uv publish --trusted-publishing always" in commands(RELEASE["publish"])
    assert RELEASE["publish"]["environment"] == "pypi"
    assert "tunemill_dev.cluster.wheels" in commands(RELEASE["program-wheels"])
    assert {each["architecture"] for each in RELEASE["program-wheels"]["strategy"]["matrix"]["include"]} == {
        "amd64",
        "arm64",
    }


def test_all_components_have_the_same_version() -> None:
    """The release workflow compares them with the tag; pages and chart refer to it."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for folder in ("crds", "operator", "trainer_image"):
        assert tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"] == version
    chart = yaml.safe_load((ROOT / "charts/tunemill/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    for page in ("README.md", "docs/how-to/install.md", "charts/tunemill/README.md"):
        assert f"oci://ghcr.io/tunemill/charts/tunemill --version {version}" in (ROOT / page).read_text(), page


def test_release_notes_are_the_section_of_the_changelog(tmp_path: Path) -> None:
    """The script of the workflow, with a small changelog."""
    (script,) = re.findall(r"^awk .*$", commands(RELEASE["github"]), re.MULTILINE)
    notes = "\n- this\n\n### Fixed\n\n- that\n\n"
    changelog = f"# Changelog\n\n## Unreleased\n\n- next\n\n## 0.2.0 (2026-12-01)\n{notes}## 0.1.0\n\n- old\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "VERSION": "0.2.0"}, check=True)
    assert (tmp_path / "notes.md").read_text() == notes
