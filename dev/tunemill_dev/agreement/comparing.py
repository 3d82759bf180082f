"""Compares the calls that Tunemill's and vLLM's parsers find in the same replies."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunemill_trainer.data.rows import Call, Tool
from tunemill_trainer.judge.parse import ReplyFormat, parse_reply
from tunemill_trainer.judge.replies import mistral
from tunemill_trainer.judge.replies.parsed import calls_of_texts

from tunemill_dev.agreement import served
from tunemill_dev.agreement.generated import TOOLS

_BATCH = 500


@dataclass(frozen=True)
class Engine:
    """The vLLM settings for a format.

    Attributes:
        reasoning: the reasoning parser.
        marks: reasoning markers. A reply without any of them is parsed without the reasoning parser. Empty if the
            parser leaves replies without markers unchanged.
    """

    reasoning: str = "deepseek_r1"
    marks: tuple[str, ...] = ("<think>", "</think>")


ENGINES = {
    **{reply_format: Engine() for reply_format in ReplyFormat if reply_format.served},
    ReplyFormat.QWEN3_CODER: Engine("qwen3"),
    ReplyFormat.GLM45: Engine("glm45"),
    ReplyFormat.GRANITE: Engine("granite", ()),
    ReplyFormat.GEMMA4: Engine("gemma4", ()),
    ReplyFormat.KIMI_K2: Engine("kimi_k2"),
    ReplyFormat.MINIMAX_M2: Engine("minimax_m2"),
    ReplyFormat.SEED_OSS: Engine("seed_oss", ("<seed:think>", "</seed:think>")),
    ReplyFormat.OPENAI: Engine("openai_gptoss", ()),
    ReplyFormat.COHERE_COMMAND3: Engine("cohere_command3", ()),
    ReplyFormat.OLMO3: Engine("olmo3", ()),
    ReplyFormat.MISTRAL: Engine("mistral", ("[THINK]", "[/THINK]", "<think>", "</think>")),
    ReplyFormat.PYTHONIC: Engine("granite_thinking_parser"),
    ReplyFormat.LLAMA4_PYTHONIC: Engine("granite_thinking_parser"),
}
"""The formats for which vLLM has a parser."""


@dataclass(frozen=True)
class Difference:
    """A reply in which the two parsers find different calls."""

    text: str
    ours: tuple[Call, ...]
    served: tuple[Call, ...]


class Server:
    """vLLM's parsers in another process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def calls(
        self, texts: Sequence[str], reply_format: ReplyFormat, tools: Sequence[Tool] = TOOLS
    ) -> list[tuple[Call, ...]]:
        """Return the calls that a client gets for each reply; none if a client cannot decode one of its calls."""
        engine = ENGINES[reply_format]
        groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for index, text in enumerate(texts):
            thinks = not engine.marks or any(mark in text for mark in engine.marks)
            groups.setdefault((engine.reasoning if thinks else "", _words(text, reply_format)), []).append(index)
        found: list[tuple[Call, ...]] = [()] * len(texts)
        for (reasoning, words), indices in groups.items():
            request = {
                "parser": reply_format.value,
                "reasoning": reasoning,
                "words": words,
                "tools": [tool.to_json() for tool in tools],
                "texts": [texts[index] for index in indices],
            }
            for index, calls in zip(indices, self._ask(request), strict=True):
                found[index] = calls_of_texts(
                    ((name, arguments) for name, arguments in calls), len(calls), "none"
                ).calls
        return found

    def _ask(self, request: object) -> list[list[tuple[str, str]]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("vLLM's parsers ended; run dev/tunemill_dev/agreement/served.py to see why")
        answer: list[list[tuple[str, str]]] = json.loads(line)
        return answer


@contextmanager
def server(root: Path) -> Iterator[Server]:
    """Start vLLM's parsers, which `make build/vllm/.ready` installs. Takes half a minute.

    Raises:
        FileNotFoundError: they are not installed.
    """
    folder = root / "build" / "vllm"
    if not (folder / "vllm").is_dir():
        raise FileNotFoundError(f"{folder} does not contain vLLM: run `make build/vllm/.ready`")
    command = [sys.executable, "-W", "ignore", served.__file__, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
    )
    with process:
        try:
            yield Server(process)
        finally:
            process.kill()


def differences(texts: Sequence[str], reply_format: ReplyFormat, server: Server) -> list[Difference]:
    """Return the replies that the two parse differently."""
    found = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        found += differences_from(zip(batch, server.calls(batch, reply_format), strict=True), reply_format)
    return found


def differences_from(served: Iterable[tuple[str, tuple[Call, ...]]], reply_format: ReplyFormat) -> list[Difference]:
    """Return the replies, of those with vLLM's calls, that we read differently."""
    found = []
    for text, theirs in served:
        ours = parse_reply(text, reply_format, TOOLS).calls
        if _plain(ours) != _plain(theirs):
            found.append(Difference(text, ours, theirs))
    return found


def _plain(calls: Sequence[Call]) -> str:
    return json.dumps([call.to_json() for call in calls], sort_keys=True)


def _words(text: str, reply_format: ReplyFormat) -> tuple[str, ...]:
    """Return the additional tokens of the tokenizer of the reply's model, by which Mistral's versions differ."""
    if reply_format is not ReplyFormat.MISTRAL or mistral.is_listed(text):
        return ()
    if "[THINK]" not in text and "[/THINK]" not in text and ("<think>" in text or "</think>" in text):
        return ("[ARGS]", "<think>")
    return ("[ARGS]", "[THINK]", "[/THINK]")
