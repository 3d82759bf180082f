"""Decides which artifacts are published, and to which repositories."""

from dataclasses import dataclass

from tunemill_api.finetune import FineTuneSpec
from tunemill_api.publish import Artifact, Publish, ServingTarget
from tunemill_api.training import AdapterMethod

_MERGED = "-merged"
_GGUF = "-GGUF"
"""The suffix of most GGUF repositories on the Hub. The repository is separate because `llama-server -hf` and Ollama
look for GGUF files by repository, and because users of Transformers would download the weights twice."""


@dataclass(frozen=True)
class Artifacts:
    """The repositories of a release. An empty name means that the artifact is not published.

    Attributes:
        adapter: the repository of the adapter.
        whole: the repository of the full model: merged, or trained with the method Full.
        report: whether report.html is published, too.
        gguf: the repository of the GGUF file.
        image: the container image with the full model, registry/repository without a tag.
    """

    adapter: str
    whole: str
    report: bool
    gguf: str = ""
    image: str = ""

    @property
    def needs_whole(self) -> bool:
        """Whether the full model is needed for something that is published."""
        return bool(self.whole or self.gguf or self.image)


def chosen(publish: Publish, *, only_whole: bool, servable: bool) -> Artifacts:
    """Return what is published.

    Args:
        publish: spec.publish.
        only_whole: whether training produced a full model and no adapter.
        servable: whether the server of spec.publish.serving can load the adapter.
    """
    wanted = set(publish.artifacts)
    auto, report = Artifact.AUTO in wanted, Artifact.REPORT in wanted
    gguf = publish.repository + _GGUF if Artifact.GGUF in wanted else ""
    image = image_of(publish) if Artifact.OCI in wanted else ""
    if only_whole or not (auto or Artifact.ADAPTER in wanted):
        return Artifacts(adapter="", whole=publish.repository, report=report, gguf=gguf, image=image)
    needed = auto and publish.serving is not ServingTarget.NONE and not servable
    merged = publish.repository + _MERGED if needed or Artifact.MERGED in wanted else ""
    return Artifacts(adapter=publish.repository, whole=merged, report=report, gguf=gguf, image=image)


def image_of(publish: Publish) -> str:
    """Return the container image of spec.publish.oci, registry/repository without a tag; empty without one."""
    return f"{publish.oci.registry.partition('://')[2]}/{publish.oci.repository}" if publish.oci else ""


def more_repositories(spec: FineTuneSpec, added_tokens: int) -> list[str]:
    """Return the repositories besides spec.publish.repository, as far as they are known before training.

    Prepare checks with them that the Hub token may write there.
    """
    servable = spec.publish.serving is ServingTarget.VLLM and spec.adapter.method is AdapterMethod.LORA
    only_whole = spec.adapter.method is AdapterMethod.FULL
    found = chosen(spec.publish, only_whole=only_whole, servable=servable and not added_tokens)
    return [name for name in (found.whole, found.gguf) if name not in {"", spec.publish.repository}]
