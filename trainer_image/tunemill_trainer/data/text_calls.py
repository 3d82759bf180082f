"""Finds calls that an assistant message contains as text, in the call format of some model's chat template.

A model would learn such a call as plain text, and no server would parse it as a call. Text that starts with the mark of
a call format, or that is as a whole a call to an offered tool, is converted to a call. Text that only looks like a call
within prose is reported.

The formats are those that vLLM has parsers for (https://docs.vllm.ai/en/latest/features/tool_calling.html), and some
older ones. `judge.parse` reads the replies of a model and is stricter, as servers are.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from pydantic import JsonValue

from tunemill_trainer.data.findings import Problem, RowError, Rule
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import ARGUMENTS, read_call
from tunemill_trainer.data.values import LONGEST_LITERAL, as_json, read_value, shortened

_BLOCKS = (
    ("<tool_call>", "</tool_call>"),
    ("<tool_calls>", "</tool_calls>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<toolcall>", "</toolcall>"),
    ("<function_call>", "</function_call>"),
    ("<function_calls>", "</function_calls>"),
    ("<functioncall>", "</functioncall>"),
    ("<tool_use>", "</tool_use>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ("<seed:tool_call>", "</seed:tool_call>"),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ("<\uff5ctool▁calls▁begin\uff5c>", "<\uff5ctool▁calls▁end\uff5c>"),
    ("<\uff5cDSML\uff5cfunction_calls>", "</\uff5cDSML\uff5cfunction_calls>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<|action_start|><|plugin|>", "<|action_end|>"),
    ("<|tool_call>", "<tool_call|>"),
    ("<start_function_call>", "<end_function_call>"),
    ("<|tool_call|>", "<|/tool_call|>"),
    ("[TOOL_CALLS]", "[TOOL_CALLS]"),
    ("[TOOL_REQUEST]", "[END_TOOL_REQUEST]"),
    ("<|python_tag|>", "<|eom_id|>"),
    ("functools[", ""),
    ("<|channel|>commentary to=", "<|call|>"),
    ("<function=", "</function>"),
    ("<\uff5cDSML\uff5cinvoke ", "</\uff5cDSML\uff5cinvoke>"),
    ("<invoke ", "</invoke>"),
    ("```tool_code", "```"),
    ("```tool_calls", "```"),
    ("```tool_call", "```"),
    ("```tool_use", "```"),
    ("```function_call", "```"),
)
"""The marks around calls. A block without an end mark extends to the end of the text."""

MARKS = tuple(begin for begin, _ in _BLOCKS if not begin.startswith("```") and begin != "functools[")

_ENDS = dict(_BLOCKS)
_MARK = re.compile("|".join(re.escape(begin) for begin in sorted(_ENDS, key=len, reverse=True)))
_INSIDE = frozenset({"[TOOL_CALLS]", "functools[", "<function=", "<\uff5cDSML\uff5cinvoke ", "<invoke "})
"""Start marks that are part of the call, or that also end the previous call."""
_END_OF_TURN = re.compile(
    r"(?:<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|<\|end\|>|<\|endoftext\|>|<\|end_of_text\|>|<end_of_turn>|</s>"
    r"|<\|call\|>|<\uff5cend▁of▁sentence\uff5c>|</tool_call>)\s*\Z"
)
_FENCE = re.compile(r"\A\s*```\w*[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_REACT = re.compile(r"^Action:[ \t]*(\S+)[ \t]*\nAction Input:[ \t]*", re.MULTILINE)
_DECODER = json.JSONDecoder()

_NAMED = re.compile(
    r"(?:<\uff5ctool▁call▁begin\uff5c>|<\|tool_call_begin\|>|\[TOOL_CALLS\])?\s*(?:function<\uff5ctool▁sep\uff5c>|to=)?"
    r"([A-Za-z_][\w.-]*)(?::\d+)?"
    r"(?:<\uff5ctool▁sep\uff5c>|<\|tool_call_argument_begin\|>|\[CALL_ID\]\w*|\[ARGS\]|<\|constrain\|>json|<\|message\|>"
    r"|```json|[\s>])*"
    r"(?=\{)"
)
"""Matches the text before the arguments in formats where the name is not part of the JSON."""
_NEXT = re.compile(
    r"(?:```|<\uff5ctool▁call▁end\uff5c>|<\|tool_call_end\|>|</function>|</?tool_call>|<\|tool_call\|>|<\|call\|>|[\s,;])*"
)
_INVOKED = re.compile(
    r"<(?:\uff5cDSML\uff5c)?(?:invoke\s+name=\"?|function=\"?|function\s+name=\"?)([^\"<>\s]+)\"?\s*>"
    r"(.*?)(?:</(?:\uff5cDSML\uff5c)?(?:invoke|function)>|\Z)",
    re.DOTALL,
)
_PARAMETER = re.compile(
    r"<(?:\uff5cDSML\uff5c)?parameter(?:\s+name=\"?|=\"?)([^\"<>\s]+)\"?[^<>]*>"
    r"(.*?)(?:</(?:\uff5cDSML\uff5c)?parameter>|(?=<parameter)|\Z)",
    re.DOTALL,
)
_PAIRED = re.compile(r"\A\s*([\w.-]+)\s*((?:<arg_key>.*?</arg_key>\s*<arg_value>.*?</arg_value>\s*)*)\Z", re.DOTALL)
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_GEMMA = re.compile(r"([\w.-]+)\s*(?=\{)")
_GEMMA_TEXT = re.compile(r"<escape>(.*?)<escape>|<\|\"\|>(.*?)<\|\"\|>", re.DOTALL)
_GEMMA_KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:")
_PREFIXES = ("functions.", "default_api.", "tools.")

_LIKE_A_CALL = ("arguments", "parameters", "args", "input", "function", "tool_input")
_BEGIN_OF_CODE = re.compile(r"\[?\s*(?:print\()?[A-Za-z_][\w.]*\(")


def extract(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Problem]]:
    """Return the turns with calls in text converted to calls, and a problem for text that may still contain one.

    Raises:
        RowError: BROKEN_CALL, if a block of calls cannot be parsed.
    """
    offered = {tool.name: tool for tool in tools}
    found: list[Message] = []
    problems: list[Problem] = []
    for number, message in enumerate(messages, start=1):
        if message.role is not Role.ASSISTANT or not message.content:
            found.append(message)
            continue
        if message.calls:
            # The text next to calls may contain an example of a call.
            found.append(message)
        else:
            try:
                content, calls = split(message.content, offered)
            except RowError as error:
                raise RowError(error.problem.rule, error.problem.message, f"turn {number}") from error
            found.append(replace(message, content=content, calls=calls) if calls else message)
        if left := _mention(found[-1].content, offered):
            message_of_rule = f"the assistant text looks like a call to {left}, but is trained as text"
            problems.append(Problem(Rule.TEXT_CALL, message_of_rule, f"turn {number}"))
    return found, problems


def split(text: str, offered: Mapping[str, Tool]) -> tuple[str, tuple[Call, ...]]:
    """Return the text of an assistant message without calls, and the calls.

    Args:
        text: the text.
        offered: the tools of the row, by name. If there are none, only text that starts with a mark can contain calls.

    Raises:
        RowError: BROKEN_CALL, if a block of calls cannot be parsed.
    """
    # Searching for single characters is much faster than for all marks, and most texts have none of them.
    mark = _MARK.search(text) if any(letter in text for letter in "<[`") else None
    if mark is not None and (offered or not text[: mark.start()].strip()):
        return _in_blocks(text, offered)
    react = _REACT.search(text) if "Action Input:" in text else None
    if react is not None and (not offered or react.group(1) in offered):
        with suppress(RowError):
            called = read_call({"name": react.group(1), "arguments": text[react.end() :].strip()})
            return text[: react.start()].strip().removeprefix("Thought:").strip(), (called,)
    return _whole(text, offered)


def _in_blocks(text: str, offered: Mapping[str, Tool]) -> tuple[str, tuple[Call, ...]]:
    calls: list[Call] = []
    kept: list[str] = []
    at = failed = 0
    while failed < _MOST_FAILURES and (mark := _MARK.search(text, at)):
        begin = mark.group()
        inner_start = mark.start() if begin in _INSIDE and begin != "[TOOL_CALLS]" else mark.end()
        end = text.find(_ENDS[begin], mark.end()) if _ENDS[begin] else -1
        inner = text[inner_start : end if end >= 0 else len(text)]
        read = _calls_in(_without_end_of_turn(inner).removeprefix("functools"), offered)
        if read is None:
            if kept or calls or not offered or begin.startswith("```"):
                # `lint` reports marks within prose.
                failed += 1
                kept.append(text[at : mark.end()])
                at = mark.end()
                continue
            raise RowError(Rule.BROKEN_CALL, f"the call after {begin} cannot be parsed: {shortened(inner.strip())}")
        kept.append(text[at : mark.start()])
        calls += read
        at = len(text) if end < 0 else end + (0 if begin == "[TOOL_CALLS]" else len(_ENDS[begin]))
    kept.append(text[at:])
    if not calls:
        return text, ()
    return _without_end_of_turn("".join(kept)).strip(), tuple(calls)


def _without_end_of_turn(text: str) -> str:
    while ended := _END_OF_TURN.search(text):
        text = text[: ended.start()]
    return text


def _whole(text: str, offered: Mapping[str, Tool]) -> tuple[str, tuple[Call, ...]]:
    """Parse text that consists only of calls, without marks."""
    fenced = _FENCE.match(text)
    bare = _without_end_of_turn(fenced.group(1) if fenced else text).strip()
    if bare[:1] in {"{", "["} or (offered and _BEGIN_OF_CODE.match(bare)):
        calls = _calls_in(bare, offered)
        exact = bool(calls) and (bool(offered) or _is_plainly_a_call(bare))
        if calls and exact and (not offered or all(call.name in offered for call in calls)):
            return "", tuple(calls)
    return text, ()


def _is_plainly_a_call(text: str) -> bool:
    """Return whether JSON can only be a call, in rows without tools to compare with."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    values = value if isinstance(value, list) else [value]
    return all(
        isinstance(each, dict) and each.keys() in ({"name", "arguments"}, {"name", "arguments", "id"})
        for each in values
    )


