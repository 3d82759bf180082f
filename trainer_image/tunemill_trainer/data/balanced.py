"""Finds where brackets and quotes in a text end: in public data, JSON and literals stand in the middle of prose."""

_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "\"'"


def end_of(text: str, start: int) -> int | None:
    """Return the index after the bracket that closes the one at `start`, or None when none does.

    Brackets inside of quotes do not count. Which kind closes which is left to whoever reads the contents.
    """
    depth, at = 0, start
    while at < len(text):
        letter = text[at]
        if letter in _QUOTES:
            closed = _end_of_quote(text, at)
            if closed is None:
                return None
            at = closed
            continue
        if letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return None


def parts(text: str) -> list[str]:
    """Return what commas separate, apart from commas in brackets and quotes; an empty text has no parts."""
    found, begin, at = [], 0, 0
    while at < len(text):
        letter = text[at]
        if letter in _QUOTES:
            at = _end_of_quote(text, at) or len(text)
        elif letter in _OPENING:
            at = end_of(text, at) or len(text)
        else:
            if letter == ",":
                found.append(text[begin:at])
                begin = at + 1
            at += 1
    return [*found, text[begin:]] if text[begin:].strip() or found else []


def _end_of_quote(text: str, start: int) -> int | None:
    at = start + 1
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == text[start]:
            return at + 1
        at += 1
    return None
