"""serving.yaml: the objects have the flags of the contract, and secrets by reference only."""

import shlex
from dataclasses import replace

import pytest
import yaml
from tunemill_api.publish import ServingTarget
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.release.artifacts import Artifacts
from tunemill_trainer.release.contract import Contract
from tunemill_trainer.release.manifests import serving_manifests
from tunemill_trainer.release.servability import Verdict

COMMIT = "ab" * 20
HERMES = [*("--chat-template-content-format", "string"), "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
KINDS = ["LLMInferenceService", "Deployment", "Service"]


def manifests(
    adapter: str = "", whole: str = "", base: str = "google/gemma-2-2b-it", target: str = "vLLM", revision: str = "v1"
) -> tuple[str, list[dict]]:
    """Return serving.yaml as text and as objects."""
    model = BaseModel(base, COMMIT)
    contract = Contract(
        ServingTarget(target), model, Artifacts(adapter, whole, False), Verdict((), 16), ReplyFormat.HERMES
    )
    text = serving_manifests(contract.launch(revision), contract.served, revision, contract.call_format)
    return text, list(yaml.safe_load_all(text))


def pod_of(deployment: dict) -> dict:
    """Return the pod template's spec."""
    return deployment["spec"]["template"]["spec"]


def test_kserve_gets_base_and_adapter_at_their_commits():
    """It puts the adapter below /mnt/lora, from where vLLM takes tokenizer and chat template, too."""
    _, (service, *_) = manifests("acme/Support.Tools")
    assert service["metadata"]["name"] == "support-tools"
    assert service["spec"]["model"] == {
        "uri": f"hf://google/gemma-2-2b-it:{COMMIT}",
        "name": "google/gemma-2-2b-it",
        "lora": {"maxRank": 16, "adapters": [{"name": "Support.Tools", "uri": "hf://acme/Support.Tools:v1"}]},
    }
    (container,) = service["spec"]["template"]["containers"]
    (variable,) = container["env"]
    assert (container["name"], variable["name"]) == ("main", "VLLM_ADDITIONAL_ARGS")
    folder = "/mnt/lora/Support.Tools"
    assert shlex.split(variable["value"]) == [
        *("--tokenizer", folder, "--chat-template", f"{folder}/chat_template.jinja", "--generation-config", folder),
        *HERMES,
    ]


def test_kserve_gets_a_full_model():
    """Without adapter flags."""
    _, (service, *_) = manifests(whole="acme/tools")
    assert service["spec"]["model"] == {"uri": "hf://acme/tools:v1", "name": "tools"}
    assert service["spec"]["template"]["containers"][0]["env"][0]["value"] == shlex.join(HERMES)


def test_the_deployment_downloads_the_adapter_and_starts_the_contract():
    """The flags are those of the command, with the folder in the container."""
    _, (_, deployment, service) = manifests("acme/tools")
    pod = pod_of(deployment)
    (download,), (server,) = pod["initContainers"], pod["containers"]
    assert download["command"] == [
        *("hf", "download", "acme/tools", "--revision", "v1", "--local-dir", "/adapters/tools"),
    ]
    assert server["command"] == ["vllm", "serve"]
    assert server["args"] == [
        *("google/gemma-2-2b-it", "--revision", COMMIT, "--enable-lora", "--max-lora-rank", "16"),
        *("--lora-modules", "tools=/adapters/tools", "--tokenizer", "/adapters/tools"),
        *("--chat-template", "/adapters/tools/chat_template.jinja", "--generation-config", "/adapters/tools"),
        *HERMES,
    ]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= server.keys()
    assert server["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == server["ports"][0]["name"]


@pytest.mark.parametrize(
    "release",
    [
        {"adapter": "acme/tools"},
        {"whole": "acme/tools"},
        {"adapter": "file:///results/tools", "base": "file:///models/tiny"},
        {"adapter": "acme/tools", "base": "file:///models/tiny"},
        {"whole": "file:///results/tools", "target": "Transformers"},
    ],
    ids=str,
)
def test_every_mount_has_a_volume_and_the_token_is_a_reference(release):
    """In all containers."""
    text, objects = manifests(**release)
    assert [item["kind"] for item in objects] == KINDS
    pod = pod_of(objects[1])
    volumes = {volume["name"] for volume in pod["volumes"]}
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    assert {mount["name"] for container in containers for mount in container["volumeMounts"]} == volumes
    for container in containers:
        (token,) = [variable for variable in container["env"] if variable["name"] == "HF_TOKEN"]
        assert token["valueFrom"]["secretKeyRef"] == {"name": "hf-token", "key": "token", "optional": True}
    assert "/results" not in text
    assert "&id" not in text
    assert pod_of(objects[1])["containers"][0]["args"][-len(HERMES) :] == HERMES


def test_folders_are_in_a_volume_claim():
    """KServe and the Deployment look for them at the same place."""
    text, (service, deployment, _) = manifests("file:///results/tools", base="file:///models/tiny")
    model = service["spec"]["model"]
    assert (model["uri"], model["lora"]["adapters"][0]["uri"]) == ("pvc://models/tiny", "pvc://models/tools")
    arguments = pod_of(deployment)["containers"][0]["args"]
    assert arguments[0] == "/models/tiny"
    assert "tools=/models/tools" in arguments
    assert "initContainers" not in pod_of(deployment)
    assert "copy them into the PersistentVolumeClaim models" in text


def test_a_branch_with_a_slash_is_no_part_of_a_uri():
    """KServe would read it as another repository."""
    text, objects = manifests("acme/tools", revision="feature/x")
    assert [item["kind"] for item in objects] == KINDS[1:]
    assert "LLMInferenceService" not in text
    assert pod_of(objects[0])["initContainers"][0]["command"][4] == "feature/x"


def test_several_adapters_are_a_command_in_a_comment():
    """Of an adapter only."""
    text, _ = manifests("acme/tools")
    assert "#       --enable-lora --max-lora-rank 16 --lora-modules tools=./tools OTHER=./OTHER --max-loras 2" in text
    assert "OTHER" not in manifests(whole="acme/tools")[0]


@pytest.mark.parametrize(
    ("repository", "name"),
    [("acme/7B_tools", "model-7b-tools"), ("acme/" + "long-" * 20, "long-" * 7 + "long"), ("acme/--x--", "x")],
)
def test_names_are_dns_labels(repository, name):
    """Whatever the repository is called."""
    _, objects = manifests(whole=repository)
    assert {item["metadata"]["name"] for item in objects} == {name}


def test_a_call_format_without_a_parser_has_no_flags_for_calls():
    """Clients parse the calls from the text."""
    contract = Contract(
        ServingTarget.VLLM,
        BaseModel("a/b", COMMIT),
        Artifacts("", "acme/tools", False),
        Verdict((), 0),
        ReplyFormat.JSON,
    )
    launch = replace(contract.launch("v1"), revision="v1")
    service = next(yaml.safe_load_all(serving_manifests(launch, "acme/tools", "v1", ReplyFormat.JSON)))
    (arguments,) = service["spec"]["template"]["containers"][0]["env"]
    assert arguments["value"] == "--chat-template-content-format string"