def _calls_in(inner: str, offered: Mapping[str, Tool]) -> list[Call] | None:
    """Return the calls of a block, parsed with the first syntax that fits; None if none does."""
    for read in _SYNTAXES:
        try:
            calls = read(inner.strip(), offered)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # a RowError is a ValueError
            continue
        if calls:
            return [_with_known_name(call, offered) for call in calls]
    return None


def _with_known_name(call: Call, offered: Mapping[str, Tool]) -> Call:
    """Return a call without the namespace that some formats put before the tool's name."""
    if call.name not in offered:
        for prefix in _PREFIXES:
            if call.name.startswith(prefix):
                return replace(call, name=call.name.removeprefix(prefix))
    return call


def _as_json(text: str, _offered: Mapping[str, Tool]) -> list[Call]:
    """Parse JSON: one call, a list, consecutive objects, or an OpenAI message."""
    if fenced := _FENCE.match(text):
        text = fenced.group(1)
    if text[:1] not in {"{", "["}:
        return []
    try:
        values = [read_value(text, Rule.BROKEN_CALL)]
    except RowError:
        values = list(_objects(text))
    return [call for value in values for call in _calls_of(value)]


def _objects(text: str) -> Iterator[JsonValue]:
    at = 0
    while at < len(text):
        value, at = _DECODER.raw_decode(text, at)
        yield value
        space = _NEXT.match(text, at)
        at = space.end() if space else at


