"""`tunemill ask`: sends one prompt with tools to an OpenAI-compatible server, and checks the calls of the reply.

tunemill ask --tools tools.json "What is the weather in Oslo?"
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.failures import ExitCode

from tunemill_trainer.commands import inputs, output
from tunemill_trainer.commands import lint as lint_command
from tunemill_trainer.commands.command import Command, JsonField, JsonOutput, Task
from tunemill_trainer.commands.server_options import (
    EXIT_CODES,
    JSON_FIELDS,
    add_server_options,
    client_of,
    endpoint_json,
    temperature_of,
)
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import console

if TYPE_CHECKING:
    from tunemill_trainer.data.rows import JsonObject, Tool
    from tunemill_trainer.serving.client import ServedReply

_STANDARD_INPUT = "-"


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument("prompt", metavar="PROMPT", help="the user's message; - for standard input")
    command.add_argument(
        "--tools", metavar="FILE", type=Path, required=True, help="a JSON file with the tools; - for standard input"
    )
    add_server_options(command)
    output.add_json_option(command)


def main(options: argparse.Namespace) -> int:
    """Print the reply, and return the exit code: 65 when a call does not keep to its tool's schema."""
    from tunemill_trainer.data.rows import Message, Role
    from tunemill_trainer.serving.errors import ServingError

    try:
        prompt = Path(options.prompt) if options.prompt == _STANDARD_INPUT else None
        inputs.refuse_repeated_standard_input({"PROMPT": [prompt], "--tools": [options.tools]})
        tools = lint_command.tools_of(options)
        client = client_of(options)
        text = sys.stdin.read() if prompt else options.prompt
        reply = client.ask(
            [Message(Role.USER, text)], tools, max_tokens=options.max_tokens, temperature=temperature_of(options)
        )
    except StageError as error:
        return output.fail_for("ask", error)
    except ServingError as error:
        return output.fail("ask", str(error), error.code)
    except OSError as error:
        return output.fail_unreadable("ask", error)
    calls = checked_calls(reply, tools)
    if options.json:
        output.show_json(
            {
                "endpoint": endpoint_json(client),
                "text": reply.text,
                "reasoning": reply.reasoning,
                "finishReason": reply.finish_reason,
                "calls": calls,
            }
        )
    else:
        console.show(_text(reply, calls))
    return ExitCode.DATA_WRONG if any(call["problems"] for call in calls) else ExitCode.DONE


def checked_calls(reply: "ServedReply", tools: "Sequence[Tool]") -> "list[JsonObject]":
    """Return the calls of a reply with what is wrong with each by its tool's schema."""
    from tunemill_trainer.data.tools import call_problems
    from tunemill_trainer.judge.replies.parsed import calls_of_texts

    checked: list[JsonObject] = []
    for name, arguments in reply.calls:
        read = calls_of_texts([(name, arguments)], 1, "")
        problems = [read.error] if read.error else [each.message for each in call_problems(read.calls[0], tools)]
        checked.append(
            {
                "name": name,
                "arguments": None if read.error else read.calls[0].arguments,
                "sent": arguments,
                "problems": [*problems],
            }
        )
    return checked


def _text(reply: "ServedReply", calls: "Sequence[JsonObject]") -> str:
    lines = [f"(reasoning) {reply.reasoning.strip()}"] if reply.reasoning.strip() else []
    lines += [reply.text.strip()] if reply.text.strip() else []
    for call in calls:
        lines.append(f"→ {call['name']} {call['sent']}")
        lines += [f"  wrong: {problem}" for problem in call["problems"]]  # type: ignore[union-attr]  # a list
    if not reply.finished:
        lines.append("(cut off at the token limit)")
    return "\n".join(lines or ["(an empty reply)"])


COMMAND = Command(
    name="ask",
    task=Task.JUDGE,
    summary="send a prompt with tools to a server, and check the calls of its reply",
    add_options=add_options,
    main=main,
    examples=(
        'ask --tools tools.json "What is the weather in Oslo?"',
        "ask --base-url https://api.example.com/v1 --model large --api-key-env KEY --tools tools.json - < prompt.txt",
    ),
    exit_codes={
        **EXIT_CODES,
        ExitCode.DATA_WRONG: "a call does not keep to the schema of its tool, or the answer is not that of a chat",
    },
    json=JsonOutput(
        "one object",
        (
            *JSON_FIELDS,
            JsonField("text", "string", "The text of the reply, without reasoning and calls."),
            JsonField("reasoning", "string", "The reasoning, where the server separates it from the text."),
            JsonField("finishReason", "string", "Why the reply ended: `stop`, `tool_calls`, `length` or another."),
            JsonField("calls[].name", "string", "The tool that is called."),
            JsonField("calls[].arguments", "object or null", "Its arguments; null when they are not a JSON object."),
            JsonField("calls[].sent", "string", "The arguments as the server sent them."),
            JsonField("calls[].problems[]", "string", "What is wrong with the call by the schema of its tool."),
        ),
    ),
)
