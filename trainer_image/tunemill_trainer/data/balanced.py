"""Finds matching brackets and quotes in text. Public data sets often embed JSON and literals in prose."""

_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "\"'"


def matching_end(text: str, start: int) -> int | None:
    """Return the index after the bracket that closes the one at `start`, or None.

    Brackets in quotes are ignored. The kinds of brackets are not compared; the parser of the contents does that.
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
    """Split text at commas outside brackets and quotes. Empty text has no parts."""
    found, begin, at = [], 0, 0
    while at < len(text):
        letter = text[at]
        if letter in _QUOTES:
            at = _end_of_quote(text, at) or len(text)
        elif letter in _OPENING:
            at = matching_end(text, at) or len(text)
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
