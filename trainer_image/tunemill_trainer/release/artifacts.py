"""Decides which artifacts are published, and to which repositories."""

from dataclasses import dataclass

from tunemill_api.finetune import FineTuneSpec
from tunemill_api.publish import Artifact, Publish, ServingTarget
from tunemill_api.training import AdapterMethod

_MERGED = "-merged"


@dataclass(frozen=True)
class Artifacts:
    """The repositories of a release. An empty name means that the artifact is not published.

    Attributes:
        adapter: the repository of the adapter.
        whole: the repository of the full model: merged, or trained with the method Full.
        report: whether report.html is published, too.
    """

    adapter: str
    whole: str
    report: bool


def chosen(publish: Publish, *, only_whole: bool, servable: bool) -> Artifacts:
    """Return what is published.

    Args:
        publish: spec.publish.
        only_whole: whether training produced a full model and no adapter.
        servable: whether the server of spec.publish.serving can load the adapter.
    """
    wanted = set(publish.artifacts)
    auto, report = Artifact.AUTO in wanted, Artifact.REPORT in wanted
    if only_whole or not (auto or Artifact.ADAPTER in wanted):
        return Artifacts(adapter="", whole=publish.repository, report=report)
    needed = auto and publish.serving is not ServingTarget.NONE and not servable
    merged = publish.repository + _MERGED if needed or Artifact.MERGED in wanted else ""
    return Artifacts(adapter=publish.repository, whole=merged, report=report)


def second_repository(spec: FineTuneSpec, added_tokens: int) -> str:
    """Return the repository of the merged model as far as it is known before training; empty when there is none.

    Prepare checks with it that the Hub token may write there.
    """
    servable = spec.publish.serving is ServingTarget.VLLM and spec.adapter.method is AdapterMethod.LORA
    only_whole = spec.adapter.method is AdapterMethod.FULL
    found = chosen(spec.publish, only_whole=only_whole, servable=servable and not added_tokens)
    return found.whole if found.adapter else ""
