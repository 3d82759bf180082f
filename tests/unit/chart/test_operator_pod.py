"""The Deployment of the operator: images, security context, flags and network."""

import argparse
from typing import Any

import pytest
import yaml
from chart.rendering import CHART, NAMESPACE, RELEASE, helm, render
from tunemill_api.constants import LABEL_FINETUNE, LABEL_LEADER, LABEL_STAGE, USER_ID
from tunemill_operator.settings import add_options
from tunemill_trainer.process.addresses import REFUSED

DIGEST = "sha256:" + "0a" * 32


def test_image_tags_default_to_the_app_version() -> None:
    """Chart, operator and stages then have the same release; a digest takes precedence over a tag."""
    assert render().container["image"] == "ghcr.io/tunemill/tunemill-operator:0.1.0"
    assert render().flags["--trainer-image"] == "ghcr.io/tunemill/tunemill-trainer:0.1.0"
    named = render(
        image={"repository": "registry.example.com/op", "tag": "v2"}, trainer={"image": "registry.example.com/tr:v2"}
    )
    assert named.container["image"] == "registry.example.com/op:v2"
    assert named.flags["--trainer-image"] == "registry.example.com/tr:v2"
    pinned = render(image={"repository": "registry.example.com/op", "tag": "v2", "digest": DIGEST})
    assert pinned.container["image"] == f"registry.example.com/op@{DIGEST}"


def test_the_pod_has_a_read_only_root_filesystem_and_cannot_become_root() -> None:
    """The user is that of the image."""
    rendered = render()
    assert rendered.pod["spec"]["securityContext"]["runAsUser"] == USER_ID
    assert rendered.container["securityContext"]["readOnlyRootFilesystem"] is True
    (volume,) = rendered.pod["spec"]["volumes"]
    assert volume == {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}}


def test_namespaces_and_pull_secrets_are_passed_as_lists() -> None:
    """An unused flag is not rendered."""
    assert render().flags.keys().isdisjoint({"--namespaces", "--image-pull-secrets"})
    secrets = [{"name": "registry"}, {"name": "mirror"}]
    flags = render(watchNamespaces=["team-a", "team-b"], trainer={"imagePullSecrets": secrets}).flags
    assert flags["--namespaces"] == "team-a,team-b"
    assert flags["--image-pull-secrets"] == "registry,mirror"


@pytest.mark.parametrize(
    ("pull_policy", "log_format", "log_level"),
    [
        ("Always", "text", "debug"),
        ("IfNotPresent", "json", "info"),
        ("Never", "json", "warning"),
        ("Never", "text", "error"),
    ],
)
def test_the_operator_accepts_every_flag_of_the_chart(pull_policy: str, log_format: str, log_level: str) -> None:
    """Its parser accepts them, with every choice in the schema of the values."""
    rendered = render(
        watchNamespaces=["team-a"],
        trainer={"imagePullPolicy": pull_policy, "imagePullSecrets": [{"name": "registry"}]},
        logging={"format": log_format, "level": log_level},
        extraArgs=["--workers=32"],
    )
    command, *flags = rendered.container["args"]
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_options(parser, {})
    understood = parser.parse_args(flags)
    assert command == "run"
    assert (understood.image_pull_policy, understood.image_pull_secrets) == (pull_policy, "registry")
    assert (understood.log_format, understood.log_level) == (log_format, log_level)
    assert (understood.namespaces, understood.lease_namespace, understood.workers) == ("team-a", NAMESPACE, 32)


def test_probes_and_service_use_the_ports_of_the_operator() -> None:
    """The named ports have the numbers of the flags."""
    rendered = render(progress={"port": 9443})
    ports = {port["name"]: str(port["containerPort"]) for port in rendered.container["ports"]}
    assert ports == {"http": rendered.flags["--http-port"], "progress": rendered.flags["--progress-port"]}
    probes = [rendered.container[f"{probe}Probe"] for probe in ("startup", "liveness", "readiness")]
    assert {probe["httpGet"]["port"] for probe in probes} == {"http"}
    assert probes[0]["failureThreshold"] * probes[0]["periodSeconds"] >= 120
    assert rendered.one("Service")["spec"]["ports"][0]["targetPort"] == "progress"


def test_the_progress_service_selects_only_the_leader() -> None:
    """Only the leader stores progress. The URL for stages is that of the Service."""
    rendered = render()
    (service,) = rendered.all("Service")
    assert service["spec"]["selector"][LABEL_LEADER] == "true"
    host = f"{service['metadata']['name']}.{NAMESPACE}.svc"
    assert rendered.flags["--progress-url"] == f"https://{host}:{service['spec']['ports'][0]['port']}"
    assert LABEL_LEADER not in rendered.pod["metadata"]["labels"]


