"""Asks an OpenAI-compatible server, through the `openai` package as users do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tunemill_api.failures import ExitCode

from tunemill_trainer.data.rows import Message, Tool
from tunemill_trainer.data.shown import openai_messages
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, calls_of_texts
from tunemill_trainer.serving.errors import ServingError

if TYPE_CHECKING:
    import httpx2
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

TIMEOUT_SECONDS = 120.0
RETRIES = 2


@dataclass(frozen=True)
class ServedReply:
    """The reply of a server.

    Attributes:
        text: the text without reasoning and calls.
        reasoning: the reasoning, where the server separates it from the text.
        calls: name and arguments of each call; the arguments as the server sent them, which should be a JSON object.
        finish_reason: stop, tool_calls, length or another; empty when the server sent none.
        prompt_tokens: the number of tokens of the prompt; None when the server sent none.
    """

    text: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    finish_reason: str
    prompt_tokens: int | None = None

    @property
    def parsed(self) -> ParsedReply:
        """The calls as a client reads them; none, and an error, when the arguments of one are not a JSON object."""
        return calls_of_texts(self.calls, len(self.calls), "") if self.calls else NO_CALL

    @property
    def finished(self) -> bool:
        """Whether the reply ended within the token limit."""
        return self.finish_reason != "length"


class Client:
    """Asks one model of a server.

    Args:
        base_url: the URL that ends in /v1.
        model: the model's name in requests; empty means the only model that the server lists.
        api_key: the key; empty for servers without one.
        timeout: seconds for one request.
        retries: how often a request is sent again after a lost connection, a timeout, or the status 408, 409, 429 or
            from 500 on. The waits grow, or are those that the server asks for.
        transport: for tests.

    Raises:
        ServingError: model is empty, and the server does not list exactly one.
    """

    def __init__(
        self,
        base_url: str,
        model: str = "",
        *,
        api_key: str = "",
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        import httpx2
        from openai import OpenAI

        self.base_url = base_url
        # The package refuses an empty key, and would take one from OPENAI_API_KEY, which is not for any server.
        self._client = OpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            timeout=timeout,
            max_retries=retries,
            http_client=httpx2.Client(transport=transport, timeout=timeout) if transport else None,
        )
        self.model = model or self._only_model()

    def ask(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        *,
        max_tokens: int | None = None,
        temperature: float | None = 0,
        stream: bool = False,
    ) -> ServedReply:
        """Ask for one reply, with `tool_choice` auto when there are tools.

        Args:
            messages: the conversation so far.
            tools: the available tools.
            max_tokens: the most tokens of the reply; None means the server's limit.
            temperature: 0 for greedy decoding; None leaves it out, for models that refuse it.
            stream: whether the server sends the reply in parts.

        Raises:
            ServingError: the server cannot be reached, refuses the request, or does not answer in time.
        """
        request: dict[str, Any] = {
            "model": self.model,
            "messages": as_sent(messages),
            "stream": stream,
        }
        if temperature is not None:
            request["temperature"] = temperature
        if tools:
            request["tools"] = [{"type": "function", "function": tool.to_json()} for tool in tools]
            request["tool_choice"] = "auto"
        if max_tokens is not None:
            request["max_completion_tokens"] = max_tokens
        with _client_errors(self.base_url):
            answer = self._client.chat.completions.create(**request)
            return _joined(answer) if stream else _whole(answer)

    def _only_model(self) -> str:
        with _client_errors(self.base_url):
            names = [model.id for model in self._client.models.list()]
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise ServingError(
                f"{self.base_url} lists {len(names)} models, not one: {listed}. Name the model", ExitCode.SPEC_WRONG
            )
        return names[0]


class _client_errors:  # noqa: N801 - used like a function
    """Turns the errors of the `openai` package into ServingError."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        if isinstance(error, APITimeoutError):
            raise ServingError(f"{self._base_url} did not answer in time", ExitCode.SERVICE_UNAVAILABLE) from error
        if isinstance(error, APIConnectionError):
            why = error.__cause__ or error
            raise ServingError(f"{self._base_url} cannot be reached: {why}", ExitCode.SERVICE_UNAVAILABLE) from error
        if isinstance(error, APIStatusError):
            raise ServingError(
                f"{self._base_url} answered with status {error.status_code}: {error.message}",
                _code_of(error.status_code),
            ) from error
        if isinstance(error, OpenAIError):
            raise ServingError(
                f"{self._base_url} did not answer as an OpenAI-compatible server: {error}", ExitCode.DATA_WRONG
            ) from error


def _code_of(status: int) -> ExitCode:
    if status in {401, 403}:
        return ExitCode.PERMISSION_DENIED
    if status == 404:
        return ExitCode.INPUT_MISSING
    return ExitCode.SPEC_WRONG if status < 500 and status != 429 else ExitCode.SERVICE_UNAVAILABLE


def as_sent(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages with the arguments of calls as text, as the protocol has them."""
    return [_as_sent(message) for message in openai_messages(messages)]


def _as_sent(message: dict[str, Any]) -> dict[str, Any]:
    if reasoning := message.get("reasoning_content"):
        # vLLM passes only `reasoning` on to the chat template, others only `reasoning_content`.
        message = {**message, "reasoning": reasoning}
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _text_of(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _text_of(arguments: object) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _whole(answer: ChatCompletion) -> ServedReply:
    if not answer.choices:
        raise ServingError("the server answered without a choice", ExitCode.DATA_WRONG)
    choice = answer.choices[0]
    calls = tuple(
        (call.function.name, call.function.arguments)
        for call in choice.message.tool_calls or ()
        if call.type == "function"
    )
    return ServedReply(
        choice.message.content or "",
        _reasoning(choice.message),
        calls,
        cast("str", choice.finish_reason or ""),
        answer.usage.prompt_tokens if answer.usage else None,
    )


def _joined(parts: Iterable[ChatCompletionChunk]) -> ServedReply:
    """Return a streamed reply. The parts of a call have the same index."""
    text, reasoning, finish_reason = [], [], ""
    names, arguments = dict[int, str](), dict[int, str]()
    for part in parts:
        for choice in part.choices[:1]:
            text.append(choice.delta.content or "")
            reasoning.append(_reasoning(choice.delta))
            finish_reason = choice.finish_reason or finish_reason
            for call in choice.delta.tool_calls or ():
                function = call.function
                names[call.index] = names.get(call.index, "") + ((function and function.name) or "")
                arguments[call.index] = arguments.get(call.index, "") + ((function and function.arguments) or "")
    calls = tuple((names[index], arguments[index]) for index in sorted(names))
    return ServedReply("".join(text), "".join(reasoning), calls, finish_reason)


def _reasoning(message: object) -> str:
    """Return the reasoning: `reasoning` of vLLM, `reasoning_content` of others. The protocol has no field for it."""
    found = getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None)
    return found if isinstance(found, str) else ""
