"""The kinds of differences between our readers and vLLM's parsers that are known, with an example of each."""

from dataclasses import dataclass

from tunemill_trainer.data.rows import Call
from tunemill_trainer.judge.parse import ReplyFormat


@dataclass(frozen=True)
class KnownDifference:
    """A reply of which the two make different calls.

    Attributes:
        kind: what differs.
        reply_format: of the reply.
        text: the reply.
        ours: the calls that we make of it.
        served: the calls that vLLM makes of it.
    """

    kind: str
    reply_format: ReplyFormat
    text: str
    ours: tuple[Call, ...]
    served: tuple[Call, ...]


KNOWN = (
    KnownDifference(
        "vLLM takes the id for a part of the name",
        ReplyFormat.MISTRAL,
        "[TOOL_CALLS]timer[CALL_ID]a1b2c3d4e[ARGS]{}",
        (Call("timer", {}),),
        (Call("timer[CALL_ID]a1b2c3d4e", {}),),
    ),
    KnownDifference(
        "vLLM makes an argument named null of **",
        ReplyFormat.PYTHONIC,
        "[find(query=1, **{'a': 1})]",
        (),
        (Call("find", {"query": 1, "null": {"a": 1}}),),
    ),
    KnownDifference(
        "a damaged field of Command R's",
        ReplyFormat.COHERE_COMMAND3,
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "timer", "paramet)ers": {}},\n    '
        '{"tool_call_id": "1", "tool_name": "timer", "parameters": {}},\n    {"tool_call_id": "2", "tool_name": '
        '"find", "parameters": {"query": "a"}}\n]<|END_ACTION|>',
        (Call("timer", {}), Call("timer", {}), Call("find", {"query": "a"})),
        (Call("timer", {}), Call("find", {"query": "a"})),
    ),
    KnownDifference(
        "two channels in a header of Harmony's",
        ReplyFormat.OPENAI,
        "<|channel|>a<|channel|>b to=functions.f<|message|>{}<|end|><|start|>assistant to=functions.timer<|message|>{}",
        (Call("timer", {}),),
        (Call("f", {}), Call("timer", {})),
    ),
)
