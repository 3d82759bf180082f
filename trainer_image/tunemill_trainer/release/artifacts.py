"""Decides what is published where."""

from dataclasses import dataclass

from tunemill_api.finetune import FineTuneSpec
from tunemill_api.publish import Artifact, Publish, ServingTarget
from tunemill_api.training import AdapterMethod

_MERGED = "-merged"


@dataclass(frozen=True)
class Artifacts:
    """Repositories by what they hold; an empty name means that it is not published.

    Attributes:
        adapter: gets the adapter.
        whole: gets the whole model.
        report: whether report.html goes with them.
    """

    adapter: str
    whole: str
    report: bool


def chosen(publish: Publish, *, only_whole: bool, servable: bool) -> Artifacts:
    """Return what is published.

    Args:
        publish: the wish.
        only_whole: training made a whole model and no adapter.
        servable: the server that is wished for takes the adapter as it is.
    """
    wanted = set(publish.artifacts)
    auto, report = Artifact.AUTO in wanted, Artifact.REPORT in wanted
    if only_whole or not (auto or Artifact.ADAPTER in wanted):
        return Artifacts(adapter="", whole=publish.repository, report=report)
    needed = auto and publish.serving is not ServingTarget.NONE and not servable
    merged = publish.repository + _MERGED if needed or Artifact.MERGED in wanted else ""
    return Artifacts(adapter=publish.repository, whole=merged, report=report)


def second_repository(spec: FineTuneSpec, added_tokens: int) -> str:
    """Return the repository of the merged model as far as prepare can tell, or an empty name.

    It is known before anything is trained, so that a token that may not write there shows at once.
    """
    servable = spec.publish.serving is ServingTarget.VLLM and spec.adapter.method is AdapterMethod.LORA
    only_whole = spec.adapter.method is AdapterMethod.FULL
    found = chosen(spec.publish, only_whole=only_whole, servable=servable and not added_tokens)
    return found.whole if found.adapter else ""
