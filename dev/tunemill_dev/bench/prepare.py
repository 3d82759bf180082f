"""Measures the speed of prepare, and that its memory does not grow: `python -m tunemill_dev.bench.prepare`.

It runs the whole stage as in a pod, in a separate process, from S3 and the Hub to the workspace, for 20,000 and for
200,000 rows. Memory is the proportional set size (PSS) of the process and its children, so that shared pages count
once.

Then a plain `datasets.map` with the same number of processes (`plain_map`) renders and tokenizes the same rows with the
same template. It reads them from a file and checks nothing. The ratio is prepare's rows per second divided by its rows
per second.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
from huggingface_hub import HfApi
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_trainer.process import cpus

from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.local import local_hub
from tunemill_dev.tiny import TOOLS, make_base
from tunemill_dev.tiny.data import SYSTEM

SIZES = (20_000, 200_000)
_TOKEN = "a-token-of-alice"
_BUCKET = "bench"
_POLL_SECONDS = 0.5
_ROWS = "calls.jsonl"


@dataclass(frozen=True)
class Measured:
    """One run of prepare."""

    rows: int
    seconds: float
    peak_mb: float


def measure(sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """Return rows per second of prepare and of a plain map for the largest size, and the peak MB of each size."""
    with tempfile.TemporaryDirectory() as scratch, _services(Path(scratch)) as services:
        runs = [_prepare(services, Path(scratch), size) for size in sizes]
        plain_seconds = _plain_map(Path(scratch), sizes[-1])
    return {
        "rows_per_s": round(runs[-1].rows / runs[-1].seconds),
        "plain_map_rows_per_s": round(sizes[-1] / plain_seconds),
        "ratio_to_plain_map": round(plain_seconds / runs[-1].seconds, 2),
        "peak_mb": {str(run.rows): round(run.peak_mb) for run in runs},
    }


@dataclass(frozen=True)
class _Services:
    s3_url: str
    hub_url: str
    secrets: Path

    def put_rows(self, count: int, path: Path) -> str:
        """Write rows to a file, upload it and return its uri."""
        with path.open("w") as file:
            for number in range(count):
                file.write(json.dumps(_row(number)) + "\n")
        _client(self.s3_url).upload_file(str(path), _BUCKET, path.name)
        return f"s3://{_BUCKET}/{path.name}"


def _row(number: int) -> dict[str, Any]:
    """Return a row like those of the demo: a request, two tools, and a call. All rows differ."""
    names = list(TOOLS)
    offered = [TOOLS[names[(number + step) % len(names)]] for step in range(2)]
    function = offered[0]["function"]
    kinds = {name: schema["type"] for name, schema in function["parameters"]["properties"].items()}
    arguments = {name: number % 97 if kind == "integer" else f"item {number}" for name, kind in kinds.items()}
    call = {"id": "c1", "type": "function", "function": {"name": function["name"], "arguments": json.dumps(arguments)}}
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Request {number}: please {function['description'].lower()}."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": offered,
    }


@contextmanager
def _services(folder: Path) -> Iterator[_Services]:
    """Serve S3 and a Hub with a base model until the block ends."""
    from moto.server import ThreadedMotoServer

    secrets = folder / "secrets"
    for purpose in ("dataset", "workspace"):
        (secrets / purpose).mkdir(parents=True)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            (secrets / purpose / name).write_text("key")
    for purpose in ("hub-read", "hub-write"):
        (secrets / purpose).mkdir()
        (secrets / purpose / "token").write_text(_TOKEN)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # logs one line per request
    huggingface_hub.constants.HF_HUB_DISABLE_XET = True  # the local Hub does not support Xet
    accounts = Accounts.model_validate(
        {"users": {"alice": {"acme": "write"}}, "tokens": [{"value": _TOKEN, "user": "alice", "role": "write"}]}
    )
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        _client(url).create_bucket(Bucket=_BUCKET)
        with local_hub(accounts, data=folder / "hub") as hub:
            api = HfApi(endpoint=hub.url, token=_TOKEN)
            api.create_repo("acme/tiny")
            api.upload_folder(repo_id="acme/tiny", folder_path=make_base(folder / "base", steps=0))
            yield _Services(url, hub.url, secrets)
    finally:
        server.stop()


def _client(url: str) -> Any:  # noqa: ANN401 - boto3 ships no types
    import boto3

    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="key"
    )


def _prepare(services: _Services, folder: Path, rows: int) -> Measured:
    work = _work(folder, rows)
    work.mkdir()
    s3 = {"endpoint": services.s3_url, "region": "us-east-1"}
    spec = FineTuneSpec.model_validate(
        {
            "hub": {"endpoint": services.hub_url},
            "baseModel": {"id": "acme/tiny"},
            "dataset": {"uri": services.put_rows(rows, work / _ROWS), **s3},
            "workspace": {"uri": f"s3://{_BUCKET}/tunemill/", **s3},
            "publish": {"repository": "acme/tuned"},
            "compute": {"gpus": 0},
        }
    )
    run = RunSpec(namespace="bench", name="bench", run_id="bench", spec=spec)
    (work / "run.json").write_text(run.model_dump_json(by_alias=True))
    command = [sys.executable, "-m", "tunemill_trainer", "prepare", "--run-spec", str(work / "run.json")]
    command += ["--work", str(work), "--report", str(work / "report.json")]
    environment = os.environ | {"TUNEMILL_SECRETS_DIR": str(services.secrets)}
    began, peak = time.monotonic(), 0.0
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _memory_mb(process.pid))
            time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"prepare ended with code {process.returncode}:\n{(work / 'log').read_text()[-4000:]}")
    return Measured(rows, seconds, peak)


def _plain_map(folder: Path, rows: int) -> float:
    """Return the seconds that a plain map takes for the prepared rows."""
    work = _work(folder, rows)
    command = [sys.executable, "-m", "tunemill_dev.bench.plain_map", str(work / _ROWS)]
    command += [str(work / "prepare" / "output" / "tokenizer"), str(cpus.available())]
    environment = os.environ | {"HF_HOME": str(work / "huggingface"), "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode or f"{rows} rows" not in ended.stdout:
        raise RuntimeError(f"the plain map ended with code {ended.returncode}:\n{ended.stderr[-4000:]}")
    return time.monotonic() - began


def _work(folder: Path, rows: int) -> Path:
    return folder / f"work-{rows}"


def _memory_mb(process: int) -> float:
    """Return the proportional set size of a process and its children."""
    total = 0.0
    try:
        smaps = Path(f"/proc/{process}/smaps_rollup").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # the process has just ended
    for line in smaps.splitlines():
        if line.startswith("Pss:"):
            total = int(line.split()[1]) / 1024
    return total + sum(_memory_mb(int(child)) for child in children)


if __name__ == "__main__":
    print(json.dumps(measure(tuple(int(size) for size in sys.argv[1:]) or SIZES), indent=2))
