"""Random changes to JSON values and texts. The same random numbers make the same changes."""

import json
from random import Random
from typing import Any

from tunemill_dev.fuzz.seeds import NAMES, ROWS, TOKENS, VALUES

_SEEDS = tuple(json.dumps(row) for row in ROWS)
_DEEPER = 0.75
"""The probability that a change goes one level deeper."""


def row(random: Random) -> bytes:
    """Return a line of a file: a row with changes, sometimes invalid JSON."""
    value = json.loads(random.choice(_SEEDS))
    for _ in range(_count(random)):
        value = _changed(random, value)
    try:
        line = json.dumps(value, ensure_ascii=random.random() < 0.8)
    except (RecursionError, ValueError):
        line = random.choice(_SEEDS)
    if random.random() < 0.05:
        line = text(random, line)
    return line.replace("\n", " ").encode(errors="surrogatepass")


def text(random: Random, before: str) -> str:
    """Return a text with changes."""
    for _ in range(_count(random)):
        at = random.randrange(len(before) + 1)
        to = min(len(before), at + random.choice((1, 1, 2, 5, 20, 200)))
        kind = random.random()
        if kind < 0.45:
            before = before[:at] + random.choice(TOKENS) + before[at:]
        elif kind < 0.65:
            before = before[:at] + before[to:]
        elif kind < 0.75:
            before = before[:at] + before[at:to] * random.choice((2, 3, 40)) + before[to:]
        elif kind < 0.9:
            before = before[:at] + random.choice(TOKENS) + before[to:]
        else:
            before = before[:at] + chr(random.choice((random.randrange(128), random.randrange(0x11000)))) + before[to:]
    return before


def content(random: Random, before: bytes) -> bytes:
    """Return the bytes of a file with changes."""
    for _ in range(_count(random)):
        at = random.randrange(len(before) + 1)
        to = at + random.choice((1, 1, 4, 64))
        new = random.choice(
            (b"", random.randbytes(random.choice((1, 4))), random.choice(TOKENS).encode(errors="replace"))
        )
        before = before[:at] + new + before[to:]
    return before


def _count(random: Random) -> int:
    return random.choice((1, 1, 1, 2, 2, 3, 6))


def _changed(random: Random, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value with one change somewhere in it. Lists and objects are changed in place."""
    if isinstance(value, dict) and value:
        _change_object(random, value)
        return value
    if isinstance(value, list) and value:
        _change_list(random, value)
        return value
    if isinstance(value, str) and random.random() < 0.7:
        return _changed_text(random, value)
    return _other(random, value)


def _change_object(random: Random, value: dict[str, Any]) -> None:
    name = random.choice(tuple(value))
    kind = random.random()
    if kind < _DEEPER:
        value[name] = _changed(random, value[name])
    elif kind < 0.81:
        del value[name]
    elif kind < 0.87:
        value[random.choice(NAMES)] = value.pop(name)
    elif kind < 0.93:
        value[random.choice(NAMES)] = _other(random, value[name])
    else:
        value[name] = _other(random, value[name])


def _change_list(random: Random, value: list[Any]) -> None:
    place = random.randrange(len(value))
    kind = random.random()
    if kind < _DEEPER:
        value[place] = _changed(random, value[place])
    elif kind < 0.81:
        del value[place]
    elif kind < 0.87:
        value += value[place:] * random.choice((1, 1, 3))
    elif kind < 0.93:
        random.shuffle(value)
    else:
        value[place] = _other(random, value[place])


def _changed_text(random: Random, value: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return a text with changes. If it is JSON, most changes are made to its value."""
    if value[:1] in ("{", "[") and random.random() < 0.6:
        try:
            inner = _changed(random, json.loads(value))
        except (ValueError, RecursionError):
            return text(random, value)
        return _written(random, inner)
    return text(random, value)


def _other(random: Random, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a replacement for a value: another value, or the same one as text, in a list, an object or nested."""
    kind = random.random()
    if kind < 0.6:
        # A new object each time, because it may be changed later.
        return json.loads(json.dumps(random.choice(VALUES)))
    if kind < 0.75:
        return _written(random, value)
    if kind < 0.85:
        return [value] * random.choice((1, 2, 30))
    if kind < 0.95:
        return {random.choice(NAMES): value}
    for _ in range(random.choice((5, 70, 300, 900))):
        value = [value] if random.random() < 0.5 else {"items": value}
    return value


def _written(random: Random, value: Any) -> str:  # noqa: ANN401 - any JSON value
    try:
        return json.dumps(value) if random.random() < 0.6 else repr(value)
    except (RecursionError, ValueError):
        return "["
