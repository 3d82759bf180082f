"""Verifies that the pushed model is the trained model: downloaded and loaded as a user would, it must reply the same.

Every model generates replies to the same prompts, one model after the other, so that only one is in memory. All use
the same number format on the same processor, so even a small difference of logits means different weights. Only
merging may change the logits slightly, because it rounds the sum of two weights.
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
"""The largest difference of two logits that counts as equal."""
MERGE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""The largest difference of logits from merging, by number format, as a fraction of the reply's largest logit. Rounding
makes 6e-7, 0.009 and 0.002 for two layers, and more for more layers. A wrong merge makes more than 1."""
_PROMPTS = 4
_CALLS = 2
_TOKENS = 16
"""The number of tokens per reply whose logits are compared. Each takes 4 bytes per entry of the vocabulary."""
_MOST_TOKENS = 256
"""The most tokens of a reply: publish runs without a GPU, where generation is slow."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """A held-out case for the comparison.

    Attributes:
        case: the case.
        right: whether the tuned model made exactly the expected calls in evaluate.
    """

    case: Case
    right: bool

    @property
    def new_tokens(self) -> int:
        """The most tokens of the reply: enough for a complete call if its parsing is checked, otherwise a few."""
        return min(self.case.answer_tokens + _TOKENS, _MOST_TOKENS) if self.right else _TOKENS


@dataclass(frozen=True)
class Behaviour:
    """Prompts, replies and logits of one model.

    Attributes:
        prompt_ids: the token ids of each prompt, from the model's own tokenizer and chat template.
        replies: the token ids of each greedy reply.
        logits: a float32 tensor per prompt, shape (first tokens of the reply, vocabulary).
    """

    prompt_ids: list[list[int]]
    replies: list[list[int]]
    logits: list[torch.Tensor]


def choose_probes(cases: Iterable[Case], right: set[str]) -> list[Probe]:
    """Return the cases for the comparison. The shortest ones are chosen, because generation on a CPU is slow.

    Args:
        cases: all held-out cases.
        right: ids of the cases with a right reply in evaluate; up to two of those with calls come first.
    """
    by_length = sorted(cases, key=lambda case: case.tokens)
    called = [Probe(case, right=True) for case in by_length if case.id in right and case.gold.calls][:_CALLS]
    taken = {probe.case.id for probe in called}
    others = [Probe(case, right=False) for case in by_length if case.id not in taken]
    return [*called, *others[: _PROMPTS - len(called)]]


def published_behaviour(folder: Path, tokens: Tokens, probes: list[Probe], check_stop: Callable[[], None]) -> Behaviour:
    """Generate replies with a downloaded model, loaded from its own files and the base model that it names.

    Raises:
        StageError: ProofFailed, when it cannot be loaded.
    """
    from transformers import AutoTokenizer

    from tunemill_trainer.chat.encoding import Encoder
    from tunemill_trainer.chat.rendering import ChatTemplate

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens_map, marked=False)
        encoder = Encoder(tokenizer, template)
        prompts = [encoder.prompt_ids(probe.case.messages, probe.case.tools) for probe in probes]
        # The base model of an adapter is in the local cache: the trained model needed it, too.
        model = _loader(folder).from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    except MemoryError:
        raise
    except Exception as error:  # any error here is one that users would get, too
        raise StageError(
            Reason.PROOF_FAILED, f"the pushed model cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return behaviour(model, prompts, probes, tokens, check_stop)


def _loader(folder: Path) -> Any:  # noqa: ANN401 - transformers and peft ship no types
    """Return the class that the model card names for loading the model."""
    from peft import AutoPeftModel, AutoPeftModelForCausalLM

    from tunemill_trainer.learn.language_part import auto_class

    adapter = folder / "adapter_config.json"
    if not adapter.exists():
        return auto_class(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    task = json.loads(adapter.read_text(encoding="utf-8")).get("task_type")
    return AutoPeftModelForCausalLM if task else AutoPeftModel


@tracing.step("generate")
def behaviour(
    model: Any,  # noqa: ANN401 - transformers ships no types
    prompts: list[list[int]],
    probes: list[Probe],
    tokens: Tokens,
    check_stop: Callable[[], None],
) -> Behaviour:
    """Generate a reply per probe, one after the other. `prompts` has the token ids of each probe's prompt."""
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False,
        eos_token_id=list(tokens.stop_token_ids),
        pad_token_id=tokens.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    model.generation_config = settings
    if isinstance(model, PeftModel):
        # Without a task type, PEFT leaves generation to the base model.
        model.get_base_model().generation_config = settings
    replies, logits = [], []
    for prompt, probe in zip(prompts, probes, strict=True):
        check_stop()
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=probe.new_tokens)
        replies.append(output.sequences[0, len(prompt) :].tolist())
        logits.append(torch.cat(output.logits[:_TOKENS]).float())
    del model
    gc.collect()
    return Behaviour(prompts, replies, logits)


