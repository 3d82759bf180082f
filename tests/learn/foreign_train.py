"""A train stage of a custom image: a plain loop with transformers and PEFT, without Tunemill's code."""

import hashlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp

import boto3
import pyarrow.parquet
import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

began, work, output = datetime.now(UTC).isoformat(), Path(mkdtemp()), Path(mkdtemp())
run = json.loads(Path(sys.argv[1]).read_text())
spec, prepared, key = run["spec"], run["prepared"], run["keys"]["train"]
secrets = Path(os.environ.get("TUNEMILL_SECRETS_DIR", "/var/run/tunemill/secrets"))
aws = {file.name.lower(): file.read_text().strip() for file in (secrets / "workspace").glob("AWS_*")}
name, _, prefix = spec["workspace"]["uri"].removeprefix("s3://").partition("/")
bucket = boto3.resource("s3", endpoint_url=spec["workspace"]["endpoint"] or None, **aws).Bucket(name)

# What prepare left, by its manifest.
place = f"{prefix}prepare/{prepared['key']}"
left = json.load(bucket.Object(f"{place}/manifest.json").get()["Body"])
bucket.download_file(f"{place}/{left['attempt']}/train.parquet", str(work / "train.parquet"))

token, endpoint = (secrets / "hub-read" / "token").read_text().strip(), spec["hub"]["endpoint"] or None
base = snapshot_download(
    spec["baseModel"]["id"], revision=prepared["baseModelRevision"], endpoint=endpoint, token=token
)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules="all-linear"))
optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
for row in pyarrow.parquet.read_table(work / "train.parquet").to_pylist():
    loss = model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append({"step": len(losses) + 1, "loss": loss.item()})
model.save_pretrained(output / "adapter")
(output / "training.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in losses))

# The files below an attempt of their own, the manifest last and only if there is none: then the output is there.
place, files = f"{prefix}train/{key}", []
for file in (file for file in output.rglob("*") if file.is_file()):
    path, content = str(file.relative_to(output)), file.read_bytes()
    bucket.put_object(Key=f"{place}/foreign/{path}", Body=content)
    files.append({"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
facts = {"steps": len(losses), "loss": f"{losses[-1]['loss']:.4f}", "trainSeconds": 1, "device": "cpu"}
facts["adapter"] = f"s3://{name}/{place}/foreign/adapter"
manifest = {"stage": "train", "key": key, "attempt": "foreign", "files": files, "facts": facts}
bucket.put_object(Key=f"{place}/manifest.json", Body=json.dumps(manifest).encode(), IfNoneMatch="*")
report = {"stage": "train", "key": key, "executed": True, "startedAt": began, "trained": facts}
Path(sys.argv[2]).write_text(json.dumps(report | {"finishedAt": datetime.now(UTC).isoformat()}))
