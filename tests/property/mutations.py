"""Mutated objects, Jobs, pods, profiles and reports, derived from a seed."""

import json
import re
from copy import deepcopy
from random import Random
from typing import Any

Json = Any

TIMES = [
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "1970-01-01T00:00:00Z",
    "2026-11-21T12:00:00",
    "2026-02-30T12:00:00Z",
    "2026-11-21T12:00:00.123456789Z",
    "0000-00-00T00:00:00Z",
]
NUMBERS = [0, -1, 1, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, 1e308, -0.0]
TEXTS = [
    "",
    "x",
    "0",
    "-1",
    "1_000",
    "\u0663",
    "9" * 5000,
    "1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "0." + "0" * 400 + "1",
    "999999999999999h",
    "99999999999999999999s",
    "0s",
    "\x00\x1b[2J\u202e",
    "*/1 * * * *",
    "0 0 30 2 *",
    "s3://" + "a/" * 2000,
    "hf://..",
    "{" * 4000,
    "[" * 4000,
    '{"stage":"train"}',
    "Gi",
    "1" * 400 + "Gi",
    "nvidia.com/gpu",
    "\u00e9" * 5000,
    "a: b\n---\n",
]
OTHERS = [None, True, False, [], {}, [None], [[]], {"": None}, {"a": {"a": {"a": []}}}, [{}] * 50]


DEPTHS = [90, 150, 250, 3000]


def deep(depth: int) -> str:
    """Return a placeholder that `json_of` replaces by a deeply nested value, which Python's encoder cannot write."""
    return f"DEEP{depth}"


def mutated(random: Random, body: Json, count: int) -> Json:
    """Return the JSON value with this many changes, each in a random place."""
    body = deepcopy(body)
    for _ in range(count):
        _change(random, body)
    return body


def json_of(body: Json) -> str:
    """Return the value as JSON, with the deeply nested values."""
    return re.sub(r'"DEEP(\d+)"', lambda found: '{"a":[' * int(found[1]) + "]}" * int(found[1]), json.dumps(body))


def text_of(random: Random, body: Json) -> str:
    """Return the value as JSON, sometimes invalid."""
    text = json_of(body)
    if random.random() < 0.05:
        place = random.randrange(len(text))
        text = text[:place] + random.choice(['"', "}", "]", "\\", ",", "\ud800", "1e", "nul"]) + text[place:]
    return text


def _change(random: Random, body: Json) -> None:
    places = list(_places(body))
    if not places:
        return
    # Deep places are many, high ones matter as much.
    depth = random.choice(sorted({len(path) for path, _, _ in places}))
    _, parent, name = random.choice([place for place in places if len(place[0]) == depth])
    kind = random.random()
    if kind < 0.12:
        del parent[name]
    elif kind < 0.2 and isinstance(parent, list):
        parent += deepcopy(parent) * random.choice([1, 30])
    elif kind < 0.25 and isinstance(parent, dict):
        parent[random.choice(["unknown", "", "\u0130", "a.b/c", *parent])] = deepcopy(parent[name])
    else:
        parent[name] = _value(random, parent[name])


def _value(random: Random, present: Json) -> Json:
    """Return another value, mostly of the same kind, because the API server accepts those."""
    if random.random() < 0.02:
        return deep(random.choice(DEPTHS))
    if isinstance(present, bool) or random.random() < 0.25:
        return deepcopy(random.choice([*OTHERS, *NUMBERS, *TEXTS, *TIMES]))
    if isinstance(present, int | float):
        return random.choice(NUMBERS)
    if isinstance(present, str):
        is_time = present[4:5] == "-" and present[10:11] == "T"
        return random.choice(TIMES if is_time or random.random() < 0.1 else TEXTS)
    return deepcopy(random.choice(OTHERS))


def _places(body: Json, path: tuple[Any, ...] = ()) -> Any:
    """Yield the path, the parent and the name of each value."""
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for name, value in list(items):
        if len(path) < 30:
            yield (*path, name), body, name
            yield from _places(value, (*path, name))
