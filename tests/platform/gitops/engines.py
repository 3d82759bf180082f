"""How GitOps engines evaluate objects and samples, by their own code: the Go module dev/cluster/modules/gitops."""

import functools
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemill_dev.cluster import binaries

REPOSITORY = Path(__file__).parents[3]
KIT = REPOSITORY / "crds" / "gitops"
ARGOCD_CM = KIT / "argocd" / "argocd-cm.yaml"
FLUX_FINETUNES = KIT / "flux" / "finetunes.yaml"
Json = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The health of an object in one engine."""

    status: str
    message: str


def health(objects: Iterable[Json], flux: Path) -> list[dict[str, Verdict]]:
    """Return the health of each object in argo, flux and kstatus; `flux` is a Kustomization with health expressions."""
    answers = json.loads(_ask("health", str(ARGOCD_CM), str(flux), objects=objects))
    return [{engine: Verdict(**verdict) for engine, verdict in answer.items()} for answer in answers]


def out_of_sync(kubeconfig: Path, manifests: Iterable[Json]) -> list[Json]:
    """Return the differences that Argo CD shows, in any of its ways to compare."""
    differences: list[Json] = json.loads(_ask("drift", str(kubeconfig), str(ARGOCD_CM), objects=manifests))
    return differences


def kinds_of(paths: Iterable[Path]) -> list[str]:
    """Return the kinds of the documents of these files, decoded strictly by Argo CD and Flux."""
    kinds: list[str] = json.loads(_ask("check", *map(str, paths)))
    return kinds


@functools.cache
def _program() -> Path:
    return binaries.ensure([binaries.GITOPS])[binaries.GITOPS.name] / "gitops"


def _ask(*arguments: str, objects: Iterable[Json] = ()) -> str:
    documents = "\n".join(json.dumps(body) for body in objects)
    done = subprocess.run([_program(), *arguments], input=documents, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
