"""Turns replies into figures. Each metric is a share of the cases that ask for it, with a Wilson interval of 95 %.

| metric | of which cases | share in which the model |
|---|---|---|
| tool_name_accuracy | a call is wanted | calls exactly the wanted tools |
| exact_match | a call is wanted | calls exactly the wanted tools with equal arguments |
| ast_match | a call is wanted | calls them with arguments that are as good, by the rule of BFCL |
| valid_call_rate | a call is wanted | makes at least one call and every call can be parsed |
| schema_valid_rate | a call is wanted | makes at least one call and every call keeps to its tool's schema |
| parallel_accuracy | several calls are wanted | calls them all as good, in any order |
| abstention_accuracy | no call is wanted | does not begin a call |
| overall_accuracy | all | makes an AST match, or abstains where no call is wanted |
| missed_call_rate | a call is wanted | does not even begin a call |
| over_call_rate | all | makes more calls than are wanted, or begins one where none is |
| hallucinated_tool_rate | all | calls a tool that it was not offered |
| lenient_only_rate | a call is wanted | makes no call for the server, but one that a lenient reader understands |
| finished_rate | it is known | ends its turn by itself, within the tokens that it may use |
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tunemill_trainer.data.findings import crash
from tunemill_trainer.data.rows import Call
from tunemill_trainer.data.tools import call_problems, served_name
from tunemill_trainer.judge.faults import FaultKind, fault_of
from tunemill_trainer.judge.match import equal_calls, same_calls, same_tools
from tunemill_trainer.judge.parse import ReplyFormat, parse_reply
from tunemill_trainer.judge.question import Question
from tunemill_trainer.judge.tolerant import ast_match

NO_CALL, BROKEN_CALL, UNKNOWN_TOOL = "<none>", "<invalid>", "<hallucinated>"
"""The rows and columns of the confusion table that are no tools."""


@dataclass(frozen=True)
class Reply:
    """What a model said: the text up to its stop token, and whether there was one; None when nobody knows."""

    text: str
    finished: bool | None


@dataclass(frozen=True)
class Verdict:
    """How one reply did.

    Attributes:
        wants_call: the data has a call here.
        wants_several: it has more than one.
        right: the same calls with equal arguments; where none is wanted, none was begun.
        ast: the same calls with arguments that are as good; where none is wanted, none was begun.
        tool_names: the same tools as often, whatever their arguments; where none is wanted, none was begun.
        valid: a client gets at least one call.
        schema_valid: a client gets at least one call, and all keep to their tools' schemas.
        began_call: there is the beginning of a call, broken or not.
        over_called: more calls than are wanted, or the beginning of one where none is.
        hallucinated: a tool is called that was not offered.
        lenient: no client gets a call, though one can be understood.
        finished: the model ended its turn; None when nobody knows.
        fault: what is wrong, in a word; empty when the reply is right.
        error: what is wrong, in a sentence.
    """

    wants_call: bool
    wants_several: bool
    right: bool
    ast: bool
    tool_names: bool
    valid: bool
    schema_valid: bool
    began_call: bool
    over_called: bool
    hallucinated: bool
    lenient: bool
    finished: bool | None
    fault: FaultKind
    error: str


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
    """One tool over all cases.

    Attributes:
        wanted: calls that were wanted.
        made: calls that were made.
        named: wanted calls that were made, whatever their arguments.
        exact: wanted calls that were made with equal arguments.
    """

    wanted: int = 0
    made: int = 0
    named: int = 0
    exact: int = 0

    @property
    def precision(self) -> float | None:
        """The share of the calls that were wanted; None when none was made."""
        return self.named / self.made if self.made else None

    @property
    def recall(self) -> float | None:
        """The share of the wanted calls that were made; None when none was wanted."""
        return self.named / self.wanted if self.wanted else None

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 when either is, or when the tool does not occur."""
        return 2 * self.named / max(1, self.made + self.wanted)


@dataclass(frozen=True)
class Score:
    """How one model did on all cases.

    Attributes:
        rates: metric → share, in the order of the table above.
        confusion: wanted tool → called tool → calls; what is on the diagonal is right.
        tools: tool → its score; of the tools that were wanted, or offered and called.
        calls: what a client gets, one list a case.
        verdicts: one a case, in the order of the cases.
    """

    rates: dict[str, Rate]
    confusion: dict[str, dict[str, int]]
    tools: dict[str, ToolScore]
    calls: tuple[tuple[Call, ...], ...]
    verdicts: tuple[Verdict, ...]

    @property
    def tool_f1(self) -> float | None:
        """The mean of the tools' F1, each tool counting the same; None without a tool."""
        return sum(tool.f1 for tool in self.tools.values()) / len(self.tools) if self.tools else None

    @property
    def faults(self) -> dict[str, int]:
        """How often each fault occurs, the most frequent first."""
        counts = Counter(verdict.fault.value for verdict in self.verdicts if verdict.fault is not FaultKind.NONE)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def rates_of(self, indices: Iterable[int]) -> dict[str, Rate]:
        """Return the rates of some of the cases."""
        return _rates([self.verdicts[index] for index in indices])


