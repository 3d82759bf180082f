"""Proves that what lies on the Hub is what was trained: downloaded and loaded as a user would, it must answer the same.

Both models are asked the same prompts, one model after the other, so that memory for one is enough. They compute in the
same number format on the same processor, so even a tiny difference means that they are not the same.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import Case, Tokens

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""The largest difference of two logits that is still called equal."""
_PROMPTS = 4
_NEW_TOKENS = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Behaviour:
    """What a model does with the prompts of a proof.

    Attributes:
        prompt_ids: the token ids of each prompt, by its own tokenizer and chat template.
        replies: the token ids of each greedy reply.
        logits: a tensor a prompt, tokens of the reply by vocabulary, 32-bit.
    """

    prompt_ids: list[list[int]]
    replies: list[list[int]]
    logits: list[torch.Tensor]


def probes(cases: Iterable[Case]) -> list[Case]:
    """Return the cases to ask: the shortest, as a proof on a CPU should not take long."""
    return sorted(cases, key=lambda case: len(case.prompt_ids))[:_PROMPTS]


def trained_behaviour(
    base: Path, adapter: Path, tokens: Tokens, cases: list[Case], check_stop: Callable[[], None]
) -> Behaviour:
    """Ask the adapter from the workspace, on the base model in the folder `base`."""
    import torch
    from transformers import AutoConfig

    from tunemill_trainer.learn import models
    from tunemill_trainer.learn.devices import Device

    dtype = AutoConfig.from_pretrained(base).dtype or torch.float32
    model = models.load_base(base, Device("cpu", "cpu"), dtype)
    models.extend_vocabulary(model, tokens)
    model = models.load_adapter(model, adapter)
    return _observe(model, [list(case.prompt_ids) for case in cases], tokens, check_stop)


def published_behaviour(folder: Path, tokens: Tokens, cases: list[Case], check_stop: Callable[[], None]) -> Behaviour:
    """Ask what was downloaded from the Hub, loaded with nothing but its own files and the base that it names.

    Raises:
        StageError: ProofFailed, when it cannot even be loaded.
    """
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    from tunemill_trainer.chat.encoding import Encoder
    from tunemill_trainer.chat.rendering import ChatTemplate

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens_map, marked=False)
        encoder = Encoder(tokenizer, template)
        prompts = [encoder.prompt_ids(case.messages, case.tools) for case in cases]
        # The base was downloaded a moment ago for the other model.
        model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    except MemoryError:
        raise
    except Exception as error:  # whatever it is: a user who loads the model would meet it
        raise StageError(
            Reason.PROOF_FAILED, f"what was pushed cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return _observe(model, prompts, tokens, check_stop)


def check_same(trained: Behaviour, published: Behaviour, cases: list[Case]) -> None:
    """Raise ProofFailed if the published model does anything else than the trained one.

    Raises:
        StageError: ProofFailed, with the first case that differs and how.
    """
    largest = 0.0
    for i, case in enumerate(cases):
        if list(case.prompt_ids) != published.prompt_ids[i]:
            raise _failed(case, "its tokenizer or chat template makes another prompt")
        difference = _difference(trained.logits[i], published.logits[i])
        if not difference <= TOLERANCE:
            raise _failed(case, f"its logits differ by {difference:.3g}, more than {TOLERANCE:g}")
        if trained.replies[i] != published.replies[i]:
            raise _failed(case, "its reply is another one")
        largest = max(largest, difference)
    _log.info("proven on %d prompts: the logits differ by %.3g at most", len(cases), largest)


def _observe(
    model: Any,  # noqa: ANN401 - transformers ships no types
    prompts: list[list[int]],
    tokens: Tokens,
    check_stop: Callable[[], None],
) -> Behaviour:
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=_NEW_TOKENS,
        eos_token_id=list(tokens.stop_token_ids),
        pad_token_id=tokens.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    replies, logits = [], []
    for prompt in prompts:
        check_stop()
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        replies.append(output.sequences[0, len(prompt) :].tolist())
        logits.append(torch.cat(output.logits).float())
    del model
    gc.collect()
    return Behaviour(prompts, replies, logits)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference over the tokens that both replies have; infinite for another vocabulary."""
    if one.shape[1] != other.shape[1]:
        return float("inf")
    length = min(len(one), len(other))
    return float((one[:length] - other[:length]).abs().max())


def _failed(case: Case, how: str) -> StageError:
    return StageError(
        Reason.PROOF_FAILED, f"the model on the Hub is not the one that was trained: for the case {case.id} {how}"
    )