def test_disabling_progress_removes_its_objects_and_flags() -> None:
    """No flag, port, Service or Secret."""
    rendered = render(progress={"enabled": False})
    assert not [flag for flag in rendered.flags if flag.startswith("--progress")]
    assert [port["name"] for port in rendered.container["ports"]] == ["http"]
    assert rendered.all("Service") == rendered.all("Secret") == []


def test_the_operator_stores_its_certificate_in_the_secret_of_the_chart() -> None:
    """It can read and write only this one. The rendering is reproducible, as GitOps requires."""
    rendered = render()
    secret = rendered.one("Secret")
    assert "data" not in secret
    assert rendered.flags["--progress-secret"] == secret["metadata"]["name"]
    rules = [rule for _, _, rule in rendered.rules_of_operator() if "secrets" in rule["resources"]]
    assert [(rule["resourceNames"], rule["verbs"]) for rule in rules] == [
        ([secret["metadata"]["name"]], ["get", "update"])
    ]
    assert rendered == render()


def test_an_existing_certificate_is_mounted_and_none_is_generated() -> None:
    """With progress.tls.existingSecret the operator has no permission on Secrets."""
    rendered = render(progress={"tls": {"existingSecret": "from-cert-manager"}})
    assert rendered.all("Secret") == []
    assert rendered.pod["spec"]["volumes"][1]["secret"]["secretName"] == "from-cert-manager"
    assert not [rule for _, _, rule in rendered.rules_of_operator() if "secrets" in rule["resources"]]
    assert {rendered.flags[f"--progress-{name}"] for name in ("cert", "key", "ca")} == {
        f"/etc/tunemill/progress/{name}" for name in ("tls.crt", "tls.key", "ca.crt")
    }


@pytest.mark.parametrize("kind", ["configMap", "secret"])
def test_ca_bundles_are_mounted_and_passed_to_the_operator(kind: str) -> None:
    """As a folder, so that a new bundle needs no restart."""
    rendered = render(caBundle={kind: "company", "key": "bundle.pem"})
    (volume,) = (found for found in rendered.pod["spec"]["volumes"] if found["name"] == "authorities")
    assert volume[kind].get("name", volume[kind].get("secretName")) == "company"
    (mount,) = (found for found in rendered.container["volumeMounts"] if found["name"] == "authorities")
    assert "subPath" not in mount
    assert rendered.flags["--ca-bundle"] == f"{mount['mountPath']}/bundle.pem"
    assert "--ca-bundle" not in render().flags


def test_keyless_signing_is_disabled_by_default_and_supports_a_private_sigstore() -> None:
    """Only if enabled, the admission policy permits a Sigstore token in a pod."""
    audiences = {False: "in ['progress.tunemill.dev']", True: "in ['progress.tunemill.dev', 'sigstore']"}
    for values, flag in (
        ({}, None),
        ({"configMap": "ours"}, None),
        ({"enabled": True}, "public"),
        ({"enabled": True, "configMap": "ours", "key": "trust.json"}, "/etc/tunemill/sigstore/trust.json"),
    ):
        rendered = render(sigstore=values)
        assert rendered.flags.get("--sigstore") == flag
        mounted = [found for found in rendered.pod["spec"]["volumes"] if found["name"] == "sigstore"]
        assert [found["configMap"]["name"] for found in mounted] == (["ours"] if flag and "/" in flag else [])
        policies = yaml.safe_dump(rendered.all("ValidatingAdmissionPolicy"), width=1000)
        assert audiences[flag is not None] in policies.replace("''", "'")


def test_proxies_apply_to_stages_and_operator_but_not_to_the_api_server() -> None:
    """By flags for the stages, and by the usual variables for the operator; without a proxy none is rendered."""
    assert not {"--http-proxy", "--https-proxy", "--no-proxy"} & render().flags.keys()
    assert not {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} & render().environment.keys()
    rendered = render(proxy={"https": "http://proxy:3128", "noProxy": [".example.com", "localhost"]})
    assert (rendered.flags["--http-proxy"], rendered.flags["--https-proxy"]) == ("", "http://proxy:3128")
    assert rendered.flags["--no-proxy"] == "localhost,127.0.0.1,.svc,.cluster.local,.example.com"
    assert rendered.environment["HTTPS_PROXY"] == "http://proxy:3128"
    assert rendered.environment["NO_PROXY"] == f"{rendered.flags['--no-proxy']},$(KUBERNETES_SERVICE_HOST)"


