"""Values of Secrets are only in their files: canary values are searched in everything that stages write.

Successful runs of all four stages, and runs that fail at each of them, with errors in which libraries quote what they
sent.
"""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from learn.training import World, a_world, run_spec, run_stage
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_dev.testbed import json_lines
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base

KEYS = {"AWS_ACCESS_KEY_ID": "CANARYKEYID0001", "AWS_SECRET_ACCESS_KEY": "canary/s3+secret=77aa"}
TOKEN = "a-token-of-alice"  # the local Hub knows no other
BROKEN_TOKEN = "canary-hub-4be1\ncanary-tail-90c2"
PROXY_PASSWORD = "canary-proxy-0c4e"
SIGNING_KEY = ed25519.Ed25519PrivateKey.generate().private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
CANARIES = [
    *KEYS.values(),
    TOKEN,
    *BROKEN_TOKEN.split(),
    PROXY_PASSWORD,
    "canary%2Fs3%2Bsecret%3D77aa",
    "canary",
    SIGNING_KEY.decode().splitlines()[1],
]


class Search:
    """Runs stages and collects their output."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.said: dict[str, bytes] = {}
        self._folder = folder

    def run(self, name: str, stage: Stage, run: RunSpec, environment: dict[str, str] | None = None) -> int:
        """Run a stage, keep its log and its report, and return its exit code."""
        work = self._folder / f"{name}-{stage}"
        ended = run_stage(stage, self.world, run, work, environment=environment)
        self.said[f"the log of {name} {stage}"] = ended.log.encode()
        self.said[f"the report of {name} {stage}"] = (work / "report.json").read_bytes()
        if ended.report and ended.report.prepared:
            self.prepared = ended.report.prepared
        return ended.code

    def everything(self) -> dict[str, bytes]:
        """Return logs, reports, all objects of the workspace and all content pushed to the Hub, with their names."""
        s3, found = self.world.s3(), dict(self.said)
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=self.world.bucket):
            for item in page["Contents"]:
                body = s3.get_object(Bucket=self.world.bucket, Key=item["Key"])["Body"].read()
                found[f"s3://{item['Key']}"] = item["Key"].encode() + body
        for path in (self._folder / "world" / "hub").rglob("*"):
            if path.is_file():
                found[str(path)] = path.read_bytes()
        return found


def test_no_value_of_a_secret_leaves_its_file(tmp_path: Path) -> None:
    """Neither in a log, a report, the workspace nor the Hub, for successful runs and for tracebacks."""
    with a_world(tmp_path / "world", cached_base("gemma2", steps=0)) as world:
        for purpose in ("dataset", "workspace"):
            for name, value in KEYS.items():
                (world.secrets / purpose / name).write_text(value)
        (world.secrets / "signing").mkdir()
        (world.secrets / "signing" / "key.pem").write_bytes(SIGNING_KEY)
        world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=json_lines(rows(60, seed=5)).encode())
        search = Search(world, tmp_path)
        fields = world.spec(maxSteps=2).model_dump(mode="json", by_alias=True)
        fields["evaluation"] |= {"maxNewTokens": 4, "maxRows": 4, "gates": []}
        fields["publish"] |= {"artifacts": ["Adapter", "Report"], "signing": {"keySecretRef": {"name": "release-key"}}}
        run = run_spec(FineTuneSpec.model_validate(fields), None)
        for stage in Stage:
            assert search.run("good", stage, run) == 0, search.said
            run = run.model_copy(update={"prepared": search.prepared})

        # Each stage has something to do, and fails when it asks the Hub: the library quotes what it could not send.
        for purpose in ("hub-read", "hub-write"):
            (world.secrets / purpose / "token").write_text(BROKEN_TOKEN)
        fields["training"]["learningRate"] = "4e-3"
        other = run.model_copy(update={"spec": FineTuneSpec.model_validate(fields)})
        assert search.run("bad", Stage.PREPARE, other) != 0
        assert search.run("bad", Stage.TRAIN, other) != 0
        fields["training"]["learningRate"] = "5e-3"
        fields["evaluation"]["maxNewTokens"] = 5
        assert (
            search.run("bad", Stage.EVALUATE, run.model_copy(update={"spec": FineTuneSpec.model_validate(fields)})) != 0
        )
        fields["evaluation"]["maxNewTokens"] = 4
        fields["publish"]["repository"] = "acme/elsewhere"
        assert (
            search.run("bad", Stage.PUBLISH, run.model_copy(update={"spec": FineTuneSpec.model_validate(fields)})) != 0
        )
        proxy = {"HTTP_PROXY": f"http://me:{PROXY_PASSWORD}@127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
        assert search.run("behind", Stage.PREPARE, run, proxy) != 0

        found = search.everything()
        assert any("README.md" in name for name in found)
        assert any(b"***" in text for name, text in found.items() if name.startswith("the log of bad")), (
            "nothing was quoted"
        )
        for name, text in found.items():
            for canary in CANARIES:
                assert canary.encode() not in text, f"{canary} is in {name}: {text[-3000:]!r}"
