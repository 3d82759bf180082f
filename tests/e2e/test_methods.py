"""Every method from a manifest, with all that a spec may refer to: data on the Hub, ConfigMaps, a volume for models."""

import json
from typing import Any

import pytest
from e2e.world import STEPS, World
from tunemill_api.status import Phase
from tunemill_dev.testbed import json_lines
from tunemill_dev.tiny import TOOLS, rows

RUN_SECONDS = 900
# Not of the fixtures: building the images for the first time takes minutes.
pytestmark = pytest.mark.timeout(1500, func_only=True)

OFFERED = ("get_weather", "set_timer")
CLAIM, CONFIG = "models", "agreed"
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
    """Make a data set whose rows carry no tools, and return its uri."""
    asked = [row for row in rows(400, talk=0) if row["messages"][-1]["tool_calls"][0]["function"]["name"] in OFFERED]
    lines = json_lines({"messages": row["messages"]} for row in asked[:60])
    hub, name = world.testbed.hub.client(), f"{world.repository}-rows"
    hub.create_repo(name, repo_type="dataset", private=False)
    hub.upload_file(path_or_fileobj=lines.encode(), path_in_repo="train.jsonl", repo_id=name, repo_type="dataset")
    return f"hf://{name}"


def test_every_method_publishes_from_a_manifest(world: World):
    """Side by side, on one shared volume of models, with tools and templates that the namespace's ConfigMaps hold."""
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
    runs = {
        name: world.apply(name, **shared, **spec, publish={"repository": f"{world.repository}-{name}"})
        for name, spec in SPECS.items()
    }
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
