"""The chat client: calls, text and reasoning of a server, streamed or not, and its errors."""

import json

import pytest
from trainer.serving.chat_server import a_chat_server, completion
from tunemill_api.failures import ExitCode
from tunemill_trainer.data.rows import Call, Message, Role, Tool
from tunemill_trainer.serving.asking import ask_all
from tunemill_trainer.serving.client import Client, ServedReply
from tunemill_trainer.serving.errors import ServingError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = Tool("get_weather", "Current weather", SCHEMA)
ASKED = (Message(Role.USER, "Weather in Oslo?"),)
OSLO = ("get_weather", '{"city": "Oslo"}')


def test_a_request_has_the_conversation_and_the_tools_in_openai_format():
    """Arguments of earlier calls are text, and a response has the id of its call."""
    messages = [
        *ASKED,
        Message(Role.ASSISTANT, "", calls=(Call("get_weather", {"city": "Ōsaka"}),)),
        Message(Role.TOOL, "rain", name="get_weather"),
    ]
    with a_chat_server(lambda _: completion("It rains.")) as server:
        reply = Client(server.url, "m", api_key="secret").ask(messages, [TOOL], max_tokens=7)
    assert reply == ServedReply("It rains.", "", (), "stop")
    (request,) = server.requests
    assert server.keys == ["Bearer secret"]
    assert request["tool_choice"] == "auto"
    assert (request["temperature"], request["max_completion_tokens"], request["stream"]) == (0, 7, False)
    assert request["tools"] == [{"type": "function", "function": TOOL.to_json()}]
    _, called, answered = request["messages"]
    (call,) = called["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Ōsaka"}'}
    assert answered["tool_call_id"] == call["id"]


def test_tool_choice_and_temperature_are_omitted_if_not_needed():
    """Some servers refuse a tool_choice without tools, and some models any temperature."""
    with a_chat_server(lambda _: completion("Hello.")) as server:
        Client(server.url).ask(ASKED, [], temperature=None)
    assert not {"tools", "tool_choice", "temperature", "max_completion_tokens"} & server.requests[0].keys()
    assert server.requests[0]["model"] == "tuned"


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_a_reply_with_calls_and_reasoning(field):
    """Servers name the field differently."""
    with a_chat_server(lambda _: completion("Wait.", [OSLO, OSLO], **{field: "A city."})) as server:
        reply = Client(server.url, "m").ask(ASKED, [TOOL])
    assert (reply.text, reply.reasoning, reply.finish_reason) == ("Wait.", "A city.", "tool_calls")
    assert reply.parsed.calls == (Call("get_weather", {"city": "Oslo"}),) * 2


def test_a_streamed_reply_is_joined():
    """Parts of two calls come in any order, and the last part may have no choice."""
    deltas = [
        {"role": "assistant", "content": "", "reasoning": "A "},
        {"reasoning": "city."},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "get_weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "get_weather", "arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ' "Oslo"}'}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"city": "Rome"}'}}]},
        {},
    ]
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    parts = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    parts[-1]["choices"][0]["finish_reason"] = "tool_calls"
    with a_chat_server(lambda _: [*parts, {**head, "choices": []}]) as server:
        reply = Client(server.url, "m").ask(ASKED, [TOOL], stream=True)
    assert server.requests[0]["stream"] is True
    assert reply == ServedReply("", "A city.", (OSLO, ("get_weather", '{"city": "Rome"}')), "tool_calls")


def test_arguments_that_are_not_an_object_are_a_broken_call():
    """A client cannot call a function with them."""
    with a_chat_server(lambda _: completion(calls=[OSLO, ("get_weather", '{"city": ')])) as server:
        found = Client(server.url, "m").ask(ASKED, [TOOL]).parsed
    assert (found.calls, found.blocks) == ((), 2)
    assert "not JSON" in found.error


@pytest.mark.parametrize(
    ("status", "code", "requests"),
    [
        (400, ExitCode.SPEC_WRONG, 1),
        (401, ExitCode.PERMISSION_DENIED, 1),
        (404, ExitCode.INPUT_MISSING, 1),
        (429, ExitCode.SERVICE_UNAVAILABLE, 3),
        (503, ExitCode.SERVICE_UNAVAILABLE, 3),
    ],
)
def test_a_refused_request_is_reported_and_a_transient_error_is_retried(status, code, requests):
    """Twice."""
    with a_chat_server(lambda _: (status, {"error": {"message": "no luck"}})) as server:
        with pytest.raises(ServingError, match=f"status {status}.*no luck") as raised:
            Client(server.url, "m").ask(ASKED, [TOOL])
        assert len(server.requests) == requests
    assert raised.value.code == code


def test_an_unreachable_or_other_server_is_reported():
    """Without a traceback."""
    with a_chat_server(lambda _: {"choices": []}) as server, pytest.raises(ServingError, match="without a choice"):
        Client(server.url, "m").ask(ASKED, [])
    with pytest.raises(ServingError, match="cannot be reached") as raised:
        Client(server.url, "m", retries=0).ask(ASKED, [])
    assert raised.value.code == ExitCode.SERVICE_UNAVAILABLE


def test_several_models_are_listed_and_none_is_chosen():
    """The user has to name one."""
    with (
        a_chat_server(lambda _: completion(), models=("base", "tuned")) as server,
        pytest.raises(ServingError, match="lists 2 models, not one: base, tuned"),
    ):
        Client(server.url)


class _Question:
    tools, gold = (TOOL,), None

    def __init__(self, number: int) -> None:
        self.id = f"rows.jsonl:{number}#1"
        self.messages = (Message(Role.USER, str(number)),)


def test_concurrent_requests_get_their_own_replies():
    """In order, with any concurrency."""
    with a_chat_server(lambda request: completion(request["messages"][0]["content"])) as server:
        counts = []
        replies = ask_all(
            Client(server.url, "m"),
            [_Question(number) for number in range(20)],
            parallel=3,
            max_tokens=None,
            temperature=0,
            report=counts.append,
        )
    assert [reply.text for reply in replies] == [str(number) for number in range(20)]
    assert counts == list(range(1, 21))


def test_a_failed_request_stops_the_remaining_ones():
    """The message names the case."""

    def answer(request: dict) -> dict | tuple[int, dict]:
        if request["messages"][0]["content"] == "3":
            return 400, {"error": {"message": "too long"}}
        return completion("yes")

    with a_chat_server(answer) as server, pytest.raises(ServingError, match=r"rows.jsonl:3#1: .*too long.*after"):
        ask_all(
            Client(server.url, "m"),
            [_Question(number) for number in range(50)],
            parallel=2,
            max_tokens=None,
            temperature=0,
            report=lambda _: None,
        )
    assert len(server.requests) < 10
    assert json.dumps(server.requests[0])
