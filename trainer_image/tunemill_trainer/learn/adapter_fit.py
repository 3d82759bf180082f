"""Compares the tensors of an adapter with those that PEFT builds on the base model, without weights and without a GPU.

`stages.start_adapter.fitted` runs it as a child process, because prepare does without torch.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import get_peft_model, get_peft_model_state_dict
from transformers import AutoConfig, PreTrainedConfig
from tunemill_api.training import Adapter

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn.adapter import adapter_config, difference
from tunemill_trainer.learn.language_part import auto_class
from tunemill_trainer.learn.memory_plan import MOST_LAYERS
from tunemill_trainer.prepared import NewToken, Tokens

Shapes = Mapping[str, tuple[int, ...]]


def first_fitting(
    config: PreTrainedConfig, adapters: Sequence[Adapter], added: Sequence[NewToken], shapes: Shapes
) -> int:
    """Return the position of the first settings with which PEFT builds tensors of these names and shapes.

    Args:
        config: configuration of the base model.
        adapters: settings to try.
        added: the tokens that were added to the vocabulary.
        shapes: the shape of each tensor of the adapter by name.

    Raises:
        ValueError: none fits; the message has the first difference to the last ones. Or the model has too many layers.
    """
    layers = config.get_text_config().num_hidden_layers
    if layers > MOST_LAYERS:
        raise ValueError(f"the config.json of the base model has {layers} layers")
    problem = ""
    for position, adapter in enumerate(adapters):
        try:
            problem = difference(_built(config, adapter, added), shapes)
        except StageError as error:
            problem = error.message
        if not problem:
            return position
    raise ValueError(problem)


def _built(config: PreTrainedConfig, adapter: Adapter, added: Sequence[NewToken]) -> Shapes:
    tokens = Tokens("Extend" if added else "Reuse", tuple(added), (), 0, 0)
    with torch.device("meta"):
        model = auto_class(config.to_dict()).from_config(config)
        model = get_peft_model(model, adapter_config(adapter, model, tokens, steps=1))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def main() -> None:
    """Read a request as JSON from stdin, and write the position of the fitting settings, or the problem, to stdout."""
    request = json.load(sys.stdin)
    added = [NewToken(token["id"], token["token"], tuple(token["pieces"])) for token in request["added"]]
    shapes = {name: tuple(shape) for name, shape in request["shapes"].items()}
    adapters = [Adapter.model_validate(adapter) for adapter in request["specs"]]
    config = AutoConfig.from_pretrained(Path(request["folder"]), trust_remote_code=False)
    text = config.get_text_config()
    text.vocab_size = max([text.vocab_size, *(token.id + 1 for token in added)])
    try:
        answer: dict[str, object] = {"fits": first_fitting(config, adapters, added, shapes)}
    except ValueError as error:
        answer = {"problem": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
