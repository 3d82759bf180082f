"""Changes training rows at random, so that the model reads the offered tools instead of remembering them.

The kinds of changes are those of Hammer (arXiv:2410.04587), xLAM (arXiv:2409.03215) and ToolACE (arXiv:2409.00920).
Held-out rows are never changed. The changes of a row depend on the seed and on the row's number only.
"""

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from random import Random
from string import ascii_lowercase

from pydantic import JsonValue
from tunemill_api.data import Augmentation
from tunemill_api.scalars import AUTO

from tunemill_trainer.data.dataset import Dataset, Features, Split
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Row, Tool

LARGEST_POOL = 512
"""The most tools from which distractors are chosen."""
_POOL_ROWS = 2000
"""The most training rows whose tools are collected for the pool."""
_ABSTAINING_FRACTION = 0.05
"""With this share of rows in which the assistant calls no tool, Auto adds none."""
_AUTO_IRRELEVANT = 0.1

ANSWERS = (
    "I can't do that: none of the available tools fits this request.",
    "Sorry, I have no tool for this request.",
    "None of my tools can help with this.",
    "I don't have a suitable tool to answer that.",
    "This is not possible with the tools that I can use.",
)
"""What the assistant says in rows without a suitable tool, unless the user gives another answer."""

_COMMON_WORDS = frozenset(
    {
        *("add", "calculate", "cancel", "change", "check", "create", "delete", "fetch", "find", "generate", "get"),
        *("list", "make", "query", "remove", "retrieve", "search", "send", "set", "start", "stop", "update", "use"),
        *("a", "all", "and", "api", "by", "for", "from", "in", "info", "information", "new", "of", "on", "the", "to"),
    }
)
"""Words that tools with different purposes share."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PLAIN_SCHEMA = frozenset(
    {"$schema", "type", "title", "description", "properties", "required", "additionalProperties", "strict"}
)
"""The keywords of a schema whose properties can be renamed."""


class Change(StrEnum):
    """A kind of change; the values are the names in the report."""

    SHUFFLED = "shuffledTools"
    DISTRACTED = "distractorTools"
    MASKED = "maskedNames"
    ADDED = "irrelevantRows"


@dataclass(frozen=True)
class Changed:
    """A changed training row.

    Attributes:
        row: the row that takes the place of the original one.
        kinds: how it was changed; empty if `row` is the original.
        added: one more row, in which no tool fits; None if there is none.
    """

    row: Row
    kinds: tuple[Change, ...] = ()
    added: Row | None = None


@dataclass(frozen=True)
class Augmenter:
    """Changes rows.

    Attributes:
        seed: the seed.
        shuffle: whether to put the tools in random order.
        distractors: the most tools of other rows to add to a row.
        masked: the share of rows in which names are replaced.
        irrelevant: the share of rows from which a row without a suitable tool is made.
        answers: what the assistant says in these rows; one is chosen at random.
        pool: tools of the training rows.
    """

    seed: int
    shuffle: bool
    distractors: int
    masked: float
    irrelevant: float
    answers: tuple[str, ...] = ANSWERS
    pool: tuple[Tool, ...] = ()

    @classmethod
    def of(cls, settings: Augmentation, features: Features, rows: Iterable[Row]) -> "Augmenter":
        """Return the augmenter for a data set, with Auto resolved.

        Args:
            settings: spec.dataset.augmentation.
            features: the features of all rows.
            rows: training rows. Their tools are the distractors, as many as are needed.
        """
        abstaining = features.abstaining >= _ABSTAINING_FRACTION * features.rows
        auto = 0.0 if abstaining else _AUTO_IRRELEVANT
        irrelevant = auto if settings.irrelevant_rows == AUTO else float(settings.irrelevant_rows)
        return cls(
            seed=settings.seed,
            shuffle=settings.shuffle_tools,
            distractors=settings.distractor_tools,
            masked=float(settings.masked_names),
            irrelevant=irrelevant,
            answers=(settings.irrelevance_answer,) if settings.irrelevance_answer else ANSWERS,
            pool=_distinct_tools(rows) if settings.distractor_tools or irrelevant else (),
        )

    def change(self, row: Row, number: int) -> Changed:
        """Return the changed training row; `number` is its number in the data set."""
        if not row.tools:
            return Changed(row)
        random = Random(f"{self.seed}:{number}")  # noqa: S311 - not for secrets
        # All numbers are drawn in each row, so that one setting does not change what another one does.
        masks, adds = random.random() < self.masked, random.random() < self.irrelevant
        count = random.randint(0, self.distractors)
        added = self._without_suitable_tool(row, random) if adds else None
        kinds: list[Change] = []
        tools = (*row.tools, *self._distractors(row, count, random))
        if len(tools) > len(row.tools):
            kinds.append(Change.DISTRACTED)
        if self.shuffle and len(tools) > 1:
            tools = tuple(random.sample(tools, len(tools)))
            kinds.append(Change.SHUFFLED)
        changed = replace(row, tools=tools)
        if masks and (masked := _masked(changed, random)) is not None:
            changed = masked
            kinds.append(Change.MASKED)
        return Changed(changed, tuple(kinds), added)

    def _distractors(self, row: Row, count: int, random: Random) -> list[Tool]:
        """Return up to `count` tools of other rows that do not do what a called tool does, judging by their names."""
        if not count:
            return []
        offered, purposes = {tool.name for tool in row.tools}, _purposes(row)
        candidates = [tool for tool in self.pool if tool.name not in offered and purposes.isdisjoint(_words(tool.name))]
        return random.sample(candidates, min(count, len(candidates)))

    def _without_suitable_tool(self, row: Row, random: Random) -> Row | None:
        """Return the row's first request with an answer that declines it, and without the tools that the row calls.

        Return None for a row whose assistant does not begin with a call, or begins with reasoning; or if no other tool
        is left; or if the prompt names a called tool.
        """
        first = next((at for at, message in enumerate(row.messages) if message.role is Role.ASSISTANT), 0)
        prompt, answer = row.messages[:first], row.messages[first]
        if not prompt or prompt[-1].role is not Role.USER or not answer.calls or answer.reasoning:
            return None
        called = _called(row)
        if _mentions(prompt, called):
            return None
        purposes = _purposes(row)
        left = [tool for tool in row.tools if tool.name not in called and purposes.isdisjoint(_words(tool.name))]
        tools = [*left, *self._distractors(row, max(1, self.distractors), random)]
        if not tools:
            return None
        declined = Message(Role.ASSISTANT, random.choice(self.answers))
        return Row((*prompt, declined), tuple(random.sample(tools, len(tools))), row.source)


def training_rows(dataset: Dataset) -> Iterator[Row]:
    """Yield training rows from all parts of a data set. The tools of other rows must stay unknown."""
    stride = max(1, dataset.kept // _POOL_ROWS)
    for line in islice(dataset.lines(), 0, None, stride):
        item = dataset.row(line)
        if item.split is Split.TRAIN:
            yield item.row


def _distinct_tools(rows: Iterable[Row]) -> tuple[Tool, ...]:
    pool: dict[str, Tool] = {}
    for row in rows:
        for tool in row.tools:
            pool.setdefault(tool.name, tool)
        if len(pool) >= LARGEST_POOL:
            break
    return tuple(pool.values())[:LARGEST_POOL]


def _masked(row: Row, random: Random) -> Row | None:
    """Return the row with random names of tools and parameters, so that only their descriptions say what they are.

    Return None if a tool has no description, or a text names a tool: the model could not know what is meant.
    """
    if not all(tool.description.strip() for tool in row.tools):
        return None
    descriptions = [Message(Role.SYSTEM, tool.description) for tool in row.tools]
    if _mentions((*row.messages, *descriptions), {tool.name for tool in row.tools}):
        return None
    words = _random_words(random)
    calls = [call for message in row.messages for call in message.calls]
    names = {tool.name: next(words) for tool in row.tools}
    parameters = {
        tool.name: _new_parameters(tool, [call for call in calls if call.name == tool.name], row.messages, words)
        for tool in row.tools
    }
    return Row(
        tuple(
            replace(
                message,
                name=names.get(message.name, message.name),
                calls=tuple(_renamed_call(call, names, parameters) for call in message.calls),
            )
            for message in row.messages
        ),
        tuple(
            Tool(names[tool.name], tool.description, _renamed_schema(tool.parameters, parameters[tool.name]))
            for tool in row.tools
        ),
        row.source,
    )


def _new_parameters(
    tool: Tool, calls: Iterable[Call], messages: Sequence[Message], words: Iterator[str]
) -> dict[str, str]:
    """Return a new name for each parameter of a tool; empty if they cannot be renamed or have no descriptions."""
    properties = tool.parameters.get("properties")
    if not isinstance(properties, dict) or not properties or not tool.parameters.keys() <= _PLAIN_SCHEMA:
        return {}
    schemas = properties.values()
    if not all(isinstance(schema, dict) and str(schema.get("description") or "").strip() for schema in schemas):
        return {}
    if any(not call.arguments.keys() <= properties.keys() for call in calls):
        return {}
    described = [Message(Role.SYSTEM, str(schema)) for schema in schemas]
    texts = (*messages, Message(Role.SYSTEM, tool.description), *described)
    if _mentions(texts, {name for name in properties if not name.isalpha()}):
        return {}
    return {name: next(words) for name in properties}


def _renamed_schema(schema: JsonObject, names: Mapping[str, str]) -> JsonObject:
    if not names:
        return schema
    renamed: JsonObject = {}
    for keyword_, value in schema.items():
        if keyword_ == "properties" and isinstance(value, dict):
            renamed[keyword_] = {names[name]: each for name, each in value.items()}
        elif keyword_ == "required" and isinstance(value, list):
            renamed[keyword_] = [names.get(str(name), name) for name in value]
        else:
            renamed[keyword_] = value
    return renamed


def _renamed_call(call: Call, names: Mapping[str, str], parameters: Mapping[str, Mapping[str, str]]) -> Call:
    if call.name not in names:
        return call
    new = parameters[call.name]
    arguments: dict[str, JsonValue] = {new.get(name, name): value for name, value in call.arguments.items()}
    return replace(call, name=names[call.name], arguments=arguments)


def _mentions(messages: Iterable[Message], names: Iterable[str]) -> bool:
    """Return whether a text contains one of the names. A user's `search` is an English word, not the tool's name."""
    found = [re.escape(name) for name in names]
    if not found:
        return False
    any_name = re.compile(rf"(?<!\w)(?:{'|'.join(found)})(?!\w)")
    return any(
        not (message.role is Role.USER and match[0].isalpha() and match[0].islower())
        for message in messages
        for match in any_name.finditer(f"{message.content}\n{message.reasoning}")
    )


def _random_words(random: Random) -> Iterator[str]:
    """Yield different words of random letters, as long as names are."""
    seen: set[str] = set()
    while True:
        word = "".join(random.choices(ascii_lowercase, k=random.randint(5, 9)))
        if word not in seen and not keyword.iskeyword(word):
            seen.add(word)
            yield word


def _called(row: Row) -> set[str]:
    return {call.name for message in row.messages for call in message.calls}


def _purposes(row: Row) -> set[str]:
    """Return the words that say what the called tools do."""
    return {word for name in _called(row) for word in _words(name)}


@lru_cache(maxsize=8 * LARGEST_POOL)  # the names of the pool are compared with each row
def _words(name: str) -> frozenset[str]:
    """Return the words of a tool's name that say what it does: `weather` of `get_weather` and `getWeather`."""
    return frozenset(word.lower() for word in _WORD.findall(name)) - _COMMON_WORDS
