"""How the settings of the platform team affect the pods of stages."""

import os
from dataclasses import replace
from pathlib import Path

import certifi
import pytest
from tunemill_api.trust import VARIABLES
from tunemill_operator.engine.volumes import network_env
from tunemill_operator.platform import CA_BUNDLE_BYTES, SIGSTORE_BYTES, platform_of, trusting
from tunemill_operator.progress.authority import issue_certificate
from tunemill_operator.settings import Settings, SettingsError

SETTINGS = Settings(trainer_image="trainer")
PUBLIC = Path(certifi.where()).read_text()


def authorities(count: int) -> str:
    """Return CA certificates of two companies."""
    return "".join(issue_certificate(f"company-{number}")[2].decode() for number in range(count))


def test_only_private_ca_certificates_are_passed_on(tmp_path: Path) -> None:
    """A system bundle has 200 KiB; the additional certificates fit into an annotation."""
    company = authorities(2)
    (tmp_path / "ca.crt").write_text(f"# the company's\n{company}\n{PUBLIC}\n{company}")
    platform = platform_of(replace(SETTINGS, ca_bundle=str(tmp_path / "ca.crt")), None)
    assert platform.ca_bundle == company
    assert platform_of(SETTINGS, None).ca_bundle == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "found none"),
        ("rubbish", "found none"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "certificate 1 .* cannot be read"),
        (
            authorities(1) + "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
            "certificate 2 .* cannot be read",
        ),
        (authorities(1) * 2 + authorities(CA_BUNDLE_BYTES // 600), f"at most {CA_BUNDLE_BYTES} fit"),
    ],
    ids=["empty", "rubbish", "no certificate", "one is broken", "too many"],
)
def test_an_invalid_ca_bundle_is_rejected_with_flag_and_file(tmp_path: Path, text: str, why: str) -> None:
    """Before any pod is created."""
    path = tmp_path / "ca.crt"
    path.write_text(text)
    with pytest.raises(SettingsError, match=rf"--ca-bundle: .*ca\.crt.*{why}"):
        platform_of(replace(SETTINGS, ca_bundle=str(path)), None)


def test_the_trust_configuration_of_sigstore_becomes_one_line(tmp_path: Path) -> None:
    """For a private instance. The public one needs none, and without the setting nothing is signed."""
    path = tmp_path / "trust-config.json"
    path.write_text('{\n  "trustedRoot": {"tlogs": []},\n  "signingConfig": {"caUrls": []}\n}\n')
    settings = [replace(SETTINGS, sigstore=value) for value in ("", "public", str(path))]
    line = '{"trustedRoot":{"tlogs":[]},"signingConfig":{"caUrls":[]}}'
    assert [platform_of(item, None).sigstore for item in settings] == [None, "", line]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be used"),
        ("[]", "cannot be used"),
        ('{"trustedRoot": {"tlogs": []}}', "lacks signingConfig"),
        (f'{{"trustedRoot": "{"a" * SIGSTORE_BYTES}", "signingConfig": "a"}}', f"at most {SIGSTORE_BYTES} fit"),
        (None, "cannot be used: .*No such file"),
    ],
    ids=["broken", "no object", "half", "too large", "missing"],
)
def test_an_invalid_trust_configuration_is_rejected(tmp_path: Path, text: str | None, why: str) -> None:
    """Before any pod is created."""
    path = tmp_path / "trust-config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=f"--sigstore: .*{why}"):
        platform_of(replace(SETTINGS, sigstore=str(path)), None)


def test_a_missing_ca_bundle_is_rejected(tmp_path: Path) -> None:
    """Also for the operator's own connections."""
    path = str(tmp_path / "none")
    with pytest.raises(SettingsError, match="--ca-bundle"):
        platform_of(replace(SETTINGS, ca_bundle=path), None)
    with pytest.raises(SettingsError, match="--ca-bundle"), trusting(path):
        pass


def test_the_cluster_name_is_passed_to_the_stages() -> None:
    """It is part of the references in a shared workspace."""
    assert platform_of(replace(SETTINGS, cluster_name="prod-eu"), None).cluster == "prod-eu"
    assert platform_of(SETTINGS, None).cluster == ""


def test_only_configured_proxies_become_variables() -> None:
    """Some libraries treat an empty variable as a setting."""
    assert platform_of(SETTINGS, None).proxies == {}
    found = platform_of(replace(SETTINGS, https_proxy="http://proxy", no_proxy=".svc"), None).proxies
    assert found == {"HTTPS_PROXY": "http://proxy", "NO_PROXY": ".svc"}


def test_the_operator_trusts_the_private_ca_in_addition_to_public_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the collector of its traces."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "ca.crt").write_text(authorities(1))
    with trusting(str(tmp_path / "ca.crt")):
        (file,) = {os.environ[name] for name in VARIABLES}
        everything = Path(file).read_text()
    assert authorities_in(everything) >= authorities_in(PUBLIC) | authorities_in((tmp_path / "ca.crt").read_text())


def authorities_in(text: str) -> set[str]:
    """Return the certificates of a bundle."""
    return {part.partition("-----END")[0] for part in text.split("-----BEGIN CERTIFICATE-----")[1:]}


def test_tokens_are_sent_to_the_public_hub_only_by_default() -> None:
    """Other hubs have to be listed."""
    assert platform_of(SETTINGS, None).hub_endpoints == ()
    assert platform_of(replace(SETTINGS, hub_endpoints=("https://hub",)), None).hub_endpoints == ("https://hub",)


def test_stages_cannot_use_the_node_identity_by_default() -> None:
    """boto3 falls back to the metadata service, and the variable forbids that."""
    assert network_env(platform_of(SETTINGS, None))["AWS_EC2_METADATA_DISABLED"] == "true"
    allowed = platform_of(replace(SETTINGS, instance_metadata=True), None)
    assert "AWS_EC2_METADATA_DISABLED" not in network_env(allowed)


@pytest.mark.parametrize(("setting", "user"), [("65532", 65532), ("1000680000", 1000680000), ("", None)])
def test_the_user_id_of_stage_pods_is_configured_or_assigned_by_the_cluster(setting: str, user: int | None) -> None:
    """Empty leaves it to the cluster, as OpenShift requires."""
    assert platform_of(replace(SETTINGS, stage_user=setting), None).run_as_user == user
    assert platform_of(SETTINGS, None).run_as_user == 65532