def _calls_of(value: JsonValue) -> list[Call]:
    if isinstance(value, list):
        return [call for item in value for call in _calls_of(item)]
    if not isinstance(value, dict):
        raise RowError(Rule.BROKEN_CALL, "not a call")
    for field in ("tool_calls", "function_calls"):
        if isinstance(value.get(field), list):
            return _calls_of(value[field])
    if not value.keys() & {*_LIKE_A_CALL, "function_call"}:
        raise RowError(Rule.BROKEN_CALL, "not a call")
    return [read_call(value)]


def _as_code(text: str, _offered: Mapping[str, Tool]) -> list[Call]:
    """Parse calls in Python syntax: a list, or one per line, also inside print()."""
    if not _BEGIN_OF_CODE.match(text) or len(text) > LONGEST_LITERAL:
        return []
    statements = ast.parse(text).body
    calls: list[Call] = []
    for statement in statements:
        if not isinstance(statement, ast.Expr):
            return []
        listed = statement.value.elts if isinstance(statement.value, ast.List) else [statement.value]
        calls += [_call_of_code(node) for node in listed]
    return calls


def _call_of_code(node: ast.expr) -> Call:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and len(node.args) == 1
    ):
        node = node.args[0]
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with keyword arguments")
    arguments: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("a call has ** among its arguments")
        written = ast.unparse(keyword.value)
        arguments[keyword.arg] = read_value(written, Rule.BROKEN_CALL)
    read = as_json(arguments, Rule.BROKEN_CALL)
    return Call(ast.unparse(node.func), read if isinstance(read, dict) else {})


