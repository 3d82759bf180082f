"""Compares what Tunemill publishes for a family with what the real vLLM makes of it: one row of the table."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from tunemill_api.publish import ServingTarget
from tunemill_trainer.bases import catalogue
from tunemill_trainer.chat.templates import Origin
from tunemill_trainer.data.rows import Call, Message, Role, Row
from tunemill_trainer.judge.parse import parse_reply
from tunemill_trainer.release import servability
from tunemill_trainer.release.contract import Launch
from tunemill_trainer.serving.client import Client, ServedReply, as_sent
from tunemill_trainer.serving.errors import ServingError

from tunemill_dev.serving.adapters import Variant, greedy, variants
from tunemill_dev.serving.engines import EngineError, Engines, Server
from tunemill_dev.serving.families import Small
from tunemill_dev.serving.training import RANK, Trained, rows

_TOKENS = 96
_TOLERANCE = 1e-2
TUNED = "tuned"


@dataclass
class Cells:
    """The row of a family.

    Attributes:
        template: whether the base model's own template carries tools and calls, or the one by Tunemill does.
        prompt_tokens_equal: whether the server renders the prompts to the tokens that the encoder gives.
        parser_agreement: the share of served replies in which both find the same calls.
        servable_verdict_right: whether `servability.judge` is right about each adapter.
        round_trip: whether the client gets the calls of the rows, streaming and not.
        own_template: whether it is the base model's own template.
        template_from: where the template comes from.
        served_as: "adapter" or "merged".
        notes: what is wrong, or cannot be tested, and why.
    """

    template: bool = False
    prompt_tokens_equal: bool = False
    parser_agreement: float = 0.0
    servable_verdict_right: bool = False
    round_trip: bool = False
    own_template: bool = False
    template_from: str = ""
    served_as: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Whether no cell is red."""
        cells = (self.template, self.prompt_tokens_equal, self.servable_verdict_right, self.round_trip)
        return all(cells) and self.parser_agreement == 1


@dataclass(frozen=True)
class Question:
    """A supervised turn: the history as a client sends it, and the turn."""

    row: Row
    history: Sequence[Message]
    turn: Message


def questions(family: Trained) -> Iterator[Question]:
    """Yield the assistant turns of the rows with the messages before them."""
    for row in rows(family.small):
        for at, message in enumerate(row.messages):
            if message.role is Role.ASSISTANT:
                yield Question(row, row.messages[:at], message)


def launch(family: Trained, verdict: servability.Verdict) -> Launch:
    """Return how the contract serves the family's model: its adapter if the server takes it, else the merged model."""
    call_format = family.choice.encoder.call_format
    parser = call_format.value if call_format.served else ""
    reasoning = family.family.reasoning_parser(family.choice.encoder.template.source)
    if verdict.servable:
        return Launch(
            ServingTarget.VLLM,
            str(family.base),
            "",
            TUNED,
            parser,
            adapter=str(family.adapter),
            max_rank=verdict.max_rank,
            reasoning_parser=reasoning,
        )
    return Launch(ServingTarget.VLLM, str(family.merged), "", TUNED, parser, reasoning_parser=reasoning)


def measure(family: Trained, engines: Engines, folder: Path) -> Cells:
    """Serve a family and return its row.

    Args:
        family: the trained model.
        engines: start the servers.
        folder: for logs and other adapters.
    """
    small, choice = family.small, family.choice
    cells = Cells(template_from=small.template_from)
    cells.own_template = choice.origin is Origin.BASE
    cells.template = choice.origin is (Origin.TUNEMILL if family.family.calls is None else Origin.BASE)
    if not cells.template:
        cells.notes.append(choice.rejected_because)
    known = catalogue.family_of(json.loads((family.base / "config.json").read_text(encoding="utf-8")), small.template)
    if known != family.family:
        cells.template = False
        cells.notes.append(f"the catalogue finds {known and known.name}")
    expected = family.family.calls
    if expected is not None and choice.encoder.call_format is not expected:
        cells.template = False
        cells.notes.append(f"calls are {choice.encoder.call_format}, not {expected}")
    others = variants(family, folder)
    tuned = servability.judge(_adapter(family, family.adapter), ServingTarget.VLLM)
    started = launch(family, tuned)
    cells.served_as = "adapter" if started.adapter else "merged"
    try:
        with engines.serve(_arguments(started, small), folder / "server.log") as server:
            _measure(family, server, cells)
            if started.adapter:
                cells.servable_verdict_right = _verdicts_right(family, server, others, cells)
        if not started.adapter:
            cells.servable_verdict_right = _base_refuses(family, engines, others, cells, folder)
    except (EngineError, httpx2.HTTPStatusError, httpx2.TransportError, ServingError) as error:
        cells.notes.append(f"the engine does not start, or fails: {error}")
    return cells


def _arguments(started: Launch, small: Small) -> list[str]:
    arguments = ["--model", *(word for group in started.flags() for word in group), *small.flags]
    return [*arguments, "--max-loras", "2"] if started.adapter else arguments


def _base_refuses(family: Trained, engines: Engines, others: Sequence[Variant], cells: Cells, folder: Path) -> bool:
    """Return whether the engine takes none of the adapters of a family that is served merged."""
    started = Launch(ServingTarget.VLLM, str(family.base), "", TUNED, "", adapter=str(family.adapter), max_rank=RANK)
    arguments = _arguments(started, family.small)
    at = arguments.index("--lora-modules")
    try:
        with engines.serve([*arguments[:at], *arguments[at + 2 :]], folder / "base.log") as server:
            return _verdicts_right(family, server, others, cells)
    except EngineError as error:
        cells.notes.append(f"with adapters, the engine does not start: {error}")
        return not any(servability.judge(_adapter(family, each.folder), ServingTarget.VLLM).servable for each in others)


