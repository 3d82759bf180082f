"""Asks a server many questions at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tunemill_trainer.judge.question import Question
from tunemill_trainer.serving.client import Client, ServedReply
from tunemill_trainer.serving.errors import ServingError


def ask_all(
    client: Client,
    questions: Sequence[Question],
    *,
    parallel: int,
    max_tokens: int | None,
    temperature: float | None,
    report: Callable[[int], None],
) -> list[ServedReply]:
    """Return the reply to each question, in order.

    Args:
        client: the model.
        questions: the questions.
        parallel: the most requests at a time.
        max_tokens: the most tokens of a reply; None means the server's limit.
        temperature: see `Client.ask`.
        report: called with the number of replies so far.

    Raises:
        ServingError: one question has no reply after all retries. The others are not asked then: a figure over some of
            the questions would not be comparable.
    """
    replies: dict[int, ServedReply] = {}
    waiting = iter(range(len(questions)))
    with ThreadPoolExecutor(parallel) as threads:
        running: dict[Future[ServedReply], int] = {}

        def start_more() -> None:
            while len(running) < parallel and (index := next(waiting, None)) is not None:
                question = questions[index]
                future = threads.submit(
                    client.ask, question.messages, question.tools, max_tokens=max_tokens, temperature=temperature
                )
                running[future] = index

        start_more()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                index = running.pop(future)
                try:
                    replies[index] = future.result()
                except ServingError as error:
                    raise ServingError(
                        f"{questions[index].id}: {error} (after {len(replies)} of {len(questions)} replies)", error.code
                    ) from error
                report(len(replies))
            start_more()
    return [replies[index] for index in range(len(questions))]