def _as_tags(text: str, offered: Mapping[str, Tool]) -> list[Call]:
    """Parse calls with tags for name and arguments: `<invoke name=…>`, `<function=…>`, `<arg_key>`."""
    calls = []
    for name, inner in _INVOKED.findall(text):
        parameters = _PARAMETER.findall(inner)
        if not parameters and inner.strip()[:1] == "{":
            calls.append(read_call({"name": name, "arguments": inner.strip()}))
        elif parameters or not inner.strip():
            calls.append(_typed(name, parameters, offered))
        else:
            raise ValueError("text outside the argument tags")
    if calls:
        return calls
    paired = _PAIRED.match(text)
    if paired is not None and (paired.group(2) or paired.group(1) in offered):
        return [_typed(paired.group(1), _PAIR.findall(paired.group(2)), offered)]
    return []


def _typed(name: str, parameters: Sequence[tuple[str, str]], offered: Mapping[str, Tool]) -> Call:
    """Return a call from arguments as text, each converted to the type in the tool's schema."""
    tool = offered.get(name)
    properties = tool.parameters.get("properties") if tool else None
    arguments: JsonObject = {}
    for parameter, written in parameters:
        schema = properties.get(parameter.strip()) if isinstance(properties, dict) else None
        arguments[parameter.strip()] = _value_of_tag(written.strip("\n"), schema)
    return Call(name, arguments)


def _value_of_tag(text: str, schema: JsonValue) -> JsonValue:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string":
        return text
    with suppress(RowError):
        return read_value(text, Rule.BROKEN_CALL)
    return text


def _as_named(text: str, _offered: Mapping[str, Tool]) -> list[Call]:
    """Parse calls with a name before the JSON of the arguments."""
    calls: list[Call] = []
    at = 0
    while at < len(text):
        head = _NAMED.match(text, at)
        if head is None:
            return []
        arguments, at = _DECODER.raw_decode(text, head.end())
        calls.append(read_call({"name": head.group(1), "arguments": arguments}))
        space = _NEXT.match(text, at)
        at = space.end() if space else at
    return calls


def _as_gemma(text: str, _offered: Mapping[str, Tool]) -> list[Call]:
    """Parse `call:name{argument:<escape>text<escape>}`, the syntax of FunctionGemma and Gemma 4."""
    calls = []
    for part in text.split("call:")[1:]:
        name, written = _GEMMA.match(part), part[part.find("{") : part.rfind("}") + 1]
        if name is None:
            raise ValueError("a call has no name")
        texts: list[str] = []

        def kept(match: re.Match[str], texts: list[str] = texts) -> str:
            texts.append(match.group(1) or match.group(2) or "")
            return f'"\0{len(texts) - 1}"'

        quoted = _GEMMA_KEY.sub(r'\1"\2":', _GEMMA_TEXT.sub(kept, written))
        calls.append(
            read_call({"name": name.group(1), "arguments": _restored(json.loads(quoted, strict=False), texts)})
        )
    return calls


def _restored(value: JsonValue, texts: Sequence[str]) -> JsonValue:
    """Put the string arguments back that placeholders replaced, so that their content is not parsed as syntax."""
    if isinstance(value, str) and value.startswith("\0"):
        return texts[int(value[1:])]
    if isinstance(value, list):
        return [_restored(item, texts) for item in value]
    if isinstance(value, dict):
        return {key: _restored(item, texts) for key, item in value.items()}
    return value


_SYNTAXES: tuple[Callable[[str, Mapping[str, Tool]], list[Call]], ...] = (
    _as_json,
    _as_code,
    _as_tags,
    _as_named,
    _as_gemma,
)

_MOST_FAILURES = 20
"""The most marks in one text that do not start a call. Each one is parsed up to the end of the text."""
_MENTIONS = 100
"""The most places in one text that are searched for a call to an offered tool."""
_FIELD_OF_NAME = re.compile(r"[\"'](?:name|tool_name|tool|action)[\"']\s*:\s*[\"']\Z")
_ARGUMENTS_IN_TEXT = re.compile(r"[\"'](?:" + "|".join((*ARGUMENTS, "action_input")) + r")[\"']\s*:")
_BEGIN_OF_ARGUMENTS = re.compile(r"\(\s*[A-Za-z_]\w*\s*=\s*[\w\"'\[{-]")


def _mention(text: str, offered: Mapping[str, Tool]) -> str:
    """Return the name of an offered tool that a text seems to call, or an empty string."""
    if not offered or not ("(" in text or "{" in text):
        return ""
    for name in offered:
        if name not in text:
            continue
        for place in islice(re.finditer(re.escape(name), text), _MENTIONS):
            before, after = text[max(0, place.start() - 30) : place.start()], text[place.end() : place.end() + 200]
            as_object = _FIELD_OF_NAME.search(before) and _ARGUMENTS_IN_TEXT.search(text)
            if as_object or _BEGIN_OF_ARGUMENTS.match(after):
                return name
    return ""