def test_the_cluster_name_is_passed_to_the_operator() -> None:
    """Without a name no flag is rendered."""
    assert "--cluster-name" not in render().flags
    assert render(clusterName="prod-eu").flags["--cluster-name"] == "prod-eu"


def test_custom_labels_cannot_override_selector_labels() -> None:
    """The labels of the selector take precedence over podLabels."""
    rendered = render(podLabels={"team": "ml", "app.kubernetes.io/name": "other"})
    labels = rendered.pod["metadata"]["labels"]
    selector = rendered.one("Deployment")["spec"]["selector"]["matchLabels"]
    assert labels["team"] == "ml"
    assert selector.items() <= labels.items()


def test_metrics_are_scraped_from_every_replica() -> None:
    """The Service is headless, and the ServiceMonitor selects it."""
    monitor = {"enabled": True, "labels": {"release": "prometheus"}}
    rendered = render(metrics={"enabled": True, "serviceMonitor": monitor})
    (service,) = (found for found in rendered.all("Service") if found["metadata"]["name"].endswith("-metrics"))
    assert service["spec"]["clusterIP"] == "None"
    found = rendered.one("ServiceMonitor")
    assert found["metadata"]["labels"]["release"] == "prometheus"
    assert found["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_the_network_policy_allows_progress_reports_from_stage_pods_only() -> None:
    """Progress from pods with the finetune label, probes and metrics from anywhere; egress to DNS and API server."""
    policy = render(networkPolicy={"enabled": True, "apiServerPorts": [16443]}).one("NetworkPolicy")["spec"]
    sources = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    assert sources["http"] is None
    assert sources["progress"][0]["podSelector"]["matchExpressions"] == [{"key": LABEL_FINETUNE, "operator": "Exists"}]
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53, 16443]


def test_stage_pods_have_limited_egress_and_no_ingress() -> None:
    """In every watched namespace: DNS, the operator's progress port, and the configured ports at any address."""
    rendered = render(
        watchNamespaces=["team-a", "team-b"],
        progress={"port": 9443},
        networkPolicy={"stages": {"enabled": True, "ports": [443, 3128]}},
    )
    policies = rendered.all("NetworkPolicy")
    assert [policy["metadata"]["namespace"] for policy in policies] == ["team-a", "team-b"]
    for policy in (found["spec"] for found in policies):
        assert policy["podSelector"]["matchExpressions"] == [{"key": LABEL_FINETUNE, "operator": "Exists"}]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert policy["ingress"] == []
        dns, progress, group, services = policy["egress"]
        assert {port["port"] for port in dns["ports"]} == {53}
        (operator,) = progress["to"]
        assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": NAMESPACE}
        assert operator["podSelector"]["matchLabels"].items() <= rendered.pod["metadata"]["labels"].items()
        assert progress["ports"] == [{"port": 9443, "protocol": "TCP"}]
        (peers,) = group["to"]
        assert (peers.keys(), peers["podSelector"]["matchLabels"]) == ({"podSelector"}, {LABEL_STAGE: "train"})
        assert "ports" not in group, "NCCL and gloo choose theirs"
        assert [port["port"] for port in services["ports"]] == [443, 3128]
        pods, *blocks = services["to"]
        assert pods == {"namespaceSelector": {}}
        assert {block["ipBlock"]["cidr"]: block["ipBlock"]["except"] for block in blocks} == {
            "0.0.0.0/0": ["169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"],
            "::/0": ["fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128"],
        }


def test_a_network_policy_for_stage_pods_can_be_rendered_for_any_namespace() -> None:
    """Also if all namespaces are watched: by the command of docs/how-to/private-networks.md."""
    arguments = ("--set", "networkPolicy.stages.enabled=true", "--set", "networkPolicy.stages.namespaces={team-x}")
    command = ("template", RELEASE, str(CHART), "--namespace", NAMESPACE)
    done = helm(*command, *arguments, "--show-only", "templates/networkpolicy.yaml")
    (policy,) = [item for item in yaml.safe_load_all(done.stdout) if item]
    assert (policy["kind"], policy["metadata"]["namespace"]) == ("NetworkPolicy", "team-x")
    ours = render(watchNamespaces=["team-x"], networkPolicy={"stages": {"enabled": True}}).one("NetworkPolicy")
    assert policy["spec"] == ours["spec"]
    assert render(networkPolicy={"stages": {"enabled": True, "namespaces": ["x"], "exceptCidrs": []}}).one(
        "NetworkPolicy"
    )


