"""Verifies the serving contract with the server itself: an OpenAI client must get the calls that evaluate judged.

The server starts from the downloaded files, with the flags of their serving.json, as `tunemill serve` starts it. Like
users, it chooses the number format itself, so replies may differ where two tokens are about equally likely. A wrong
chat template or parser changes most replies.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tunemill_api.failures import Reason
from tunemill_api.publish import ServingTarget

from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.exact_matching import same_calls
from tunemill_trainer.prepared import Case
from tunemill_trainer.process import tracing
from tunemill_trainer.serving.asking import ask_all
from tunemill_trainer.serving.client import Client
from tunemill_trainer.serving.engine import is_installed, running
from tunemill_trainer.serving.errors import ServingError
from tunemill_trainer.serving.releases import launch_of

MOST_OTHER = 0.2
"""The largest share of replies with other calls than the judged ones. Rounding changes few; one may always differ."""
_WITH_CALLS, _WITHOUT_CALLS = 12, 4
_PARALLEL = 4
_TIMEOUT_SECONDS = 600.0
_LENGTHS = 256
"""The longest request is rounded up to a multiple of this many tokens."""
_NO_DEVICE = "Failed to infer device type"
"""vLLM's error on a machine without a device that it was built for."""
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # GiB for keys and values. By default, vLLM takes half of the machine's memory.
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Defaults of variables for the server. Those of the pod win."""

_log = logging.getLogger(__name__)


def choose_cases(cases: Iterable[Case], right: set[str]) -> list[Case]:
    """Return the cases to ask: the shortest of those whose reply was right in evaluate, with calls and without.

    Args:
        cases: all held-out cases.
        right: the ids of cases with a right reply.
    """
    by_length = sorted((case for case in cases if case.id in right), key=lambda case: case.tokens)
    called = [case for case in by_length if case.gold.calls]
    others = [case for case in by_length if not case.gold.calls]
    return [*called[:_WITH_CALLS], *others[:_WITHOUT_CALLS]]


@tracing.step("serve")
def check_served(
    folder: Path,
    target: ServingTarget,
    base: Path,
    cases: list[Case],
    *,
    max_tokens: int,
    check_stop: Callable[[], None],
) -> str:
    """Serve a downloaded model, and check that a client gets the judged calls.

    Args:
        folder: the downloaded files.
        target: the server.
        base: the folder of the base model, which an adapter is loaded on.
        cases: the questions, whose replies were right in evaluate.
        max_tokens: the most tokens of a reply.
        check_stop: called often; an exception that it raises ends the check.

    Returns:
        A summary of the verification, or why there was none.

    Raises:
        StageError: ProofFailed, when the server does not start, renders other prompts, or returns other calls.
    """
    if not cases:
        return "not served, because evaluate has no right reply"
    if not is_installed(target):
        return f"not served, because {target} is not installed in the image"
    longest = max_tokens + max(len(case.prompt_ids) for case in cases)
    log = folder.with_name(f"{folder.name}-server.log")
    try:
        launch = launch_of(folder, target)
        if launch.adapter:
            launch = replace(launch, model=str(base), revision="")
        variables = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
        with running(launch, log=log, flags=_flags(target, longest), environment=variables) as engine:
            engine.wait_until_healthy(check_stop=check_stop)
            client = Client(engine.url, engine.model, timeout=_TIMEOUT_SECONDS)
            replies = ask_all(
                client,
                cases,
                parallel=_PARALLEL,
                max_tokens=max_tokens,
                temperature=0,
                report=lambda _: check_stop(),
            )
    except ServingError as error:
        if _NO_DEVICE in str(error):
            _log.warning("%s found no device in this pod: the model was not served", target)
            return f"not served, because {target} finds no device in the pod"
        raise StageError(
            Reason.PROOF_FAILED,
            f"{target} cannot serve the pushed model: {error}",
            "Check that spec.publish.serving names the server that you use, and that the version in the image supports "
            "the base model.",
        ) from error
    for case, reply in zip(cases, replies, strict=True):
        if reply.prompt_tokens not in (None, len(case.prompt_ids)):
            raise StageError(
                Reason.PROOF_FAILED,
                f"{target} renders another prompt than training for case {case.id}: {reply.prompt_tokens} tokens, "
                f"expected {len(case.prompt_ids)}",
            )
    same = [same_calls(reply.parsed.calls, case.gold.calls) for case, reply in zip(cases, replies, strict=True)]
    if same.count(False) > max(1, MOST_OTHER * len(cases)):
        at = same.index(False)
        raise StageError(
            Reason.PROOF_FAILED,
            f"{target} returns the calls that evaluate judged for {sum(same)} of {len(cases)} cases, expected at least "
            f"{1 - MOST_OTHER:.0%}: for case {cases[at].id}, it returned "
            f"{[call.to_json() for call in replies[at].parsed.calls]} and the text {replies[at].text[:200]!r}",
        )
    return f"{target} returned the judged calls for {sum(same)} of {len(cases)} prompts"


def _flags(target: ServingTarget, longest: int) -> list[str]:
    """Return flags for a short test. They do not change the prompts or the calls."""
    if target is ServingTarget.VLLM:
        length = -(-longest // _LENGTHS) * _LENGTHS
        return ["--max-model-len", str(length), "--max-num-seqs", str(_PARALLEL), "--enforce-eager"]
    import torch

    return [] if torch.cuda.is_available() else ["--device", "cpu"]
