"""Publish starts the server of the contract, and rejects a release whose clients get other prompts or calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from trainer.serving.chat_server import a_chat_server, completion
from trainer.serving.test_releases import a_release, contract_of
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.publish import ServingTarget
from tunemill_trainer.data.rows import Call, Message, Role, Tool
from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import Case
from tunemill_trainer.serving import served_proof
from tunemill_trainer.serving.errors import ServingError
from tunemill_trainer.serving.served_proof import check_served, choose_cases

TOOL = Tool("get_weather", "Current weather", {"type": "object", "properties": {"city": {"type": "string"}}})
OSLO = ("get_weather", '{"city": "Oslo"}')
CALLED = Message(Role.ASSISTANT, "", calls=(Call("get_weather", {"city": "Oslo"}),))


def a_case(number: int, gold: Message = CALLED, length: int = 7) -> Case:
    """A case whose prompt has some tokens."""
    asked = (Message(Role.USER, f"Weather in Oslo? {number}"),)
    return Case(f"rows.jsonl:{number}#1", number, asked, (TOOL,), (1,) * length, gold, (1, 2, 3))


def answering(calls: list[tuple[str, str]], prompt_tokens: int = 7) -> dict:
    """A reply with these calls, and the length of the prompt."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 3, "total_tokens": prompt_tokens + 3}
    return completion(calls=calls) | {"usage": usage}


@pytest.fixture
def prove(tmp_path, monkeypatch) -> Callable[..., str]:
    """Check a release with an adapter against a server that gives these answers."""

    def check(answer: Callable, cases: list[Case], error: str = "") -> str:
        with a_chat_server(answer, models=("tools",)) as server:

            @contextmanager
            def running(launch, **given) -> Iterator[SimpleNamespace]:
                started.append((launch, given))

                def wait_until_healthy(**_: object) -> None:
                    if error:
                        raise ServingError(error, ExitCode.SERVICE_UNAVAILABLE)

                yield SimpleNamespace(url=server.url, model=launch.served_name, wait_until_healthy=wait_until_healthy)

            monkeypatch.setattr(served_proof, "running", running)
            monkeypatch.setattr(served_proof, "is_installed", lambda _: True)
            return check_served(
                folder, ServingTarget.VLLM, tmp_path / "base", cases, max_tokens=50, check_stop=lambda: None
            )

    folder = a_release(tmp_path / "downloaded", contract_of("acme/tools", ""), adapter=True)
    started = check.__dict__.setdefault("started", [])
    return check


def test_the_server_loads_the_downloaded_adapter_and_base_model(prove, tmp_path):
    """Without the network: the base model is a folder. The context is as long as the longest case needs."""
    cases = [a_case(number) for number in range(5)]
    assert prove(lambda _: answering([OSLO]), cases) == "vLLM returned the judged calls for 5 of 5 prompts"
    ((launch, given),) = prove.__dict__["started"]
    assert (launch.model, launch.revision) == (str(tmp_path / "base"), "")
    assert launch.adapter == str(tmp_path / "downloaded")
    assert given["flags"][:2] == ["--max-model-len", "256"]


def test_one_reply_changed_by_rounding_is_no_failure(prove):
    """Also one of two: with few prompts, a share is not meaningful."""
    cases = [a_case(number) for number in range(2)]

    def answer(request: dict) -> dict:
        return answering([] if request["messages"][0]["content"].endswith(" 1") else [OSLO])

    assert prove(answer, cases) == "vLLM returned the judged calls for 1 of 2 prompts"


def test_different_calls_are_a_failure(prove):
    """The message has the first case and its reply."""
    with pytest.raises(
        StageError, match=r"for 0 of 2 cases.*rows.jsonl:0#1, it returned \[\] and the text 'no'"
    ) as raised:
        prove(lambda _: completion("no"), [a_case(0), a_case(1)])
    assert raised.value.reason is Reason.PROOF_FAILED


def test_a_different_prompt_is_a_failure_even_with_the_right_calls(prove):
    """The server's chat template is not that of the training."""
    with pytest.raises(StageError, match=r"renders another prompt than training.*9 tokens, expected 7"):
        prove(lambda _: answering([OSLO], prompt_tokens=9), [a_case(0)])


def test_a_server_that_does_not_start_is_a_failure(prove):
    """With the end of its log."""
    with pytest.raises(StageError, match="vLLM cannot serve the pushed model: no such layer"):
        prove(lambda _: answering([OSLO]), [a_case(0)], error="no such layer")


def test_a_pod_without_a_device_for_the_server_is_no_failure(prove):
    """VLLM for CUDA is in the image, and the publish pod has no GPU."""
    error = "exited with code 1: RuntimeError: Failed to infer device type, please set …"
    proof = prove(lambda _: answering([OSLO]), [a_case(0)], error=error)
    assert proof == "not served, because vLLM finds no device in the pod"


def test_a_server_that_is_not_installed_is_not_started(tmp_path, monkeypatch):
    """The status contains the reason."""
    monkeypatch.setattr(served_proof, "is_installed", lambda _: False)
    proof = check_served(tmp_path, ServingTarget.VLLM, tmp_path, [a_case(0)], max_tokens=50, check_stop=lambda: None)
    assert proof == "not served, because vLLM is not installed in the image"


def test_the_shortest_right_cases_with_and_without_calls_are_requested():
    """Cases with a wrong reply have no judged calls to expect."""
    text = Message(Role.ASSISTANT, "Hello.")
    cases = [a_case(number, length=40 - number) for number in range(30)]
    cases += [replace(a_case(number, text), id=f"text-{number}") for number in range(30, 40)]
    chosen = choose_cases(cases, {case.id for case in cases if case.row % 2})
    assert [case.row for case in chosen] == [29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 31, 33, 35, 37]