def test_the_blocked_addresses_are_those_of_the_trainer() -> None:
    """The network policy and the process block the same addresses."""
    stages = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]["stages"]
    assert set(stages["exceptCidrs"]) == {str(network) for network in REFUSED}


def test_the_hubs_allowed_to_receive_tokens_are_passed_to_the_operator() -> None:
    """Only the public one by default."""
    assert "--hub-endpoints" not in render().flags
    hubs = ["https://hub.acme.com", "https://mirror.acme.com/hf"]
    assert render(hub={"endpoints": hubs}).flags["--hub-endpoints"] == ",".join(hubs)


def test_node_identity_is_available_only_if_enabled() -> None:
    """By a flag of the operator."""
    assert "--instance-metadata" not in render().flags
    assert "--instance-metadata" in render(stages={"instanceMetadata": True}).flags


def test_without_progress_stage_pods_cannot_connect_to_the_operator() -> None:
    """No port is open for them."""
    values = {"networkPolicy": {"stages": {"enabled": True}}, "progress": {"enabled": False}}
    policy = render(watchNamespaces=["team-a"], **values).one("NetworkPolicy")
    dns, group, services = policy["spec"]["egress"]
    assert "to" not in dns
    assert [peer["podSelector"]["matchLabels"] for peer in group["to"]] == [{LABEL_STAGE: "train"}]
    assert not [peer for peer in services["to"] if "podSelector" in peer]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.observability:4318", 4318),
        ("https://traces.example.com/otlp", 443),
        ("http://[::1]:4318", 4318),
    ],
)
def test_traces_are_disabled_by_default_and_sent_to_the_configured_endpoint(endpoint: str, port: int) -> None:
    """By OpenTelemetry's own variable; the network policy permits the egress."""
    assert not [item for item in render().container["env"] if item["name"].startswith("OTEL")]
    rendered = render(tracing={"endpoint": endpoint}, networkPolicy={"enabled": True})
    assert {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": endpoint} in rendered.container["env"]
    (*_, last) = rendered.one("NetworkPolicy")["spec"]["egress"]
    assert last["ports"] == [{"port": port, "protocol": "TCP"}]


@pytest.mark.parametrize("field", ["nodeSelector", "tolerations", "affinity", "priorityClassName"])
def test_scheduling_settings_are_passed_through(field: str) -> None:
    """Unset ones are not rendered, so the cluster's defaults apply."""
    known: dict[str, Any] = {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
    }
    given = known[field]
    assert field not in render().pod["spec"]
    assert render(**{field: given}).pod["spec"][field] == given


def test_replicas_are_spread_over_nodes_by_default() -> None:
    """The constraint needs a labelSelector to count pods."""
    ours = {"matchLabels": render().one("Deployment")["spec"]["selector"]["matchLabels"]}
    (usual,) = render().pod["spec"]["topologySpreadConstraints"]
    assert (usual["topologyKey"], usual["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert usual["labelSelector"] == ours
    zones = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    theirs = {"matchLabels": {"team": "ml"}}
    given = [zones, {**zones, "labelSelector": theirs}]
    assert render(topologySpreadConstraints=given).pod["spec"]["topologySpreadConstraints"] == [
        {**zones, "labelSelector": ours},
        {**zones, "labelSelector": theirs},
    ]


def test_names_of_a_long_release_name_are_truncated() -> None:
    """Helm allows 53 characters for a release; Service names and label values are limited to 63."""
    rendered = render(release="r" * 53, metrics={"enabled": True})
    named = [
        found["metadata"]["name"] for found in rendered.objects if found["kind"] in {"Service", "Deployment", "Secret"}
    ]
    assert len(named) == 4
    assert max(map(len, named)) <= 63


def test_openshift_assigns_user_ids_if_the_values_are_empty() -> None:
    """Restricted-v2 rejects a fixed user; runAsNonRoot stays."""
    usual = render()
    assert usual.pod["spec"]["securityContext"]["runAsUser"] == 65532
    assert usual.flags["--stage-user"] == "65532"
    rendered = render(runAsUser="", stages={"runAsUser": ""})
    assert rendered.pod["spec"]["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert rendered.flags["--stage-user"] == ""
    assert render(stages={"runAsUser": 1000680000}).flags["--stage-user"] == "1000680000"
