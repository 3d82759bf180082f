"""Parses tool calls in a reply as strictly as the server that will serve the model.

With many servers, one invalid call turns the whole reply into plain text, including its valid calls. A lenient parser
would find calls that clients never receive; `lenient` has such a parser to explain results. `make test-long` compares
the readers with vLLM's parsers; docs/reference/reply-formats.md has the results.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies import (
    cohere,
    deepseek,
    functiongemma,
    gemma4,
    glm,
    granite,
    harmony,
    hermes,
    jamba,
    kimi,
    lfm2,
    llama,
    llama4,
    minimax,
    mistral,
    nemotron,
    olmo3,
    phi4_mini,
    plain,
    pythonic,
    qwen_xml,
    reasoning,
    xlam,
)
from tunemill_trainer.judge.replies.parsed import TOO_DEEP, ParsedReply, broken
from tunemill_trainer.process.bounds import MemoryBound, OutOfBoundsError, TimeBound


class ReplyFormat(StrEnum):
    """The formats of calls, named like vLLM's `--tool-call-parser`. vLLM has no parser for json and nemotron_json.

    They are tried in this order: formats with unique marks come before formats that accept any JSON.
    """

    HERMES = "hermes"
    QWEN3_CODER = "qwen3_coder"
    GLM45 = "glm45"
    GRANITE = "granite"
    GRANITE4 = "granite4"
    FUNCTIONGEMMA = "functiongemma"
    GEMMA4 = "gemma4"
    DEEPSEEK_V3 = "deepseek_v3"
    DEEPSEEK_V31 = "deepseek_v31"
    KIMI_K2 = "kimi_k2"
    MINIMAX_M2 = "minimax_m2"
    SEED_OSS = "seed_oss"
    OPENAI = "openai"
    COHERE_COMMAND3 = "cohere_command3"
    JAMBA = "jamba"
    LFM2 = "lfm2"
    OLMO3 = "olmo3"
    PHI4_MINI_JSON = "phi4_mini_json"
    NEMOTRON_JSON = "nemotron_json"
    MISTRAL = "mistral"
    LLAMA3_JSON = "llama3_json"
    PYTHONIC = "pythonic"
    LLAMA4_PYTHONIC = "llama4_pythonic"
    XLAM = "xlam"
    JSON = "json"

    @property
    def served(self) -> bool:
        """Whether vLLM has a parser of this name."""
        return self not in (ReplyFormat.JSON, ReplyFormat.NEMOTRON_JSON)

    @property
    def vllm_parser(self) -> str:
        """The value of vLLM's `--tool-call-parser`; empty when vLLM has no parser."""
        return self.value if self.served else ""


ALIASES = {
    "qwen3_json": ReplyFormat.HERMES,
    "qwen3_xml": ReplyFormat.QWEN3_CODER,
    "nemotron_v3": ReplyFormat.QWEN3_CODER,
    "glm47": ReplyFormat.GLM45,
    "llama4_json": ReplyFormat.LLAMA3_JSON,
    "cohere_command4": ReplyFormat.COHERE_COMMAND3,
    "harmony": ReplyFormat.OPENAI,
}
"""Names of vLLM parsers for the same formats."""


@dataclass(frozen=True)
class _Reader:
    """The functions that parse a format.

    Attributes:
        read: parses the calls of a reply without reasoning.
        content_of: removes the reasoning from a reply.
    """

    read: Callable[[str, Sequence[Tool]], ParsedReply]
    content_of: reasoning.ContentOf = reasoning.after_think


_READERS: dict[ReplyFormat, _Reader] = {
    ReplyFormat.HERMES: _Reader(hermes.read),
    ReplyFormat.QWEN3_CODER: _Reader(qwen_xml.read, reasoning.engine()),
    ReplyFormat.GLM45: _Reader(glm.read, reasoning.engine(reopens=True)),
    ReplyFormat.GRANITE: _Reader(granite.read, reasoning.granite),
    ReplyFormat.GRANITE4: _Reader(granite.read_4),
    ReplyFormat.FUNCTIONGEMMA: _Reader(functiongemma.read),
    ReplyFormat.GEMMA4: _Reader(gemma4.read, reasoning.gemma4),
    ReplyFormat.DEEPSEEK_V3: _Reader(deepseek.read_v3),
    ReplyFormat.DEEPSEEK_V31: _Reader(deepseek.read_v31),
    ReplyFormat.KIMI_K2: _Reader(kimi.read, reasoning.engine(calls=kimi.BEGIN)),
    ReplyFormat.MINIMAX_M2: _Reader(minimax.read, reasoning.engine(calls="<minimax:tool_call>")),
    ReplyFormat.SEED_OSS: _Reader(
        qwen_xml.read_seed, reasoning.engine("<seed:think>", "</seed:think>", qwen_xml.SEED_BEGIN)
    ),
    ReplyFormat.OPENAI: _Reader(harmony.read, reasoning.whole),
    ReplyFormat.COHERE_COMMAND3: _Reader(cohere.read, reasoning.whole),
    ReplyFormat.JAMBA: _Reader(jamba.read),
    ReplyFormat.LFM2: _Reader(lfm2.read),
    ReplyFormat.OLMO3: _Reader(olmo3.read, reasoning.olmo3),
    ReplyFormat.PHI4_MINI_JSON: _Reader(phi4_mini.read),
    ReplyFormat.NEMOTRON_JSON: _Reader(nemotron.read),
    ReplyFormat.MISTRAL: _Reader(mistral.read, reasoning.mistral),
    ReplyFormat.LLAMA3_JSON: _Reader(llama.read),
    ReplyFormat.PYTHONIC: _Reader(pythonic.read, reasoning.engine(trims=True)),
    ReplyFormat.LLAMA4_PYTHONIC: _Reader(llama4.read, reasoning.engine(trims=True)),
    ReplyFormat.XLAM: _Reader(xlam.read),
    ReplyFormat.JSON: _Reader(plain.read),
}

