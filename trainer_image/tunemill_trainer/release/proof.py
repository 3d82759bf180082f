"""Proves that what lies on the Hub is what was trained: downloaded and loaded as a user would, it must answer the same.

All models are asked the same prompts, one model after the other, so that memory for one is enough. They compute in the
same number format on the same processor, so even a tiny difference means that they are not the same. Only merging may
change a little: the sum of two weights is rounded once more.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemill_api.failures import Reason
from tunemill_api.publish import ServingTarget

from tunemill_trainer.data.rows import Call
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.exact_matching import same_calls
from tunemill_trainer.judge.parse import parse_reply
from tunemill_trainer.prepared import Case, Tokens
from tunemill_trainer.process import tracing
from tunemill_trainer.release.contract import Contract

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""The largest difference of two logits that is still called equal."""
MERGE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""By number format, the largest difference that merging may make, as a share of the largest logit of the reply. On two
layers rounding makes 6e-7, 0.009 and 0.002 of it, and more on more layers; a merge that is wrong makes more than 1."""
_PROMPTS = 4
_CALLS = 2
_TOKENS = 16
"""Of every reply, the tokens whose logits are compared; a vocabulary's logits of many tokens would fill the memory."""
_MOST_TOKENS = 256
"""Of a call, as a processor without a GPU should not be at it for long."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A case to ask.

    Attributes:
        case: the case.
        right: in evaluate, the tuned model made exactly the calls that are wanted.
    """

    case: Case
    right: bool

    @property
    def new_tokens(self) -> int:
        """How long the reply may be: enough for a call that is to be read, else a few tokens."""
        return min(self.case.answer_tokens + _TOKENS, _MOST_TOKENS) if self.right else _TOKENS


@dataclass(frozen=True)
class Behaviour:
    """What a model does with the prompts of a proof.

    Attributes:
        prompt_ids: the token ids of each prompt, by its own tokenizer and chat template.
        replies: the token ids of each greedy reply.
        logits: a tensor a prompt, the first tokens of the reply by vocabulary, 32-bit.
    """

    prompt_ids: list[list[int]]
    replies: list[list[int]]
    logits: list[torch.Tensor]


def probes(cases: Iterable[Case], right: set[str]) -> list[Probe]:
    """Return what to ask: the shortest cases, as a proof on a CPU should not take long.

    Args:
        cases: all held-out cases.
        right: ids of the cases whose calls the tuned model made as wanted; two of them come first.
    """
    by_length = sorted(cases, key=lambda case: len(case.prompt_ids) + case.answer_tokens)
    called = [Probe(case, right=True) for case in by_length if case.id in right][:_CALLS]
    taken = {probe.case.id for probe in called}
    others = [Probe(case, right=False) for case in by_length if case.id not in taken]
    return [*called, *others[: _PROMPTS - len(called)]]


