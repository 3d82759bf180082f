"""Flags and environment variables."""

import argparse
from pathlib import Path

import pytest
from tunemill_operator.__main__ import main
from tunemill_operator.settings import Settings, SettingsError, add_options, settings_of


def settings(*flags: str, **environment: str) -> Settings:
    """Return the settings of a command line."""
    parser = argparse.ArgumentParser()
    add_options(parser, environment)
    return settings_of(parser.parse_args(flags))


def test_every_setting_has_a_flag_and_a_variable_and_the_flag_takes_precedence() -> None:
    """Both have the same name."""
    assert settings("--trainer-image=a").http_port == 8080
    assert settings("--trainer-image=a", TUNEMILL_HTTP_PORT="9").http_port == 9
    assert settings("--trainer-image=a", "--http-port=7", TUNEMILL_HTTP_PORT="9").http_port == 7
    assert settings(TUNEMILL_TRAINER_IMAGE="b").trainer_image == "b"
    assert settings("--trainer-image=a", TUNEMILL_NO_LEADER_ELECTION="true").no_leader_election


def test_lists_are_separated_by_commas() -> None:
    """Empty means all namespaces, and no pull secret."""
    assert settings("--trainer-image=a").namespaces == ()
    assert settings("--trainer-image=a", "--namespaces=").namespaces == ()
    assert settings("--trainer-image=a", "--namespaces=team-a, team-b").namespaces == ("team-a", "team-b")


def test_the_pod_name_comes_from_the_downward_api() -> None:
    """As the chart sets it; the Lease is in the same namespace."""
    found = settings("--trainer-image=a", POD_NAME="operator-1", POD_NAMESPACE="tunemill-system")
    assert (found.pod_name, found.pod_namespace) == ("operator-1", "tunemill-system")
    assert found.lease_namespace == "tunemill-system"
    assert settings("--trainer-image=a").lease_namespace == "default"


def test_candidates_have_unique_identities_by_default() -> None:
    """Two processes with one identity would both lead."""
    assert settings("--trainer-image=a").candidate != ""
    assert settings("--trainer-image=a", "--identity=me").candidate == "me"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--trainer-image is required"),
        (["--trainer-image=a", "--workers=0"], "--workers"),
        (["--trainer-image=a", "--stage-user=root"], "--stage-user must be a user ID above 0"),
        (["--trainer-image=a", "--stage-user=0"], "--stage-user must be a user ID above 0"),
        (["--trainer-image=a", "--progress-write-seconds=0"], "--progress-write-seconds"),
        (["--trainer-image=a", "--progress-writes-per-second=0"], "--progress-writes-per-second"),
        (["--trainer-image=a", "--progress-url=http://x"], "--progress-url must start with https://"),
        (["--trainer-image=a", "--progress-url=https://x"], "--progress-cert must name a readable PEM file"),
        (["--trainer-image=a", "--progress-url=https://x", "--progress-secret=s", "--progress-ca=f"], "set either"),
        (["--trainer-image=a", "--builder-id=tunemill"], "--builder-id must be an http"),
        (["--trainer-image=a", "--cluster-name=prod/eu"], "--cluster-name must be a DNS label"),
        (["--trainer-image=a", "--https-proxy=proxy:3128"], "--https-proxy must be an http"),
        (["--trainer-image=a", "--http-proxy=http://user:word@proxy"], "--http-proxy .* without credentials"),
    ],
)
def test_invalid_settings_are_reported_in_one_sentence(flags: list[str], words: str) -> None:
    """With the flag to change."""
    with pytest.raises(SettingsError, match=words):
        settings(*flags)


def test_a_progress_endpoint_requires_three_files(tmp_path: Path) -> None:
    """Certificate, key and CA certificate."""
    files = {name: tmp_path / name for name in ("cert", "key", "ca")}
    flags = ["--trainer-image=a", "--progress-url=https://x", *(f"--progress-{n}={p}" for n, p in files.items())]
    for missing in files:
        for name, path in files.items():
            path.write_text("pem")
            if name == missing:
                path.unlink()
        with pytest.raises(SettingsError, match=f"--progress-{missing} "):
            settings(*flags)


def test_errors_of_the_command_line_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without an image, without a cluster: no traceback."""
    monkeypatch.setattr("sys.argv", ["tunemill-operator", "version"])
    assert main() == 0
    assert capsys.readouterr().out.strip()
    monkeypatch.setattr("sys.argv", ["tunemill-operator", "run"])
    assert main() == 64
    assert "--trainer-image is required" in capsys.readouterr().err
    monkeypatch.setattr("tunemill_operator.telemetry.logs.configure", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["tunemill-operator", "run", "--trainer-image=a", f"--kubeconfig={tmp_path}/none"])
    assert main() == 64
    assert capsys.readouterr().err.startswith("tunemill-operator: cannot reach a cluster")
