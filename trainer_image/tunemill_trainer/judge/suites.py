"""Judges base and tuned model on a suite: one figure for each, by the suite's judge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tunemill_api.evaluation import Judge, Suite
from tunemill_api.failures import Reason
from tunemill_api.status import SuiteFacts

from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.metrics import Reply, score
from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.judge.patterns import SuitePattern
from tunemill_trainer.prepared import Case


@dataclass(frozen=True)
class Outcome:
    """The results of one model on a suite.

    Attributes:
        replies: its replies, one per case; none with the judge Likelihood.
        loss: with the judge Likelihood, the mean loss of the expected answers, in nats per token; otherwise 0.
    """

    replies: tuple[Reply, ...] = ()
    loss: float = 0.0


@dataclass(frozen=True)
class SuiteComparison:
    """The outcomes of both models on the same cases of a suite."""

    suite: Suite
    cases: tuple[Case, ...]
    base: Outcome
    tuned: Outcome
    reply_format: ReplyFormat

    def facts(self) -> SuiteFacts:
        """Return the figures of both models.

        Raises:
            StageError: InvalidSpec, when the pattern needs too much time; TrainingDiverged, when a loss is not a
                number.
        """
        base, tuned = self._decimals("base", self.base), self._decimals("tuned", self.tuned)
        return SuiteFacts(
            name=self.suite.name,
            judge=self.suite.judge,
            base=base,
            tuned=tuned,
            difference=f"{Decimal(tuned) - Decimal(base):+}",
            rows=len({case.row for case in self.cases}),
            cases=len(self.cases),
        )

    def lines(self) -> list[JsonObject]:
        """Return one line per case with both replies; none with the judge Likelihood."""
        if self.suite.judge is Judge.LIKELIHOOD:
            return []
        judged = zip(self.cases, *(self._verdicts(outcome) for outcome in (self.base, self.tuned)), strict=True)
        return [
            {
                "suite": self.suite.name,
                "id": case.id,
                "gold": case.gold.to_json(),
                "base": {"text": self.base.replies[at].text, "right": base},
                "tuned": {"text": self.tuned.replies[at].text, "right": tuned},
            }
            for at, (case, base, tuned) in enumerate(judged)
        ]

    def _decimals(self, model: str, outcome: Outcome) -> str:
        if self.suite.judge is not Judge.LIKELIHOOD:
            return f"{sum(self._verdicts(outcome)) / len(self.cases):.4f}"
        if not math.isfinite(outcome.loss):
            raise StageError(
                Reason.TRAINING_DIVERGED,
                f"the loss of the {model} model on spec.evaluation.suites[{self.suite.name}] is {outcome.loss}",
            )
        return f"{outcome.loss:.4f}"

    def _verdicts(self, outcome: Outcome) -> Sequence[bool]:
        """Return whether each reply is right."""
        if self.suite.judge is Judge.PATTERN:
            pattern = SuitePattern(self.suite)
            return [pattern.is_in(reply.text) for reply in outcome.replies]
        return [verdict.right for verdict in score(self.cases, outcome.replies, self.reply_format).verdicts]