def published_behaviour(folder: Path, tokens: Tokens, asked: list[Probe], check_stop: Callable[[], None]) -> Behaviour:
    """Ask what was downloaded from the Hub, loaded with nothing but its own files and the base that it names.

    Raises:
        StageError: ProofFailed, when it cannot even be loaded.
    """
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunemill_trainer.chat.encoding import Encoder
    from tunemill_trainer.chat.rendering import ChatTemplate

    loader = AutoPeftModelForCausalLM if (folder / "adapter_config.json").exists() else AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens_map, marked=False)
        encoder = Encoder(tokenizer, template)
        prompts = [encoder.prompt_ids(probe.case.messages, probe.case.tools) for probe in asked]
        # The base of an adapter was downloaded a moment ago for the other model.
        model = loader.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    except MemoryError:
        raise
    except Exception as error:  # whatever it is: a user who loads the model would meet it
        raise StageError(
            Reason.PROOF_FAILED, f"what was pushed cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return behaviour(model, prompts, asked, tokens, check_stop)


@tracing.step("generate")
def behaviour(
    model: Any,  # noqa: ANN401 - transformers ships no types
    prompts: list[list[int]],
    asked: list[Probe],
    tokens: Tokens,
    check_stop: Callable[[], None],
) -> Behaviour:
    """Ask a model, one prompt after the other; a prompt for each of the cases, as its own tokenizer makes it."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=list(tokens.stop_token_ids),
        pad_token_id=tokens.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    replies, logits = [], []
    for prompt, probe in zip(prompts, asked, strict=True):
        check_stop()
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=probe.new_tokens)
        replies.append(output.sequences[0, len(prompt) :].tolist())
        logits.append(torch.cat(output.logits[:_TOKENS]).float())
    del model
    gc.collect()
    return Behaviour(prompts, replies, logits)


def check_same(made: Behaviour, published: Behaviour, asked: list[Probe]) -> None:
    """Check that the published model does nothing else than the one that was made here.

    Raises:
        StageError: ProofFailed, with the first case that differs and how.
    """
    largest = 0.0
    for i, probe in enumerate(asked):
        if list(probe.case.prompt_ids) != published.prompt_ids[i]:
            raise _failed(probe, "its tokenizer or chat template makes another prompt")
        difference = _difference(made, published, i)
        if not difference <= TOLERANCE:
            raise _failed(probe, f"its logits differ by {difference:.3g}, more than {TOLERANCE:g}")
        if made.replies[i] != published.replies[i]:
            raise _failed(probe, "its reply is another one")
        largest = max(largest, difference)
    _log.info("proven on %d prompts: the logits differ by %.3g at most", len(asked), largest)


def check_merged(trained: Behaviour, merged: Behaviour, asked: list[Probe], number_format: str) -> None:
    """Check that merging changed no more than rounding does, up to the first token that rounding decided otherwise.

    Raises:
        StageError: ProofFailed, with the first case that differs and by how much.
    """
    share = MERGE_TOLERANCE[number_format]
    largest = 0.0
    for i, probe in enumerate(asked):
        difference = _difference(trained, merged, i) / float(trained.logits[i].abs().max())
        if not difference <= share:
            raise StageError(
                Reason.PROOF_FAILED,
                f"the merged model is not the one that was trained: for the case {probe.case.id} its logits differ by "
                f"{difference:.3g} of the largest, more than {share:g}",
            )
        largest = max(largest, difference)
    _log.info("merged: the logits differ by %.3g of the largest at most", largest)


def check_contract(
    folder: Path, contract: Contract, published: Behaviour, asked: list[Probe], stops: tuple[int, ...]
) -> str:
    """Check that a server with this contract hands calls on as calls, and return what was proven.

    Args:
        folder: what was downloaded of the model that is served.
        contract: names the parser.
        published: what that model did.
        asked: the cases.
        stops: token ids that end a reply.

    Raises:
        StageError: ProofFailed, when of the calls that evaluate found right not one is read as it is wanted.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = [(i, probe) for i, probe in enumerate(asked) if probe.right]
    read = 0
    for i, probe in wanted:
        said = published.replies[i]
        said = said[:-1] if said[-1] in stops else said
        if contract.target is ServingTarget.TRANSFORMERS:
            calls = _transformers_calls(tokenizer, published.prompt_ids[i], said)
        else:
            calls = parse_reply(tokenizer.decode(said), contract.call_format, probe.case.tools).calls
        read += same_calls(calls, probe.case.gold.calls)
    if contract.parser and wanted and not read:
        raise _failed(
            wanted[0][1], f"the parser {contract.parser} of {contract.target} reads other calls than evaluate did"
        )
    outcome = f"{read} of {len(wanted)} calls read as wanted" if wanted else "evaluate found no right call to read"
    return f"{len(asked)} prompts with the replies of the trained model; {outcome}"


def right_calls(path: Path) -> set[str]:
    """Return the ids of the cases in evaluate's record for which the tuned model made the calls that were wanted."""
    with path.open(encoding="utf-8") as lines:
        judged = [json.loads(line) for line in lines]
    return {line["id"] for line in judged if line["gold"].get("calls") and line["tuned"]["right"]}


def _transformers_calls(tokenizer: Any, prompt: list[int], said: list[int]) -> tuple[Call, ...]:  # noqa: ANN401
    try:
        message = tokenizer.parse_response(said, prefix=prompt)
    except (ValueError, AttributeError) as error:
        _log.warning("Transformers cannot read a reply: %s", error)
        return ()
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return tuple(Call(str(call["name"]), call["arguments"]) for call in calls)


def _difference(one: Behaviour, other: Behaviour, index: int) -> float:
    """Return the largest difference of two replies' logits, up to the first token in which they differ.

    It is infinite for another vocabulary.
    """
    first, second = one.logits[index], other.logits[index]
    if first.shape[1] != second.shape[1]:
        return float("inf")
    pairs = zip(one.replies[index], other.replies[index], strict=False)
    same = next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(first), len(second)) - 1)
    return float((first[: same + 1] - second[: same + 1]).abs().max())


def _failed(probe: Probe, how: str) -> StageError:
    return StageError(
        Reason.PROOF_FAILED, f"the model on the Hub is not the one that was trained: for the case {probe.case.id} {how}"
    )
