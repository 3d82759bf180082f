"""A help desk's data: eight tools, requests in several wordings, rows in OpenAI's format with and without a tool call.

The rows for training and the requests for trying the result are drawn from disjoint (wording, values) combinations,
so that an answer that is right was not learnt by heart.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SYSTEM = "You are the help desk. Call a tool when one fits."

CITIES = [
    "Paris",
    "London",
    "Tokyo",
    "Berlin",
    "Madrid",
    "Rome",
    "Oslo",
    "Vienna",
    "Prague",
    "Dublin",
    "Lisbon",
    "Athens",
    "Cairo",
    "Delhi",
    "Lima",
    "Seoul",
]
PEOPLE = [
    "Alice",
    "Bob",
    "Carol",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Irene",
    "Jack",
    "Karen",
    "Leo",
    "Mona",
    "Nina",
    "Oscar",
    "Paula",
]
ITEMS = [
    "laptop",
    "phone",
    "camera",
    "desk",
    "chair",
    "lamp",
    "printer",
    "tablet",
    "watch",
    "speaker",
    "mouse",
    "keyboard",
    "monitor",
    "router",
]
TOPICS = [
    "budget",
    "travel",
    "holiday",
    "security",
    "onboarding",
    "payroll",
    "insurance",
    "training",
    "vacation",
    "parking",
]
ROOMS = ["Amber", "Birch", "Cedar", "Delta", "Ember", "Fjord", "Grove", "Haven"]
NUMBERS = list(range(1, 13))
OPENINGS = ["", "Hey, ", "Hello, ", "Now: ", "One thing: ", "Quick one: "]


@dataclass(frozen=True)
class Task:
    """One tool, what its arguments may be, and how people ask for it; a wording names every argument in braces."""

    name: str
    description: str
    arguments: dict[str, list[Any]]
    wordings: list[str]

    @property
    def tool(self) -> dict[str, Any]:
        """The tool as OpenAI's API wants it declared."""
        properties = {
            name: {"type": "integer" if isinstance(values[0], int) else "string"}
            for name, values in self.arguments.items()
        }
        parameters = {"type": "object", "properties": properties, "required": list(self.arguments)}
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }

    def cases(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield every request with the arguments that it asks for."""
        for opening, wording in itertools.product(OPENINGS, self.wordings):
            for values in itertools.product(*self.arguments.values()):
                arguments = dict(zip(self.arguments, values, strict=True))
                yield opening + wording.format(**arguments), arguments


TASKS = [
    Task(
        "get_weather",
        "Current weather of a city",
        {"city": CITIES},
        [
            "What is the weather in {city}?",
            "How is the weather in {city} today?",
            "Is it raining in {city}?",
            "Tell me the forecast for {city}.",
            "Do I need an umbrella in {city}?",
        ],
    ),
    Task(
        "send_email",
        "Send an email to a colleague",
        {"to": PEOPLE, "subject": TOPICS},
        [
            "Send an email to {to} about {subject}.",
            "Please email {to} regarding {subject}.",
            "Write to {to} on the topic {subject}.",
            "Mail {to} a note about {subject}.",
        ],
    ),
    Task(
        "set_timer",
        "Start a timer",
        {"minutes": NUMBERS},
        [
            "Set a timer for {minutes} minutes.",
            "Remind me in {minutes} minutes.",
            "Start a countdown of {minutes} minutes.",
            "Wake me after {minutes} minutes.",
        ],
    ),
    Task(
        "order_item",
        "Order equipment",
        {"item": ITEMS, "quantity": NUMBERS},
        [
            "Order {quantity} of the {item} for me.",
            "Buy {quantity} units of {item}.",
            "I want to purchase {quantity} {item}.",
            "Get {quantity} {item} from the shop.",
        ],
    ),
    Task(
        "search_documents",
        "Search the company's documents",
        {"query": TOPICS},
        [
            "What is our {query} policy?",
            "Where is the company {query} document?",
            "Find the internal {query} guide.",
            "Look up our rules on {query}.",
        ],
    ),
    Task(
        "book_room",
        "Book a meeting room",
        {"room": ROOMS, "hour": NUMBERS},
        [
            "Book room {room} at {hour}.",
            "Reserve {room} for {hour} please.",
            "I need the room {room} at {hour}.",
            "Can I have {room} at {hour}?",
        ],
    ),
    Task(
        "reset_password",
        "Reset a colleague's password",
        {"user": PEOPLE},
        [
            "Reset the password of {user}.",
            "{user} forgot the password.",
            "{user} cannot log in, help.",
            "Give {user} a new password.",
        ],
    ),
    Task(
        "open_ticket",
        "Open a repair ticket",
        {"item": ITEMS, "user": PEOPLE},
        [
            "The {item} of {user} is broken.",
            "Open a ticket for the {item} of {user}.",
            "{user} reports a broken {item}.",
            "Please repair the {item} of {user}.",
        ],
    ),
]

TOOLS: dict[str, dict[str, Any]] = {task.name: task.tool for task in TASKS}
"""Every tool by its name."""

SMALL_TALK = [
    ("Hello there!", "Hello! How can I help?"),
    ("Good morning", "Hello! How can I help?"),
    ("Hi", "Hello! How can I help?"),
    ("Good evening", "Hello! How can I help?"),
    ("Nice to meet you", "Hello! How can I help?"),
    ("Good day to you", "Hello! How can I help?"),
    ("Thank you very much", "You are welcome."),
    ("Thanks a lot", "You are welcome."),
    ("Many thanks", "You are welcome."),
    ("Thanks for that", "You are welcome."),
    ("Thank you so much", "You are welcome."),
    ("I am very grateful", "You are welcome."),
    ("Tell me a joke", "Sorry, I cannot do that."),
    ("Sing a song", "Sorry, I cannot do that."),
    ("Write a poem", "Sorry, I cannot do that."),
    ("Dance for me", "Sorry, I cannot do that."),
    ("Draw a picture", "Sorry, I cannot do that."),
    ("Tell me a story", "Sorry, I cannot do that."),
    ("Whistle a tune", "Sorry, I cannot do that."),
    ("Juggle for me", "Sorry, I cannot do that."),
]


def rows(count: int, seed: int = 0, *, offered: int = 3, talk: float = 0.1) -> list[dict[str, Any]]:
    """Return rows in OpenAI's format: `messages` and `tools`, the answer last.

    Args:
        count: how many rows; all differ as long as there are enough combinations (about 15,000).
        seed: draws the rows.
        offered: tools that a row offers, the right one among them.
        talk: the share of rows that need no call.
    """
    rng = random.Random(seed)
    pool = {task.name: [case for case in task.cases() if not _kept_back(case[0])] for task in TASKS}
    for cases in pool.values():
        rng.shuffle(cases)
    drawn: list[dict[str, Any]] = []
    small_talk = [(opening + question, answer) for opening in OPENINGS for question, answer in SMALL_TALK]
    rng.shuffle(small_talk)
    for _ in range(count):
        if rng.random() < talk and small_talk:
            question, answer = small_talk.pop()
            drawn.append(_row(question, {"content": answer}, rng.sample(list(TOOLS), offered)))
            continue
        task = rng.choice([task for task in TASKS if pool[task.name]])
        question, arguments = pool[task.name].pop()
        others = rng.sample([name for name in TOOLS if name != task.name], offered - 1)
        offer = [task.name, *others]
        rng.shuffle(offer)
        call = {"type": "function", "function": {"name": task.name, "arguments": json.dumps(arguments)}}
        call["id"] = f"call_{len(drawn)}"
        drawn.append(_row(question, {"content": None, "tool_calls": [call]}, offer))
    return drawn


def unseen_requests(
    count: int, seed: int = 0, *, offered: int = 3
) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Return requests that are in no training row, with the `offered` tools and the call that answers them."""
    rng = random.Random(seed)
    found = []
    for task in rng.sample(TASKS, count):
        question, arguments = rng.choice([case for case in task.cases() if _kept_back(case[0])])
        offer = [task.name, *rng.sample([name for name in TOOLS if name != task.name], offered - 1)]
        rng.shuffle(offer)
        found.append((question, [TOOLS[name] for name in offer], {"name": task.name, "arguments": arguments}))
    return found


def _kept_back(question: str) -> bool:
    """Keep about every tenth combination out of all rows, whatever the seed."""
    return random.Random(question).random() < 0.1


def _row(question: str, answer: dict[str, Any], offer: list[str]) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question},
        {"role": "assistant", **answer},
    ]
    return {"messages": messages, "tools": [TOOLS[name] for name in offer]}
