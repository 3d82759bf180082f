"""A function over batches in several processes: in order, with a limited number of batches, and with its errors."""

import os
import signal

import pytest
from tunemill_trainer.process.parallel import ordered_map


def squares(numbers):
    """Return the squares of a batch, and the process id."""
    return [number**2 for number in numbers], os.getpid()


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_the_order_of_the_batches(workers):
    """With any number of processes. With one worker, or one batch, there is no other process."""
    batches = [[number, number + 1] for number in range(50)]
    found = list(ordered_map(squares, batches, workers))
    assert [result for result, _ in found] == [squares(batch)[0] for batch in batches]
    assert (os.getpid() in {who for _, who in found}) is (workers == 1)
    assert next(iter(ordered_map(squares, batches[:1], workers)))[1] == os.getpid()


def test_batches_are_consumed_lazily():
    """A stream that is larger than memory is not read far ahead."""
    taken = []

    def stream():
        for number in range(1000):
            taken.append(number)
            yield [number]

    results = ordered_map(squares, stream(), 2)
    next(results)
    assert len(taken) < 10
    results.close()


def test_an_error_of_the_function_is_raised():
    """As if the function had been called in this process."""

    def fail(number):
        raise ValueError(f"no {number}")

    with pytest.raises(ValueError, match="no 7"):
        list(ordered_map(fail, [7, 8], 2))


def test_a_killed_worker_raises_memory_error():
    """The kernel's OOM killer is the usual cause."""

    def die(_batch):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(MemoryError):
        list(ordered_map(die, [1, 2, 3], 2))
