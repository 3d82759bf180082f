"""Train as an image of somebody else may do it: the standard library, boto3, and nothing of Tunemill's."""

import hashlib
import json
import os
import struct
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import boto3

began, run = datetime.now(UTC), json.loads(Path(sys.argv[1]).read_text())
spec, prepared, key = run["spec"], run["prepared"], run["keys"]["train"]
secrets = Path(os.environ.get("TUNEMILL_SECRETS_DIR", "/var/run/tunemill/secrets"))
aws = {file.name.lower(): file.read_text().strip() for file in (secrets / "workspace").glob("AWS_*")}
s3 = boto3.client("s3", endpoint_url=spec["workspace"]["endpoint"] or None, region_name="us-east-1", **aws)
bucket, _, prefix = spec["workspace"]["uri"].removeprefix("s3://").partition("/")
files: dict[str, bytes] = {}

# What prepare left, by its manifest: the tokenizer goes beside the adapter.
base = f"{prefix}prepare/{prepared['key']}/"
manifest = json.load(s3.get_object(Bucket=bucket, Key=f"{base}manifest.json")["Body"])
for path in (file["path"] for file in manifest["files"] if file["path"].startswith("tokenizer/")):
    files[f"adapter/{path.partition('/')[2]}"] = s3.get_object(
        Bucket=bucket, Key=f"{base}{manifest['attempt']}/{path}"
    )["Body"].read()

# The base model's shapes, from the Hub, with the token for reading; and an adapter of rank 1 that changes nothing yet.
url = f"{spec['hub']['endpoint'] or 'https://huggingface.co'}/{spec['baseModel']['id']}/resolve/{prepared['baseModelRevision']}/config.json"
authorization = {"Authorization": f"Bearer {(secrets / 'hub-read' / 'token').read_text().strip()}"}
config = json.load(urllib.request.urlopen(urllib.request.Request(url, headers=authorization), timeout=30))
name, wide = "base_model.model.model.layers.0.self_attn.q_proj", config["num_attention_heads"] * config["head_dim"]
shapes = {f"{name}.lora_A.weight": [1, config["hidden_size"]], f"{name}.lora_B.weight": [wide, 1]}
header, body = {}, b""
for tensor, shape in shapes.items():
    end = len(body) + 4 * shape[0] * shape[1]
    header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), end]}
    body += struct.pack("<f", 0.0) * (shape[0] * shape[1])
head = json.dumps(header).encode()
files["adapter/adapter_model.safetensors"] = struct.pack("<Q", len(head)) + head + body
lora = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 1,
    "lora_alpha": 1,
    "target_modules": ["q_proj"],
    "layers_to_transform": [0],
}
files["adapter/adapter_config.json"] = json.dumps({**lora, "base_model_name_or_path": spec["baseModel"]["id"]}).encode()
files["training.jsonl"] = b'{"step": 1, "epoch": 1.0, "loss": 2.5}\n'
files["held-out.jsonl"] = b""
files["loss.png"] = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001485afd520000000049454e44ae426082"
)

# The files below an attempt of their own, the manifest last and only if there is none: then the output is there.
place = f"{prefix}train/{key}/"
for path, content in files.items():
    s3.put_object(Bucket=bucket, Key=f"{place}foreign/{path}", Body=content)
facts = {
    "steps": 1,
    "loss": "2.5",
    "trainSeconds": 1,
    "device": "cpu",
    "adapter": f"s3://{bucket}/{place}foreign/adapter",
}
listed = [
    {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for path, content in sorted(files.items())
]
output = {"stage": "train", "key": key, "attempt": "foreign", "files": listed, "facts": facts}
s3.put_object(Bucket=bucket, Key=f"{place}manifest.json", Body=json.dumps(output).encode(), IfNoneMatch="*")
report = {
    "stage": "train",
    "key": key,
    "executed": True,
    "startedAt": began.isoformat(),
    "finishedAt": datetime.now(UTC).isoformat(),
}
Path(sys.argv[2]).write_text(json.dumps(report | {"trained": facts}))