def _verdicts_right(family: Trained, server: Server, others: Sequence[Variant], cells: Cells) -> bool:
    wrong = [variant for variant in others if not _verdict_right(family, server, variant, cells)]
    return not wrong


def _measure(family: Trained, server: Server, cells: Cells) -> None:
    client = Client(f"{server.address}/v1", TUNED)
    encoder = family.choice.encoder
    wrong, same, replies = [], 0, 0
    equal = True
    for question in questions(family):
        ours = encoder.prompt_ids(question.history, question.row.tools)
        theirs = _tokenized(server, question)
        if ours != theirs:
            equal = False
            at = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), 0)
            trained, served = family.texts([ours[at - 8 : at + 8], theirs[at - 8 : at + 8]])
            cells.notes.append(f"the prompts differ at token {at}: trained with {trained!r}, served {served!r}")
        text = _generated(family, server, ours)
        for stream in (False, True):
            reply = client.ask(question.history, question.row.tools, max_tokens=_TOKENS, stream=stream)
            read = parse_reply(text, encoder.call_format, question.row.tools)
            replies += 1
            agrees = _plain(reply.parsed.calls) == _plain(read.calls)
            same += agrees
            problem = _wrong(reply, question.turn) or ("" if agrees else "Tunemill reads other calls")
            if problem:
                wrong.append(f"{text!r}{', streamed,' if stream else ''} gave {reply}: {problem}")
    cells.prompt_tokens_equal = equal
    cells.parser_agreement = same / replies
    cells.round_trip = not wrong
    cells.notes += wrong[:2]


def _wrong(reply: ServedReply, turn: Message) -> str:
    """Return what a client gets wrong of a turn; "" if nothing."""
    if _plain(reply.parsed.calls) != _plain(turn.calls):
        return "not the calls of the row"
    if reply.finish_reason != ("tool_calls" if turn.calls else "stop"):
        return f"finish_reason is {reply.finish_reason}"
    if reply.text.strip() != turn.content.strip():
        return f"the text is {reply.text!r}"
    if reply.reasoning.strip() != turn.reasoning.strip():
        return f"the reasoning is {reply.reasoning!r}"
    return ""


def _plain(calls: Sequence[Call]) -> str:
    return json.dumps([call.to_json() for call in calls], sort_keys=True)


def _tokenized(server: Server, question: Question) -> list[int]:
    """Return the token ids of a prompt, as the server's own rendering gives them."""
    request = {
        "model": TUNED,
        "messages": as_sent(question.history),
        "tools": [{"type": "function", "function": tool.to_json()} for tool in question.row.tools],
    }
    found: list[int] = _posted(server, "/tokenize", request)["tokens"]
    return found


def _generated(family: Trained, server: Server, prompt: list[int]) -> str:
    """Return the reply as text with special tokens, without the stop token, as evaluate has it."""
    request = {
        "model": TUNED,
        "prompt": prompt,
        "max_tokens": _TOKENS,
        "temperature": 0,
        "stop_token_ids": list(family.stops),
        "return_token_ids": True,
    }
    ids = _posted(server, "/v1/completions", request)["choices"][0]["token_ids"]
    if ids and ids[-1] in family.stops:
        ids = ids[:-1]
    return family.texts([ids])[0]


def _verdict_right(family: Trained, server: Server, variant: Variant, cells: Cells) -> bool:
    """Return whether the verdict about an adapter is what the engine makes of it.

    The engine takes an adapter if it loads it and gives the probabilities that PEFT gives.
    """
    verdict = servability.judge(_adapter(family, variant.folder), ServingTarget.VLLM)
    loaded = _loads(server, variant)
    served = ""
    right = False
    if loaded:
        with suppress(httpx2.HTTPStatusError, httpx2.TransportError):
            ours = greedy(family, variant)
            theirs = _probabilities(server, variant, ours.prompt, ours.tokens)
            difference = max(abs(one - other) for one, other in zip(ours.probabilities, theirs, strict=True))
            # Of logarithms. An adapter that is ignored makes a difference above 1.
            right = difference < _TOLERANCE
            served = f"the largest difference from PEFT is {difference:.2g}"
    if verdict.servable == right:
        return True
    why = "; ".join(verdict.problems) or "servable"
    cells.notes.append(f"{variant.name}: judged {why}; the engine {'loads it' if loaded else 'refuses it'} {served}")
    return False


def _loads(server: Server, variant: Variant) -> bool:
    request = {"lora_name": variant.name, "lora_path": str(variant.folder)}
    answer = httpx2.post(f"{server.address}/v1/load_lora_adapter", json=request, timeout=60, trust_env=False)
    return answer.status_code == httpx2.codes.OK


def _probabilities(server: Server, variant: Variant, prompt: list[int], tokens: list[int]) -> list[float]:
    """Return the logarithms of the probabilities of tokens after a prompt."""
    request = {"model": variant.name, "prompt": [*prompt, *tokens], "max_tokens": 1, "prompt_logprobs": 0}
    listed = _posted(server, "/v1/completions", request)["choices"][0]["prompt_logprobs"][len(prompt) :]
    return [float(at[str(token)]["logprob"]) for at, token in zip(listed, tokens, strict=True)]


def _posted(server: Server, path: str, request: object) -> dict[str, Any]:
    answer = httpx2.post(f"{server.address}{path}", json=request, timeout=120, trust_env=False)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _adapter(family: Trained, folder: Path) -> servability.Adapter:
    return servability.read_adapter(folder, family.base, family.vocabulary)
