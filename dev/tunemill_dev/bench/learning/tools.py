"""Generated tools, and rows that call them: what the base model of the benchmark reads, and what it is fine-tuned on.

A tool is a verb, a noun and one parameter. Requests name all three, so a model that reads the offered tools finds the
right one among tools that it has never seen. The rows for fine-tuning have the shape of public data sets: few tools, of
which the called one is listed first, and a call for every request.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from tunemill_dev.tiny.data import CITIES, PEOPLE

Row = dict[str, Any]

SYSTEM = "Call a tool when one fits."
VERBS = (
    *("approve", "archive", "book", "cancel", "clean", "copy", "count", "hide", "lock", "measure"),
    *("move", "paint", "print", "rename", "rent", "repair", "scan", "sell", "share", "translate"),
)
NOUNS = (
    *("badge", "bike", "boat", "bridge", "camera", "car", "carpet", "chart", "contract", "desk"),
    *("diary", "door", "engine", "fence", "flag", "garden", "guitar", "house", "invoice", "kitchen"),
    *("ladder", "lamp", "letter", "mirror", "novel", "oven", "package", "photo", "piano", "poster"),
    *("report", "roof", "room", "sofa", "statue", "tent", "ticket", "tower", "truck", "window"),
)
_WORDINGS = (
    "Please {verb} the {noun}",
    "I want to {verb} a {noun}",
    "Can somebody {verb} my {noun}",
    "{verb} one {noun}",
)
_DECLINED = "None of the tools fits this request."


@dataclass(frozen=True)
class Slot:
    """A kind of parameter: its name, its description, how requests mention it, and its values."""

    name: str
    description: str
    phrase: str
    values: tuple[str, ...]


SLOTS = (
    Slot("person", "Name of the person", "for {}", tuple(PEOPLE)),
    Slot("city", "City of the office", "in {}", tuple(CITIES)),
)


@dataclass(frozen=True)
class Tool:
    """A tool.

    Attributes:
        verb: what it does.
        noun: with what.
        slot: its parameter.
        name: its name; empty for the verb and the noun.
    """

    verb: str
    noun: str
    slot: Slot
    name: str = ""

    @property
    def called(self) -> str:
        """The name that calls use."""
        return self.name or f"{self.verb}_{self.noun}"

    @property
    def declared(self) -> Row:
        """The tool as OpenAI's API declares it."""
        properties = {self.slot.name: {"type": "string", "description": self.slot.description}}
        return {
            "type": "function",
            "function": {
                "name": self.called,
                "description": f"{self.verb.capitalize()} a {self.noun}",
                "parameters": {"type": "object", "properties": properties, "required": [self.slot.name]},
            },
        }

    def call(self, value: str) -> Row:
        """Return a call as OpenAI's API writes it."""
        return {
            "type": "function",
            "function": {"name": self.called, "arguments": json.dumps({self.slot.name: value})},
        }

    def request(self, values: Sequence[str], random: Random) -> str:
        """Return a user's request with one value or several."""
        wording = random.choice(_WORDINGS).format(verb=self.verb, noun=self.noun)
        return f"{wording} {' and '.join(self.slot.phrase.format(value) for value in values)}."


def all_tools() -> list[Tool]:
    """Return every tool, in a fixed order."""
    return [Tool(verb, noun, SLOTS[(at + len(noun)) % 2]) for at, (verb, noun) in enumerate(product(VERBS, NOUNS))]


def row(tool: Tool, offered: Sequence[Tool], random: Random, *, calls: int = 1, fits: bool = True) -> Row:
    """Return a row in OpenAI's format.

    Args:
        tool: the tool that the request is about.
        offered: the tools in the row, in this order.
        random: draws wording and values.
        calls: how many calls the request needs.
        fits: whether the assistant calls the tool; otherwise it declines.
    """
    values = random.sample(tool.slot.values, calls)
    answer: Row = {"content": _DECLINED}
    if fits:
        answer = {"content": None, "tool_calls": [{"id": f"c{at}", **tool.call(v)} for at, v in enumerate(values)]}
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": tool.request(values, random)},
            {"role": "assistant", **answer},
        ],
        "tools": [each.declared for each in offered],
    }


def others(tool: Tool, pool: Sequence[Tool], count: int, random: Random) -> list[Tool]:
    """Return tools of the pool with other verbs and nouns than the tool's."""
    return random.sample([each for each in pool if each.verb != tool.verb and each.noun != tool.noun], count)
