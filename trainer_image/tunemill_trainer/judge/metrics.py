"""Turns replies into figures. Each metric is a share of the cases that ask for it, with a Wilson interval of 95 %.

| metric | of which cases | share in which the model |
|---|---|---|
| tool_name_accuracy | a call is wanted | calls exactly the wanted tools |
| exact_match | a call is wanted | calls exactly the wanted tools with equal arguments |
| valid_call_rate | a call is wanted | makes at least one call and every call can be parsed |
| missed_call_rate | a call is wanted | does not even begin a call |
| abstention_accuracy | no call is wanted | does not begin a call |
| hallucinated_tool_rate | all | calls a tool that it was not offered |
| finished_rate | all | ends its turn by itself, within the tokens that it may use |
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tunemill_trainer.judge.match import equal_calls, same_calls, same_tools
from tunemill_trainer.judge.parse import parse_reply
from tunemill_trainer.prepared import Case

NO_CALL, BROKEN_CALL, UNKNOWN_TOOL = "(no call)", "(broken call)", "(unknown tool)"
"""The rows and columns of the confusion table that are no tools."""


@dataclass(frozen=True)
class Reply:
    """What a model said: the text up to its stop token, and whether there was a stop token."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Verdict:
    """How one reply did.

    Attributes:
        wants_call: the data has a call here.
        right: the same calls with equal arguments; where none is wanted, none was begun.
        tool_names: the same tools as often, whatever their arguments.
        valid: a client gets at least one call.
        began_call: there is a `<tool_call>`, broken or not.
        hallucinated: a tool is called that was not offered.
        finished: the model ended its turn.
    """

    wants_call: bool
    right: bool
    tool_names: bool
    valid: bool
    began_call: bool
    hallucinated: bool
    finished: bool


@dataclass(frozen=True)
class Rate:
    """A share: `hits` of `cases`."""

    hits: int
    cases: int

    @property
    def value(self) -> float | None:
        """The share; None when no case asks for it."""
        return self.hits / self.cases if self.cases else None

    def interval(self) -> tuple[float, float]:
        """Return the bounds of the Wilson score interval of 95 % (Wilson 1927); the whole range without a case."""
        if not self.cases:
            return 0.0, 1.0
        z2, n, share = 1.959964**2, self.cases, self.hits / self.cases
        centre = share + z2 / (2 * n)
        half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
        return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


@dataclass(frozen=True)
class ToolScore:
    """One tool over all cases: calls that were wanted, calls that were made, wanted calls that were made exactly."""

    wanted: int
    made: int
    exact: int


@dataclass(frozen=True)
class Score:
    """How one model did on all cases.

    Attributes:
        rates: metric → share, in the order of the table above.
        confusion: wanted tool → called tool → calls; what is on the diagonal is right.
        tools: tool → its score.
        verdicts: one a case, in the order of the cases.
    """

    rates: dict[str, Rate]
    confusion: dict[str, dict[str, int]]
    tools: dict[str, ToolScore]
    verdicts: tuple[Verdict, ...]


def score(cases: Sequence[Case], replies: Sequence[Reply]) -> Score:
    """Judge one reply a case."""
    answers = [_Answer(case, reply) for case, reply in zip(cases, replies, strict=True)]
    verdicts = tuple(answer.verdict() for answer in answers)
    rates = {name: _rate(verdicts, asks, hits) for name, (asks, hits) in _METRICS.items()}
    return Score(rates, _confusion(answers), _tools(answers), verdicts)


def sign_test(before: Iterable[bool], after: Iterable[bool]) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    It is the probability of a change at least as uneven when both models are equally good.
    """
    changes = [now for then, now in zip(before, after, strict=True) if then != now]
    n, rarer = len(changes), min(sum(changes), len(changes) - sum(changes))
    if n == 0:
        return 1.0
    # Whole numbers until the end: 2**n leaves the range of floats at 1024 changes.
    tail: float = sum(math.comb(n, k) for k in range(rarer + 1)) / (1 << n)
    return min(1.0, 2 * tail)


_METRICS: dict[str, tuple[Callable[[Verdict], bool], Callable[[Verdict], bool]]] = {
    "tool_name_accuracy": (lambda v: v.wants_call, lambda v: v.tool_names),
    "exact_match": (lambda v: v.wants_call, lambda v: v.right),
    "valid_call_rate": (lambda v: v.wants_call, lambda v: v.valid),
    "missed_call_rate": (lambda v: v.wants_call, lambda v: not v.began_call),
    "abstention_accuracy": (lambda v: not v.wants_call, lambda v: not v.began_call),
    "hallucinated_tool_rate": (lambda _: True, lambda v: v.hallucinated),
    "finished_rate": (lambda _: True, lambda v: v.finished),
}
"""Metric → which cases ask for it, and which of them count."""


def _rate(verdicts: Sequence[Verdict], asks: Callable[[Verdict], bool], hits: Callable[[Verdict], bool]) -> Rate:
    asked = [verdict for verdict in verdicts if asks(verdict)]
    return Rate(sum(map(hits, asked)), len(asked))


class _Answer:
    """A reply beside its case."""

    def __init__(self, case: Case, reply: Reply) -> None:
        self.wanted = case.gold.calls
        # Data without a list of tools calls what it knows.
        self.offered = {tool.name for tool in case.tools} | {call.name for call in self.wanted}
        self.found = parse_reply(reply.text)
        self.finished = reply.finished

    def verdict(self) -> Verdict:
        calls, began_call = self.found.calls, self.found.blocks > 0
        return Verdict(
            wants_call=bool(self.wanted),
            right=same_calls(calls, self.wanted) if self.wanted else not began_call,
            tool_names=same_tools(calls, self.wanted),
            valid=bool(calls),
            began_call=began_call,
            hallucinated=any(call.name not in self.offered for call in calls),
            finished=self.finished,
        )

    def made(self) -> Counter[str]:
        """Count the calls by tool; those that were not offered have one name together."""
        return Counter(call.name if call.name in self.offered else UNKNOWN_TOOL for call in self.found.calls)

    def confused(self) -> list[tuple[str, str]]:
        """Return pairs (wanted tool, called tool): equal names first, the rest in the order of the calls."""
        wanted, made = Counter(call.name for call in self.wanted), self.made()
        right = wanted & made
        missing, extra = list((wanted - right).elements()), list((made - right).elements())
        if self.found.error:  # which hides all calls
            missing, extra = missing or [NO_CALL], [BROKEN_CALL] * max(1, len(missing))
        length = max(len(missing), len(extra))
        missing += [NO_CALL] * (length - len(missing))
        extra += [NO_CALL] * (length - len(extra))
        pairs = [(name, name) for name in right.elements()] + list(zip(missing, extra, strict=True))
        return pairs or [(NO_CALL, NO_CALL)]


def _confusion(answers: Sequence[_Answer]) -> dict[str, dict[str, int]]:
    counts = Counter(pair for answer in answers for pair in answer.confused())
    table: dict[str, dict[str, int]] = {}
    for (wanted, called), count in sorted(counts.items()):
        table.setdefault(wanted, {})[called] = count
    return table


def _tools(answers: Sequence[_Answer]) -> dict[str, ToolScore]:
    wanted, made, exact = Counter[str](), Counter[str](), Counter[str]()
    for answer in answers:
        wanted.update(call.name for call in answer.wanted)
        made.update(answer.made())
        exact.update(equal_calls(answer.found.calls, answer.wanted))
    return {name: ToolScore(wanted[name], made[name], exact[name]) for name in sorted(wanted | made)}