_MARKS: tuple[tuple[ReplyFormat, re.Pattern[str]], ...] = tuple(
    (reply_format, mark if isinstance(mark, re.Pattern) else re.compile(re.escape(mark)))
    for reply_format, mark in (
        (ReplyFormat.FUNCTIONGEMMA, functiongemma.BEGIN),
        (ReplyFormat.GEMMA4, gemma4.BEGIN),
        (ReplyFormat.OPENAI, harmony.BEGIN),
        (ReplyFormat.DEEPSEEK_V3, deepseek.V3_BEGIN),
        (ReplyFormat.DEEPSEEK_V31, deepseek.BEGIN),
        (ReplyFormat.KIMI_K2, kimi.BEGIN),
        (ReplyFormat.MINIMAX_M2, minimax.BEGIN),
        (ReplyFormat.SEED_OSS, qwen_xml.SEED_BEGIN),
        (ReplyFormat.COHERE_COMMAND3, cohere.BEGIN),
        (ReplyFormat.LFM2, lfm2.BEGIN),
        (ReplyFormat.OLMO3, olmo3.BEGIN),
        (ReplyFormat.JAMBA, jamba.BEGIN),
        (ReplyFormat.NEMOTRON_JSON, nemotron.BEGIN),
        (ReplyFormat.PHI4_MINI_JSON, phi4_mini.BEGIN),
        (ReplyFormat.MISTRAL, mistral.BEGIN),
        (ReplyFormat.LLAMA3_JSON, llama.BEGIN),
        (ReplyFormat.LLAMA4_PYTHONIC, llama4.BEGIN),
        (ReplyFormat.GRANITE, granite.BEGIN),
        (ReplyFormat.QWEN3_CODER, qwen_xml.BEGIN),
        (ReplyFormat.GLM45, glm.BEGIN),
        (ReplyFormat.HERMES, hermes.BEGIN),
    )
)
"""Marks of calls in each format. The first match decides, so the mark that several formats share comes last."""

_MEMORY, _TIME = MemoryBound(512 << 20), TimeBound(seconds=5.0)
"""The limits for one reply, because a model's output is untrusted. Parsing normally takes a tenth of a millisecond."""
_SHORT = 4096
"""Replies of up to this many characters are parsed without limits, which would cost more than parsing."""
_PARAMETERS = re.compile(r'"parameters"\s*:')
_UNKNOWN_MARK = re.compile(r"<(?!/?(?:seed:)?think\b)[^\s<>]{2,40}>|\[[A-Z_]{3,40}\]")
"""Matches text that looks like a mark of an unknown format."""


LONGEST_REPLY = 1 << 20
"""In characters. No server generates this many; parsing takes up to a few hundred times as many bytes."""


def parse_reply(text: str, reply_format: ReplyFormat = ReplyFormat.HERMES, tools: Sequence[Tool] = ()) -> ParsedReply:
    """Parse the calls of a reply.

    Args:
        text: the reply, decoded including special tokens, without the stop token.
        reply_format: the call format.
        tools: the available tools. Some formats take the types of arguments from them.
    """
    if len(text) > LONGEST_REPLY:
        return broken(1, f"the reply has more than {LONGEST_REPLY >> 10} Ki characters")
    try:
        if len(text) <= _SHORT:
            return _read(text, reply_format, tools)
        with _MEMORY, _TIME:
            return _read(text, reply_format, tools)
    except RecursionError:
        return broken(1, TOO_DEEP)
    except OutOfBoundsError as error:
        return broken(1, f"reading the reply {error}")


def _read(text: str, reply_format: ReplyFormat, tools: Sequence[Tool]) -> ParsedReply:
    reader = _READERS[reply_format]
    return reader.read(reader.content_of(text), tools)


def detect(replies: Iterable[str], names: Iterable[str] = ()) -> ReplyFormat | None:
    """Return the call format of most replies; Hermes if none has a call; None if the format is unknown.

    A server has one parser, so one format is chosen for all replies. A reply counts as an unknown format if it contains
    both something like a mark and the name of a tool.

    Args:
        replies: all replies.
        names: the names of the available tools.
    """
    called = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(set(names))) or r"(?!)")
    votes = Counter[ReplyFormat | None]({ReplyFormat.HERMES: 0})
    for text in replies:
        if len(text) > LONGEST_REPLY:
            continue
        vote = _format_of(text.rpartition("</think>")[2])
        if vote is not None:
            votes[vote] += 1
        elif _UNKNOWN_MARK.search(text) and called.search(text):
            votes[None] += 1
    order = [*ReplyFormat, None]
    return max(sorted(votes, key=order.index), key=votes.__getitem__)


def _format_of(text: str) -> ReplyFormat | None:
    """Return the likely format of a reply: by marks, or else by a bracket or brace at its start."""
    marked = next((reply_format for reply_format, mark in _MARKS if mark.search(text)), None)
    if marked is not None:
        return marked
    if pythonic.BEGIN.match(text.lstrip()):
        return ReplyFormat.PYTHONIC
    if not plain.BEGIN.match(text):
        return None
    # Only Llama's parser accepts `parameters` and several consecutive objects.
    only_llama = plain.read(text).error and llama.read(text).calls
    return ReplyFormat.LLAMA3_JSON if only_llama or _PARAMETERS.search(text) else ReplyFormat.JSON
