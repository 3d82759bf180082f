"""A cluster accepts the objects of serving.yaml, also if only restricted pods are admitted."""

import pytest
import yaml
from chart.releases import TEAMS, Cluster
from tunemill_api.publish import ServingTarget
from tunemill_dev.cluster import binaries
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.release.artifacts import Artifacts
from tunemill_trainer.release.contract import Contract
from tunemill_trainer.release.manifests import serving_manifests
from tunemill_trainer.release.servability import Verdict

KSERVE = "github.com/kserve/kserve@v0.20.0"
CRD = "serving.kserve.io_llminferenceservices.yaml"


@pytest.fixture(scope="module")
def kserve(bare_cluster: Cluster) -> Cluster:
    """The cluster with KServe's CRD, in the version used by serving.yaml: with all versions it is too large."""
    source = binaries.source_of(binaries.KUEUE, KSERVE) / "config" / "crd" / "full" / "llmisvc" / CRD
    crd = yaml.load(source.read_text(), yaml.CSafeLoader)
    crd["spec"]["versions"] = [version for version in crd["spec"]["versions"] if version["storage"]]
    bare_cluster.install_crd(yaml.dump(crd, Dumper=yaml.CSafeDumper))
    return bare_cluster


@pytest.mark.parametrize("place", ["acme/support-tools", "file:///results/support-tools"])
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "full model"])
def test_the_api_server_accepts_the_serving_objects(kserve: Cluster, place: str, adapter: bool) -> None:
    """Fields and values are valid, and the pod meets the policy `restricted`."""
    artifacts = Artifacts(place if adapter else "", "" if adapter else place, report=False)
    base = BaseModel("google/gemma-2-2b-it", "ab" * 20)
    contract = Contract(ServingTarget.VLLM, base, artifacts, Verdict((), 16), ReplyFormat.HERMES)
    text = serving_manifests(contract.launch("v1"), place, "v1", ReplyFormat.HERMES)
    done = kserve.kubectl(
        *("create", "--dry-run=server", "--validate=strict", "--namespace", TEAMS[0], "--filename=-"), stdin=text
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("created (server dry run)") == 3
