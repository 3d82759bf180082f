"""What is known about one base model, from its configuration and its tokenizer: no weights are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunemill_trainer.bases import architectures, catalogue
from tunemill_trainer.bases.catalogue import Family, Template
from tunemill_trainer.chat.templates import Choice, Origin


@dataclass(frozen=True)
class FoundModel:
    """A base model as prepare sees it.

    Attributes:
        family: its family; None if it is not in the catalogue.
        model_types: `model_type` of its configuration, and of the text part of a multimodal model.
        trainable: whether it is a causal language model or has one.
        multimodal: whether it has other parts than its language model.
        call_format: the format of calls, named like vLLM's tool-call parser; empty if there is none.
        own_template: whether its own chat template is used.
        rejected_because: why its own chat template is not used; empty if it is.
        reasoning: vLLM's reasoning parser; empty if it does not reason.
        stops: the tokens that end a reply.
        fp16: whether FP16 is wide enough.
        served: what vLLM serves: adapter or merged.
        assumed: what is assumed because the model is not in the catalogue; empty if it is.
    """

    family: Family | None
    model_types: tuple[str, ...]
    trainable: bool
    multimodal: bool
    call_format: str
    own_template: bool
    rejected_because: str
    reasoning: str
    stops: tuple[str, ...]
    fp16: bool
    served: str
    assumed: tuple[str, ...]


def describe(config: Mapping[str, Any], template: Template, choice: Choice, stops: Sequence[str]) -> FoundModel:
    """Return what is known about a base model.

    Args:
        config: its config.json.
        template: its own chat template.
        choice: the chat template that is used.
        stops: the tokens that end a reply with that template.
    """
    family, types = catalogue.family_of(config, template), catalogue.model_types(config)
    call_format = choice.encoder.call_format.value
    return FoundModel(
        family=family,
        model_types=tuple(sorted(types)),
        trainable=architectures.is_trainable(config),
        multimodal=architectures.is_multimodal(config),
        call_format=call_format,
        own_template=choice.origin is Origin.BASE,
        rejected_because=choice.rejected_because,
        reasoning=family.reasoning_parser(catalogue.text_of(template)) if family else "",
        stops=tuple(stops),
        fp16=not types & catalogue.types_out_of_range_in_fp16(),
        served="merged" if family and types & set(family.merged) else "adapter",
        assumed=() if family else tuple(_assumptions(call_format, stops, choice.origin)),
    )


_SOURCES = {
    Origin.BASE: "found by rendering calls with the base model's chat template",
    Origin.ADAPTER: "found by rendering calls with the chat template of spec.baseModel.adapter",
    Origin.USER: "found by rendering calls with the template of spec.tokenizer.chatTemplate",
    Origin.TUNEMILL: "that of Tunemill's template",
}


def _assumptions(call_format: str, stops: Sequence[str], origin: Origin) -> list[str]:
    """Return what is assumed about a base model that is not in the catalogue, one sentence each."""
    return [
        f"The call format is {call_format}, {_SOURCES[origin]}.",
        f"A reply ends with {' or '.join(stops)}.",
        "The model does not reason: no reasoning parser is set.",
        "FP16 is precise enough on GPUs without BF16.",
        "vLLM serves an adapter of all linear layers. Publish checks the layer names before it pushes.",
    ]
