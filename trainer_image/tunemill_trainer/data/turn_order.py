"""Merges consecutive assistant turns, and orders tool responses like the calls that they respond to.

Chat templates and models match the responses to parallel calls by order alone. A server generates exactly one assistant
turn between two turns of other roles.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from tunemill_trainer.data.findings import Problem, RowError, Rule
from tunemill_trainer.data.rows import Message, Role


def merged(messages: list[Message]) -> tuple[list[Message], list[Problem]]:
    """Return the turns with consecutive assistant turns merged, and a problem where two texts were joined.

    After a turn with a call, only another call is merged: these are parallel calls. Text after an unanswered call stays
    a separate turn.
    """
    found: list[Message] = []
    problems: list[Problem] = []
    for message in messages:
        before = found[-1] if found else None
        if before is None or not _belong_together(before, message):
            found.append(message)
            continue
        if before.learnt is not message.learnt:
            raise RowError(
                Rule.ROLE_ORDER,
                "two assistant turns follow each other, and only one of them is excluded from training",
                _turn(found),
            )
        if before.content.strip() and message.content.strip():
            problems.append(
                Problem(Rule.JOINED_TURNS, "two assistant turns with text follow each other; merged", _turn(found))
            )
        found[-1] = replace(
            before,
            content=_both(before.content, message.content),
            reasoning=_both(before.reasoning, message.reasoning),
            calls=before.calls + message.calls,
        )
    return found, problems


def ordered(messages: list[Message]) -> list[Message]:
    """Return the turns with tool responses in the order of the calls, and with the names of their tools.

    Raises:
        RowError: DUPLICATE_CALL_ID, UNKNOWN_CALL_ID or UNANSWERED_CALL.
    """
    found: list[Message] = []
    for is_answer, group in groupby(messages, key=lambda message: message.role is Role.TOOL):
        turns = list(group)
        if not is_answer:
            for number, message in enumerate(turns):
                if message.calls and number + 1 < len(turns) and message.calls[0].identifier:
                    raise _unanswered(message.calls[0].identifier, len(found) + number + 1)
                _refuse_equal_ids(message, len(found) + number + 1)
            found += turns
        elif found and found[-1].calls:
            found += _ordered(found[-1], turns, len(found))
        else:
            found += turns
    return found


def _belong_together(before: Message, message: Message) -> bool:
    both = before.role is Role.ASSISTANT and message.role is Role.ASSISTANT
    return both and (bool(message.calls) or not before.calls)


def _both(first: str, second: str) -> str:
    return "\n\n".join(part for part in (first, second) if part.strip())


def _turn(before: list[Message]) -> str:
    return f"turn {len(before)}"


def _refuse_equal_ids(message: Message, number: int) -> None:
    seen: set[str] = set()
    for call in message.calls:
        if call.identifier and call.identifier in seen:
            raise RowError(
                Rule.DUPLICATE_CALL_ID,
                f"two calls of the assistant turn have the id {call.identifier}",
                f"turn {number}",
            )
        seen.add(call.identifier)


def _unanswered(identifier: str, number: int) -> RowError:
    return RowError(Rule.UNANSWERED_CALL, f"no tool message has the call id {identifier}", f"turn {number}")


def _ordered(caller: Message, answers: list[Message], before: int) -> Iterator[Message]:
    """Yield the responses to the calls of one turn, ordered by call id, or else by the name of the tool."""
    calls = caller.calls
    places = {call.identifier: place for place, call in enumerate(calls) if call.identifier}
    if places and any(answer.answers_to for answer in answers):
        yield from _ordered_by_id(caller, answers, places, before)
        return
    names = [call.name for call in calls]
    responding = [answer.name for answer in answers]
    if responding != names and sorted(responding) == sorted(names) and len(set(names)) == len(names):
        answers = sorted(answers, key=lambda answer: names.index(answer.name))
    yield from answers


def _ordered_by_id(caller: Message, answers: list[Message], places: dict[str, int], before: int) -> Iterator[Message]:
    by_place: dict[int, Message] = {}
    others: list[Message] = []
    for number, answer in enumerate(answers, start=before + 1):
        identifier = answer.answers_to
        if not identifier:
            others.append(answer)
        elif identifier not in places:
            raise RowError(
                Rule.UNKNOWN_CALL_ID,
                f"a tool message has the id {identifier}, but no call in the preceding turn has it",
                f"turn {number}",
            )
        elif places[identifier] in by_place:
            raise RowError(Rule.DUPLICATE_CALL_ID, f"two tool messages have the call id {identifier}", f"turn {number}")
        else:
            place = places[identifier]
            by_place[place] = replace(answer, name=caller.calls[place].name)
    missing = [identifier for identifier, place in places.items() if place not in by_place]
    if len(missing) > len(others):
        raise _unanswered(missing[0], before)
    yield from (by_place[place] for place in sorted(by_place))
    yield from others
