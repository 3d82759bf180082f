"""Computes metrics from replies. Each is a share of the cases it applies to, with a 95 % Wilson interval.

| metric | applies to cases | share of replies that |
|---|---|---|
| tool_name_accuracy | with expected calls | call exactly the expected tools |
| exact_match | with expected calls | call exactly the expected tools with equal arguments |
| ast_match | with expected calls | are an AST match as in BFCL: the expected tools with equivalent arguments |
| valid_call_rate | with expected calls | contain at least one call, and every call can be parsed |
| schema_valid_rate | with expected calls | contain at least one call, and every call is valid under its tool's schema |
| parallel_accuracy | with several expected calls | are an AST match, in any order of the calls |
| abstention_accuracy | without expected calls | do not start a call |
| overall_accuracy | all | are an AST match, or do not start a call if none is expected |
| missed_call_rate | with expected calls | do not start a call |
| over_call_rate | all | contain more calls than expected, or start a call if none is expected |
| hallucinated_tool_rate | all | call a tool that is not available |
| lenient_only_rate | with expected calls | contain no call for the server, but one for a lenient parser |
| finished_rate | where it is known | end by a stop token, within the token limit |
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tunemill_trainer.data.findings import crash
from tunemill_trainer.data.rows import Call
from tunemill_trainer.data.tools import call_problems, served_name
from tunemill_trainer.judge.ast_matching import ast_match
from tunemill_trainer.judge.exact_matching import equal_calls, same_calls, same_tools
from tunemill_trainer.judge.faults import FaultKind, fault_of
from tunemill_trainer.judge.parse import ReplyFormat, parse_reply
from tunemill_trainer.judge.question import Question
from tunemill_trainer.judge.replies.parsed import ParsedReply

NO_CALL, BROKEN_CALL, UNKNOWN_TOOL = "<none>", "<invalid>", "<hallucinated>"
"""The rows and columns of the confusion table that are not tools."""


@dataclass(frozen=True)
class Reply:
    """A model's reply: the text before the stop token, and whether there was a stop token; None if unknown."""

    text: str
    finished: bool | None


@dataclass(frozen=True)
class Verdict:
    """The result for one reply.

    Attributes:
        wants_call: calls are expected.
        wants_several: more than one call is expected.
        right: exact match: the expected calls with equal arguments, or no started call if none is expected.
        ast: AST match: the expected calls with equivalent arguments, or no started call if none is expected.
        tool_names: the expected tools, each as often as expected, or no started call if none is expected.
        valid: a client receives at least one call.
        schema_valid: a client receives at least one call, and all are valid under their tools' schemas.
        began_call: the reply starts a call, even if it cannot be parsed.
        over_called: more calls than expected, or a started call if none is expected.
        hallucinated: a call to a tool that is not available.
        lenient: a client receives no call, but a lenient parser finds one.
        finished: the model generated a stop token; None if unknown.
        fault: the kind of fault; NONE if the reply is right.
        error: the fault as a message.
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
        """The share; None without cases."""
        return self.hits / self.cases if self.cases else None

    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson score interval (Wilson 1927); (0, 1) without cases."""
        if not self.cases:
            return 0.0, 1.0
        z2, n, share = 1.959964**2, self.cases, self.hits / self.cases
        centre = share + z2 / (2 * n)
        half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
        return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


