"""Builders for tests that really train: a tiny base on a local Hub, a workspace on a local S3 server, prepared rows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import huggingface_hub.constants
from huggingface_hub import HfApi
from learn.processes import started
from moto.server import ThreadedMotoServer
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import DatasetFacts, PreparedFacts
from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.local import local_hub
from tunemill_dev.tiny import rows
from tunemill_trainer.prepared import BaseModel, NewToken, PreparedWriter, Tokens
from tunemill_trainer.storage import s3
from tunemill_trainer.storage.bucket import BucketPrefix
from tunemill_trainer.storage.credentials import S3Credentials
from tunemill_trainer.storage.workspace import Workspace

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

BASE = "acme/tiny"
TAGS = ("<tool_call>", "</tool_call>")
ALL_TAGS = ("<tools>", "</tools>", *TAGS)
"""Of the Hermes format, with those around the tools that are offered."""
PREPARED_KEY = "0123456789abcdef"
_HUB_TOKEN = "a-token-of-alice"


@dataclass(frozen=True)
class World:
    """The services that a run needs, and the folder with its credentials."""

    s3_url: str
    bucket: str
    hub_url: str
    secrets: Path

    def spec(self, *, lora: dict[str, object] | None = None, **training: object) -> FineTuneSpec:
        """Return a spec that trains the tiny base on the CPU; keywords are fields of spec.training."""
        return FineTuneSpec.model_validate(
            {
                "hub": {"endpoint": self.hub_url},
                "baseModel": {"id": BASE},
                "dataset": {"uri": f"s3://{self.bucket}/calls.jsonl", "endpoint": self.s3_url, "region": "us-east-1"},
                "training": {"batchSize": 8, "learningRate": "5e-3", "maxLength": 512, **training},
                "adapter": {"lora": {"alpha": 32, **(lora or {})}},
                "publish": {"repository": "acme/tuned"},
                "compute": {"gpus": 0},
            }
        )

    def workspace(self) -> Workspace:
        """Return the workspace of those specs."""
        return Workspace(BucketPrefix(self.s3(), f"s3://{self.bucket}/tunemill/", "spec.workspace"))

    def s3(self) -> "S3Client":
        """Return a client of the S3 server."""
        return s3.client(self.s3_url, "us-east-1", S3Credentials("key", "secret"))


@contextmanager
def a_world(folder: Path, base: Path | None, *, bucket: str = "") -> Iterator[World]:
    """Serve S3 with an empty bucket, and a Hub with the base model, until the block ends.

    Args:
        folder: holds the credentials, and the Hub's repositories in `hub/`.
        base: the folder of the base model; None when `hub/` has it already.
        bucket: its name; empty means a new one.
    """
    secrets = folder / "secrets"
    for purpose in ("dataset", "workspace"):
        (secrets / purpose).mkdir(parents=True)
        (secrets / purpose / "AWS_ACCESS_KEY_ID").write_text("key")
        (secrets / purpose / "AWS_SECRET_ACCESS_KEY").write_text("secret\n")
    for purpose in ("hub-read", "hub-write"):
        (secrets / purpose).mkdir()
        (secrets / purpose / "token").write_text(_HUB_TOKEN)
    # The local Hub does not support Xet; the variable may be set too late, as a test may have imported the library.
    huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    accounts = Accounts.model_validate(
        {
            "users": {"alice": {"acme": "write"}},
            "tokens": [{"value": _HUB_TOKEN, "user": "alice", "role": "write"}],
        }
    )
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        # All of moto's servers in a process share their buckets.
        bucket = bucket or f"team-{uuid4().hex[:8]}"
        with local_hub(accounts, data=folder / "hub") as hub:
            world = World(url, bucket, hub.url, secrets)
            world.s3().create_bucket(Bucket=bucket)
            if base is not None:
                api = HfApi(endpoint=hub.url, token=_HUB_TOKEN)
                api.create_repo(BASE)
                api.upload_folder(repo_id=BASE, folder_path=base)
            yield world
    finally:
        server.stop()


def prepare(world: World, base: Path, folder: Path, *, extend: bool, count: int = 320) -> PreparedFacts:
    """Commit a small output of prepare: a request and a call, without the schemas of tools."""
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    before = len(tokenizer)
    if extend:
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    added = tuple(NewToken(before + at, tag) for at, tag in enumerate(TAGS)) if extend else ()
    stop = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    tokens = Tokens("Extend" if extend else "Reuse", added, (stop, 1), tokenizer.pad_token_id, len(tokenizer))
    examples = [example(row) for row in rows(count, seed=3, talk=0)]
    revision = HfApi(endpoint=world.hub_url, token=_HUB_TOKEN).model_info(BASE).sha
    with PreparedWriter(folder) as writer:
        for prompt, answer in examples:
            before_answer = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            spoken = tokenizer(answer, add_special_tokens=False)["input_ids"]
            writer.add_example(before_answer + spoken, [-100] * len(before_answer) + spoken)
        writer.describe(tokens, BaseModel(BASE, str(revision)), {})
    tokenizer.save_pretrained(folder / "tokenizer")
    facts = PreparedFacts(
        key=PREPARED_KEY,
        base_model_revision=str(revision),
        dataset_digest="0" * 64,
        tokenizer_mode=tokens.mode,
        added_tokens=len(added),
        dataset=DatasetFacts(format="OpenAI", rows=count, train_rows=count, evaluation_rows=0),
    )
    world.workspace().commit(Stage.PREPARE, PREPARED_KEY, folder, facts)
    return facts


def example(row: dict) -> tuple[str, str]:
    """Return a row of the tiny data as prompt and answer."""
    question, call = row["messages"][1]["content"], row["messages"][2]["tool_calls"][0]["function"]
    body = json.dumps({"name": call["name"], "arguments": json.loads(call["arguments"])})
    prompt = f"<bos><start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
    return prompt, f"{TAGS[0]}{body}{TAGS[1]}<end_of_turn>"


def run_spec(spec: FineTuneSpec, prepared: PreparedFacts | None) -> RunSpec:
    """Return the run of a spec."""
    return RunSpec(namespace="team-a", name="tools", run_id="r1", spec=spec, prepared=prepared)


@dataclass(frozen=True)
class Ended:
    """The result of a stage process."""

    code: int
    report: StageReport | None
    log: str


def run_stage(
    stage: Stage,
    world: World,
    run: RunSpec,
    work: Path,
    *,
    watch: Callable[[str], int | None] = lambda _line: None,
    environment: dict[str, str] | None = None,
) -> Ended:
    """Run a stage as a pod does: a process of its own, one thread.

    Args:
        stage: which.
        world: its services.
        run: the run of the stage.
        work: its folder; a new pod has a new one.
        watch: sees every line of the log, and returns a signal to send, if any.
        environment: more variables.
    """
    work.mkdir(parents=True, exist_ok=True)
    (work / "run.json").write_text(run.model_dump_json(by_alias=True))
    report = work / "report.json"
    report.unlink(missing_ok=True)
    arguments = [stage.value, "--run-spec", str(work / "run.json"), "--work", str(work), "--report", str(report)]
    variables = {"OMP_NUM_THREADS": "1"} | os.environ | {"TUNEMILL_SECRETS_DIR": str(world.secrets)}
    lines = []
    with started(arguments, variables | (environment or {})) as process:
        for line in process.lines():
            lines.append(line)
            if (number := watch(line)) is not None:
                process.send_signal(number)
        code = process.wait(60)
    text = report.read_text() if report.exists() else ""
    return Ended(code, StageReport.model_validate_json(text) if text else None, "".join(lines))


def run_command(
    arguments: list[str], environment: Mapping[str, str], folder: Path | None = None, *, cold: bool = False
) -> Ended:
    """Run `tunemill-trainer` with these arguments.

    Args:
        arguments: of the command line.
        environment: more variables.
        folder: to run it in.
        cold: as users start it, in a Python that has imported nothing; else it and its stages are forked.
    """
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    if cold:
        command = [sys.executable, "-m", "tunemill_trainer", *arguments]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ended = subprocess.run(command, cwd=folder, env=variables, check=False, **output)
        return Ended(ended.returncode, None, ended.stdout)
    with started(arguments, variables, folder) as process:
        log = "".join(process.lines())
        return Ended(process.wait(60), None, log)


def executed(log: str) -> list[str]:
    """Return which stages the command `run` executed, by the summary at its end."""
    summary = log.rpartition("STAGE ")[2].splitlines()
    return [line.split()[0] for line in summary if "executed" in line]