def check_same(made: Behaviour, published: Behaviour, probes: list[Probe]) -> None:
    """Check that the published model has the prompts, logits and replies of the local one.

    Raises:
        StageError: ProofFailed, with the first case that differs and the difference.
    """
    largest = 0.0
    for i, probe in enumerate(probes):
        if list(probe.case.prompt_ids) != published.prompt_ids[i]:
            raise _failed(probe, "its tokenizer or chat template gives a different prompt")
        difference = _difference(made, published, i)
        if not difference <= TOLERANCE:
            raise _failed(probe, f"its logits differ by {difference:.3g}, more than {TOLERANCE:g}")
        if made.replies[i] != published.replies[i]:
            raise _failed(probe, "its reply is different")
        largest = max(largest, difference)
    _log.info("verified on %d prompts: the largest difference of logits is %.3g", len(probes), largest)


def check_merged(trained: Behaviour, merged: Behaviour, probes: list[Probe], number_format: str) -> None:
    """Check that merging changed the logits no more than rounding does, up to the first token that differs.

    Raises:
        StageError: ProofFailed, with the first case that differs and the difference.
    """
    share = MERGE_TOLERANCE[number_format]
    largest = 0.0
    for i, probe in enumerate(probes):
        difference = _difference(trained, merged, i) / float(trained.logits[i].abs().max())
        if not difference <= share:
            raise StageError(
                Reason.PROOF_FAILED,
                f"the merged model differs from the trained one: for case {probe.case.id}, its logits differ by "
                f"{difference:.3g} of the largest logit, more than {share:g}",
            )
        largest = max(largest, difference)
    _log.info("merged: the largest difference is %.3g of the largest logit", largest)


def check_contract(
    folder: Path, contract: Contract, published: Behaviour, probes: list[Probe], stops: tuple[int, ...]
) -> str:
    """Check that the parser of the serving contract finds the calls in the replies.

    Args:
        folder: the downloaded model that the server loads.
        contract: names the parser.
        published: the replies of that model.
        probes: the cases.
        stops: the stop token ids.

    Returns:
        A summary of the verification.

    Raises:
        StageError: ProofFailed, when the parser finds the expected calls in none of the cases that were correct in
            evaluate.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = [(i, probe) for i, probe in enumerate(probes) if probe.right]
    read = 0
    for i, probe in wanted:
        reply = published.replies[i]
        reply = reply[:-1] if reply[-1] in stops else reply
        if contract.target is ServingTarget.TRANSFORMERS:
            calls = _transformers_calls(tokenizer, published.prompt_ids[i], reply)
        else:
            calls = parse_reply(tokenizer.decode(reply), contract.call_format, probe.case.tools).calls
        read += same_calls(calls, probe.case.gold.calls)
    if contract.parser and wanted and not read:
        raise _failed(
            wanted[0][1], f"the parser {contract.parser} of {contract.target} finds different calls than evaluate"
        )
    outcome = (
        f"{read} of {len(wanted)} replies parsed into the expected calls"
        if wanted
        else "evaluate has no correct call to parse"
    )
    return f"{len(probes)} prompts give the replies of the trained model; {outcome}"


def right_replies(path: Path) -> set[str]:
    """Return the ids of the cases in evaluate's cases file for which the tuned model's reply was right."""
    with path.open(encoding="utf-8") as lines:
        judged = [json.loads(line) for line in lines]
    return {line["id"] for line in judged if line["tuned"]["right"]}


def _transformers_calls(tokenizer: Any, prompt: list[int], reply: list[int]) -> tuple[Call, ...]:  # noqa: ANN401
    try:
        message = tokenizer.parse_response(reply, prefix=prompt)
    except (ValueError, AttributeError) as error:
        _log.warning("Transformers cannot parse a reply: %s", error)
        return ()
    calls = [call["function"] for call in message.get("tool_calls", [])]
    return tuple(Call(str(call["name"]), call["arguments"]) for call in calls)


def _difference(one: Behaviour, other: Behaviour, index: int) -> float:
    """Return the largest difference of two replies' logits, up to and including the first token that differs.

    It is infinite if the vocabularies have different sizes.
    """
    first, second = one.logits[index], other.logits[index]
    if first.shape[1] != second.shape[1]:
        return float("inf")
    pairs = zip(one.replies[index], other.replies[index], strict=False)
    same = next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(first), len(second)) - 1)
    return float((first[: same + 1] - second[: same + 1]).abs().max())


def _failed(probe: Probe, how: str) -> StageError:
    return StageError(
        Reason.PROOF_FAILED, f"the pushed model differs from the trained one: for case {probe.case.id}, {how}"
    )
