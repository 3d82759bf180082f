"""Every method from a manifest, with all kinds of references: data on the Hub, ConfigMaps, a volume for models."""

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e.world import STEPS, World
from learn.registries import a_registry
from tunemill_api.status import Phase
from tunemill_dev.testbed import REPOSITORY_ROOT, Testbed, json_lines
from tunemill_dev.tiny import TOOLS, rows

RUN_SECONDS = 900
# Not of the fixtures: building the images for the first time takes minutes.
pytestmark = pytest.mark.timeout(1500, func_only=True)

OFFERED = ("get_weather", "set_timer")
CLAIM, CONFIG = "models", "agreed"
POD_SECONDS = 120
PAGE = REPOSITORY_ROOT / "docs" / "how-to" / "publishing.md"
TEMPLATE = """{{- bos_token -}}
{%- if tools -%}{{- '<start_of_turn>user\\nTools: ' + (tools | tojson) + '<end_of_turn>\\n' -}}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<start_of_turn>model\\n' -}}
{%- generation -%}
{{- message['content'] -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<tool_call>' + (call['function'] | tojson) + '</tool_call>' -}}
{%- endfor -%}
{{- '<end_of_turn>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<start_of_turn>user\\n' + message['content'] + '<end_of_turn>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
OWN_TEMPLATE = {"chatTemplate": {"configMapKeyRef": {"name": CONFIG, "key": "chat.jinja"}}}

SPECS: dict[str, dict[str, Any]] = {
    "rslora-int8": {
        "baseModel": {"quantization": "Int8"},
        "adapter": {"lora": {"rank": 8, "alpha": 8, "rsLora": True}},
        "tokenizer": {"mode": "Text"},
    },
    "adalora-nf4": {
        "baseModel": {"quantization": "NF4"},
        "adapter": {"method": "AdaLoRA", "adalora": {"initialRank": 8, "targetRank": 4}},
        "tokenizer": OWN_TEMPLATE,
    },
    "ia3": {"adapter": {"method": "IA3"}, "tokenizer": {**OWN_TEMPLATE, "mode": "Text"}},
    "full": {"adapter": {"method": "Full"}, "tokenizer": {"mode": "Extend"}},
}


def put_rows_on_the_hub(world: World) -> str:
    """Create a data set with rows without tools, and return its uri."""
    asked = [row for row in rows(400, talk=0) if row["messages"][-1]["tool_calls"][0]["function"]["name"] in OFFERED]
    lines = json_lines({"messages": row["messages"]} for row in asked[:60])
    hub, name = world.testbed.hub.client(), f"{world.repository}-rows"
    hub.create_repo(name, repo_type="dataset", private=False)
    hub.upload_file(path_or_fileobj=lines.encode(), path_in_repo="train.jsonl", repo_id=name, repo_type="dataset")
    return f"hf://{name}"


@pytest.fixture
def registry(testbed: Testbed, tmp_path: Path) -> Iterator[str]:
    """A registry from which the node pulls images; empty if the node is another machine."""
    if not testbed.registry:
        yield ""
        return
    with a_registry(tmp_path / "registry", login=False, address=testbed.registry) as address:
        yield address


def config_of_mounted_model(world: World, reference: str) -> dict[str, Any]:
    """Apply the pod of the page, which mounts a model as an image volume, and return the config.json that it prints."""
    (written,) = re.findall(r"( *apiVersion: v1\n *kind: Pod\n.*?)```", PAGE.read_text(), re.DOTALL)
    pod = yaml.safe_load(textwrap.dedent(written))
    pod["metadata"]["namespace"] = world.name
    pod["spec"]["containers"][0]["image"] = world.testbed.trainer_image
    pod["spec"]["volumes"][0]["image"]["reference"] = reference
    kubectl, name = world.testbed.kubectl, pod["metadata"]["name"]
    kubectl.apply(pod)
    ended = ("--for=jsonpath={.status.phase}=Succeeded", f"--timeout={POD_SECONDS}s")
    kubectl("wait", f"pod/{name}", "--namespace", world.name, *ended)
    return json.loads(kubectl("logs", name, "--namespace", world.name))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("adalora-nf4", "full"), id="adalora-nf4-full"),
        # The stages of these methods are the same, and run in tests/learn, too.
        pytest.param(("rslora-int8", "ia3"), id="rslora-int8-ia3", marks=pytest.mark.long),
    ],
)
def test_methods_publish_from_a_manifest(names: Sequence[str], world: World, registry: str, tmp_path: Path):
    """Side by side, on one shared volume of models, with tools and templates that the namespace's ConfigMaps hold.

    The complete model is also published as an image, which a pod mounts as an image volume.
    """
    testbed = world.testbed
    testbed.make_claim(CLAIM, world.name)
    texts = {"tools.json": json.dumps([TOOLS[name] for name in OFFERED]), "chat.jinja": TEMPLATE}
    metadata = {"name": CONFIG, "namespace": world.name}
    testbed.kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": texts})
    shared: dict[str, dict[str, Any]] = {
        "dataset": {"uri": put_rows_on_the_hub(world)},
        "workspace": world.workspace(),
        "tools": {"configMapKeyRef": {"name": CONFIG, "key": "tools.json"}},
        "compute": {"modelCache": {"claimName": CLAIM, "maxSize": "1Gi"}},
    }
    published: dict[str, dict[str, Any]] = {name: {"repository": f"{world.repository}-{name}"} for name in names}
    if registry and "full" in names:
        image = {"registry": f"http://{registry}", "repository": world.name}
        published["full"] |= {"artifacts": ["Auto", "OCI"], "oci": image}
    runs = {name: world.apply(name, **shared, **SPECS[name], publish=published[name]) for name in names}
    for name, run in runs.items():
        status = run.reach(Phase.SUCCEEDED, RUN_SECONDS)
        assert status.trained.steps == STEPS
        assert status.prepared.dataset.tools == len(OFFERED)
        assert status.prepared.tokenizer_mode == SPECS[name]["tokenizer"].get("mode", "Extend")
        files = {file.rfilename for file in testbed.hub.client().model_info(status.published.repository).siblings}
        assert ("model.safetensors" if name == "full" else "adapter_model.safetensors") in files
        (train,) = run.pods("train")
        mounted = [volume["persistentVolumeClaim"] for volume in train["spec"]["volumes"] if volume["name"] == "models"]
        assert mounted == [{"claimName": CLAIM}]
    if registry and "full" in names:
        full = runs["full"].status().published
        pushed = testbed.hub.client().hf_hub_download(full.repository, "config.json", local_dir=tmp_path)
        assert config_of_mounted_model(world, full.oci) == json.loads(Path(pushed).read_text())
