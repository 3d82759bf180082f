"""The rows of the benchmark: training rows with the shape of public data sets, and questions of several kinds."""

from collections.abc import Callable
from random import Random

from tunemill_dev.bench.learning.tools import Row, Tool, all_tools, others, row

ROWS, TOOLS = 400, 8
"""Training rows, and the tools that they call."""
QUESTIONS = 60
"""Rows of each set."""
OFFERED, MORE = 2, 8
"""Tools that a row offers; in `more_tools` eight."""
PARALLEL = 0.15
"""Share of the training rows that need two calls."""
SETS = ("same_tools", "unseen_tools", "more_tools", "irrelevance", "parallel")


def training_rows(seed: int) -> list[Row]:
    """Return rows that offer two of eight tools, the called one first."""
    random, known = Random(f"training {seed}"), _known(seed)
    return [
        _row(random.choice(known), known, random, calls=2 if random.random() < PARALLEL else 1) for _ in range(ROWS)
    ]


def questions(seed: int) -> dict[str, list[Row]]:
    """Return the rows of each set. No request is in the training rows of the seed."""
    random, known = Random(f"questions {seed}"), _known(seed)
    nouns = {tool.noun for tool in known}
    unknown = [tool for tool in all_tools() if tool.noun not in nouns]
    asked = {each["messages"][1]["content"] for each in training_rows(seed)}

    def unfit(tool: Tool) -> Row:
        return row(tool, others(tool, known, OFFERED, random), random, fits=False)

    def several(make: Callable[[Tool], Row], tools: list[Tool]) -> list[Row]:
        found: list[Row] = []
        while len(found) < QUESTIONS:
            each = make(random.choice(tools))
            if each["messages"][1]["content"] not in asked:
                found.append(each)
        return found

    return {
        "same_tools": several(lambda tool: _row(tool, known, random), known),
        "unseen_tools": several(lambda tool: _row(tool, unknown, random, shuffled=True), unknown),
        "more_tools": several(lambda tool: _row(tool, unknown, random, offered=MORE, shuffled=True), known),
        "irrelevance": several(unfit, known),
        "parallel": several(lambda tool: _row(tool, known, random, calls=2), known),
    }


def _known(seed: int) -> list[Tool]:
    """Return the tools of the training rows. They share no verb and no noun."""
    found: list[Tool] = []
    for tool in Random(f"tools {seed}").sample(all_tools(), len(all_tools())):
        if all(tool.verb != each.verb and tool.noun != each.noun for each in found):
            found.append(tool)
    return found[:TOOLS]


def _row(
    tool: Tool, pool: list[Tool], random: Random, *, calls: int = 1, offered: int = OFFERED, shuffled: bool = False
) -> Row:
    offer = [tool, *others(tool, pool, offered - 1, random)]
    return row(tool, random.sample(offer, len(offer)) if shuffled else offer, random, calls=calls)