@dataclass(frozen=True)
class ToolScore:
    """The calls to one tool in all cases.

    Attributes:
        wanted: the number of expected calls.
        made: the number of calls in the replies.
        named: the number of expected calls that were made with any arguments.
        exact: the number of expected calls that were made with equal arguments.
    """

    wanted: int = 0
    made: int = 0
    named: int = 0
    exact: int = 0

    @property
    def precision(self) -> float | None:
        """The share of the calls in replies that were expected; None without calls."""
        return self.named / self.made if self.made else None

    @property
    def recall(self) -> float | None:
        """The share of the expected calls that were made; None without expected calls."""
        return self.named / self.wanted if self.wanted else None

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 if either is 0, or the tool does not occur."""
        return 2 * self.named / max(1, self.made + self.wanted)


@dataclass(frozen=True)
class Score:
    """The scores of one model over all cases.

    Attributes:
        rates: metric → share, in the order of the table above.
        confusion: expected tool → called tool → number of calls.
        tools: tool → score, for the tools that were expected, or available and called.
        calls: the calls that a client receives, for each case.
        verdicts: the result of each case, in order.
    """

    rates: dict[str, Rate]
    confusion: dict[str, dict[str, int]]
    tools: dict[str, ToolScore]
    calls: tuple[tuple[Call, ...], ...]
    verdicts: tuple[Verdict, ...]

    @property
    def tool_f1(self) -> float | None:
        """The macro average of the tools' F1; None without tools."""
        return sum(tool.f1 for tool in self.tools.values()) / len(self.tools) if self.tools else None

    @property
    def faults(self) -> dict[str, int]:
        """The number of cases by fault, most frequent first."""
        counts = Counter(verdict.fault.value for verdict in self.verdicts if verdict.fault is not FaultKind.NONE)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def rates_of(self, indices: Iterable[int]) -> dict[str, Rate]:
        """Return the metrics of a subset of the cases."""
        return _rates([self.verdicts[index] for index in indices])


def score(
    questions: Sequence[Question],
    replies: Sequence[Reply],
    reply_format: ReplyFormat = ReplyFormat.HERMES,
    *,
    as_served: bool = False,
    parsed: Sequence[ParsedReply] | None = None,
) -> Score:
    """Score replies, one for each question.

    Args:
        questions: the questions.
        replies: the replies, one per question.
        reply_format: the call format of the replies.
        as_served: whether a call by a tool's original name, which servers do not accept, counts as a call by its new
            name. Use it for models that were prompted with the original names.
        parsed: the calls of each reply as a server parsed them; None means that they are parsed from the texts.
    """
    answers: list[_Answer] = []
    judged: list[Verdict] = []
    for number, (question, reply) in enumerate(zip(questions, replies, strict=True), start=1):
        try:
            found = parsed[number - 1] if parsed else parse_reply(reply.text, reply_format, question.tools)
            answers.append(_Answer(question, reply, found, as_served=as_served))
            judged.append(answers[-1].verdict())
        except MemoryError:
            raise  # not the fault of a case
        except Exception as error:  # noqa: BLE001 - the message of any exception may quote the reply or the row
            raise crash(error, f"case {number}") from None
    verdicts = tuple(judged)
    calls = tuple(answer.found.calls for answer in answers)
    return Score(_rates(verdicts), _confusion(answers), _tools(answers), calls, verdicts)


def sign_test(before: Iterable[bool], after: Iterable[bool]) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    It is the probability of a difference at least this large if both models are equally good.
    """
    changes = [now for then, now in zip(before, after, strict=True) if then != now]
    n, rarer = len(changes), min(sum(changes), len(changes) - sum(changes))
    if n == 0:
        return 1.0
    # Use integers: 2**n exceeds the range of floats at 1024 changes.
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
"""Metric → the cases that it applies to, and those of them that are hits."""


def _rates(verdicts: Sequence[Verdict]) -> dict[str, Rate]:
    rates = {}
    for name, (applies, hits) in _METRICS.items():
        cases = [verdict for verdict in verdicts if applies(verdict)]
        rates[name] = Rate(sum(map(hits, cases)), len(cases))
    return rates


class _Answer:
    """A reply with its question."""

    def __init__(self, question: Question, reply: Reply, found: ParsedReply, *, as_served: bool) -> None:
        self.wanted = question.gold.calls
        self.tools = question.tools
        # If the data has no list of tools, the expected ones are available.
        self.offered = {tool.name for tool in self.tools} | {call.name for call in self.wanted}
        self.reply = reply
        self.found = found
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
        """Count the calls by tool. Tools that are not available share the name UNKNOWN_TOOL."""
        return Counter(call.name if call.name in self.offered else UNKNOWN_TOOL for call in self.found.calls)

    def confused(self) -> list[tuple[str, str]]:
        """Return pairs of expected and called tool: equal names first, the rest in the order of the calls."""
        wanted, made = Counter(call.name for call in self.wanted), self.made()
        right = wanted & made
        missing, extra = list((wanted - right).elements()), list((made - right).elements())
        if self.found.error:  # then the client receives no calls
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