def score(
    questions: Sequence[Question],
    replies: Sequence[Reply],
    reply_format: ReplyFormat = ReplyFormat.HERMES,
    *,
    as_served: bool = False,
) -> Score:
    """Judge one reply a question.

    Args:
        questions: what was asked.
        replies: what was answered, one a question.
        reply_format: how the replies write calls.
        as_served: whether a name that no server takes counts as the one that the rows' tool got instead; for models
            that were shown the data's own names.
    """
    answers: list[_Answer] = []
    judged: list[Verdict] = []
    for number, (question, reply) in enumerate(zip(questions, replies, strict=True), start=1):
        try:
            answers.append(_Answer(question, reply, reply_format, as_served=as_served))
            judged.append(answers[-1].verdict())
        except MemoryError:
            raise  # what the machine lacks has a reason of its own
        except Exception as error:  # noqa: BLE001 - whatever it is, its message may quote the reply or the row
            raise crash(error, f"case {number}") from None
    verdicts = tuple(judged)
    calls = tuple(answer.found.calls for answer in answers)
    return Score(_rates(verdicts), _confusion(answers), _tools(answers), calls, verdicts)


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
    "ast_match": (lambda v: v.wants_call, lambda v: v.ast),
    "valid_call_rate": (lambda v: v.wants_call, lambda v: v.valid),
    "schema_valid_rate": (lambda v: v.wants_call, lambda v: v.schema_valid),
    "parallel_accuracy": (lambda v: v.wants_several, lambda v: v.ast),
    "abstention_accuracy": (lambda v: not v.wants_call, lambda v: not v.began_call),
    "overall_accuracy": (lambda _: True, lambda v: v.ast),
    "missed_call_rate": (lambda v: v.wants_call, lambda v: not v.began_call),
    "over_call_rate": (lambda _: True, lambda v: v.over_called),
    "hallucinated_tool_rate": (lambda _: True, lambda v: v.hallucinated),
    "lenient_only_rate": (lambda v: v.wants_call, lambda v: v.lenient),
    "finished_rate": (lambda v: v.finished is not None, lambda v: v.finished is True),
}
"""Metric → which cases ask for it, and which of them count."""


def _rates(verdicts: Sequence[Verdict]) -> dict[str, Rate]:
    rates = {}
    for name, (asks, hits) in _METRICS.items():
        asked = [verdict for verdict in verdicts if asks(verdict)]
        rates[name] = Rate(sum(map(hits, asked)), len(asked))
    return rates


class _Answer:
    """A reply beside its question."""

    def __init__(self, question: Question, reply: Reply, reply_format: ReplyFormat, *, as_served: bool) -> None:
        self.wanted = question.gold.calls
        self.tools = question.tools
        # Data without a list of tools calls what it knows.
        self.offered = {tool.name for tool in self.tools} | {call.name for call in self.wanted}
        self.reply = reply
        self.found = parse_reply(reply.text, reply_format, self.tools)
        if as_served:
            self.found = replace(self.found, calls=tuple(map(self._with_served_name, self.found.calls)))

    def verdict(self) -> Verdict:
        calls, began_call = self.found.calls, self.found.blocks > 0
        abstained = not self.wanted and not began_call
        fault = fault_of(self.reply.text, self.found, self.wanted, self.tools, finished=self.reply.finished)
        return Verdict(
            wants_call=bool(self.wanted),
            wants_several=len(self.wanted) > 1,
            right=same_calls(calls, self.wanted) if self.wanted else abstained,
            ast=ast_match(calls, self.wanted, self.tools) if self.wanted else abstained,
            tool_names=same_tools(calls, self.wanted) if self.wanted else abstained,
            valid=bool(calls),
            schema_valid=bool(calls) and all(map(self._keeps_to_schema, calls)),
            began_call=began_call,
            over_called=len(calls) > len(self.wanted) or (began_call and not self.wanted),
            hallucinated=any(call.name not in self.offered for call in calls),
            lenient=fault.lenient,
            finished=self.reply.finished,
            fault=fault.kind,
            error=fault.message,
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

    def _with_served_name(self, call: Call) -> Call:
        served = served_name(call.name)
        return replace(call, name=served) if call.name not in self.offered and served in self.offered else call

    def _keeps_to_schema(self, call: Call) -> bool:
        if not self.tools:
            return call.name in self.offered
        return not call_problems(call, self.tools)


def _confusion(answers: Sequence[_Answer]) -> dict[str, dict[str, int]]:
    counts = Counter(pair for answer in answers for pair in answer.confused())
    table: dict[str, dict[str, int]] = {}
    for (wanted, called), count in sorted(counts.items()):
        table.setdefault(wanted, {})[called] = count
    return table


def _tools(answers: Sequence[_Answer]) -> dict[str, ToolScore]:
    wanted, made, named, exact = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for answer in answers:
        here, there = Counter(call.name for call in answer.wanted), answer.made()
        wanted.update(here)
        made.update(there)
        named.update(here & there)
        exact.update(equal_calls(answer.found.calls, answer.wanted))
    names = sorted((wanted | made).keys() - {UNKNOWN_TOOL})
    return {name: ToolScore(wanted[name], made[name], named[name], exact[name]) for name in names}
