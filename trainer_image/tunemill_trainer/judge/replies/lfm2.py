"""`<|tool_call_start|>[name(argument="text")]<|tool_call_end|>`: LFM2. Text around the marks is ignored.

Invalid Python syntax is repaired first, as the server does: line breaks in strings, numbers such as `07`, quotes within
quotes if the repair is unambiguous, and parameters named like Python keywords.
"""

import ast
import keyword
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from tunemill_trainer.data.rows import Call, Tool
from tunemill_trainer.data.values import LONGEST_LITERAL
from tunemill_trainer.judge.replies import pythonic
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken

BEGIN = "<|tool_call_start|>"

_END = "<|tool_call_end|>"
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
_PIECE = re.compile(
    r"""(?P<text>'(?:\\.|[^'\\])*(?:'|\\?\Z)|"(?:\\.|[^"\\])*(?:"|\\?\Z))|(?P<word>[^\W\d]\w*)|(?P<number>\d[\d_]*)""",
    re.DOTALL,
)
_CONTROL = re.compile(r"(\\.)|([\n\r\t\0])", re.DOTALL)
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\x00"}
_SUFFIX = "_reserved_word_"
_MOST_QUOTES = 200
"""The most quotes that are tried as the end of a string."""


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    _, mark, rest = text.partition(BEGIN)
    if not mark:
        return NO_CALL
    written = rest.partition(_END)[0].strip()
    if not (written.startswith("[") and written.endswith("]")):
        return broken(1, f"expected a list of calls after {BEGIN}")
    if len(written) > LONGEST_LITERAL:
        return broken(1, f"the list of calls is longer than {LONGEST_LITERAL >> 10} Ki characters")
    statements = _statements(written)
    listed = statements[0].value if statements and isinstance(statements[0], ast.Expr) else None
    if not isinstance(listed, ast.List) or not listed.elts:
        return broken(1, "the text between the marks is not a list of calls")
    reply = pythonic.calls_of_list(listed, 1)
    calls = tuple(
        Call(call.name, {_restored(name): value for name, value in call.arguments.items()}) for call in reply.calls
    )
    return ParsedReply(calls, reply.blocks, reply.error, reply.lost)


def _statements(text: str) -> list[ast.stmt]:
    """Return the statements of the first repair that is valid Python; an empty list if none is."""
    for candidate in _repairs(text):
        with suppress(*_UNREADABLE):
            return pythonic.parse(candidate)
    return []


def _repairs(text: str) -> Iterator[str]:
    yield text
    escaped = _escaped(_PIECE.sub(lambda piece: _without_zeros(text, piece), text))
    yield escaped
    requoted = _requoted(escaped)
    last = escaped if requoted is None else _escaped(requoted)
    yield last
    yield _PIECE.sub(lambda piece: _renamed(last, piece), last)


def _escaped(text: str) -> str:
    """Escape control characters in string literals."""
    return _PIECE.sub(
        lambda piece: (
            _CONTROL.sub(lambda found: found[1] or _ESCAPES[found[2]], piece[0]) if piece["text"] else piece[0]
        ),
        text,
    )


def _without_zeros(text: str, piece: re.Match[str]) -> str:
    digits = piece[0].replace("_", "")
    if not piece["number"] or digits[0] != "0" or not digits.strip("0"):
        return piece[0]
    after_point = piece.start() > 0 and text[piece.start() - 1] == "."
    if after_point or text[piece.end() : piece.end() + 1] in (".", "e", "E", "j", "J"):
        return piece[0]
    return str(int(digits)) if len(digits) < 1000 else piece[0]


def _renamed(text: str, piece: re.Match[str]) -> str:
    """Rename a parameter whose name is a Python keyword."""
    before = text[: piece.start()].rstrip()[-1:]
    after = text[piece.end() :].lstrip()[:2]
    is_parameter = before in ("(", ",") and after[:1] == "=" and after != "=="
    return piece[0] + _SUFFIX if is_parameter and keyword.iskeyword(piece[0]) else piece[0]


def _restored(name: str) -> str:
    stem = name.removesuffix(_SUFFIX)
    return stem if keyword.iskeyword(stem) else name


def _requoted(text: str) -> str | None:
    """Escape quotes in the first string literal that ends too early. None if its end is ambiguous or missing."""
    at = 0
    while quote := re.compile("['\"]").search(text, at):
        mark, start = quote[0], quote.end()
        ends = [
            found.start() for found in re.compile(rf"\\.|{mark}", re.DOTALL).finditer(text, start) if found[0] == mark
        ]
        if not ends:
            return None
        if _closes(text, ends[0]):
            at = ends[0] + 1
            continue
        readable = []
        for end in [end for end in ends if _closes(text, end)][:_MOST_QUOTES]:
            inside = _with_marks_escaped(text[start:end], mark)
            candidate = f"{text[:start]}{inside}{text[end:]}"
            with suppress(*_UNREADABLE):
                pythonic.parse(_escaped(candidate))
                readable.append(candidate)
        return readable[0] if len(readable) == 1 else None
    return None


def _with_marks_escaped(text: str, mark: str) -> str:
    return re.sub(rf"(\\.)|{mark}", lambda found: found[1] or f"\\{mark}", text, flags=re.DOTALL)


def _closes(text: str, quote: int) -> bool:
    """Return whether a quote can be the end of a string literal, by the next character."""
    follower = re.compile(r"\s*(.)", re.DOTALL).match(text, quote + 1)
    return follower is not None and follower[1] in ",)]}:"
