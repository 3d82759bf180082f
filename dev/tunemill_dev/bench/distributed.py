"""Compares several ranks with one rank, and with TRL and DistributedDataParallel: `make bench-distributed`.

All runs train the model and the rows of `bench.train`, with one thread in each process.

- `speed_2_vs_1`: how many times faster two ranks train an epoch than one. `trl_ddp_speed_2_vs_1` is the same for TRL's
  defaults, where two processes share a batch of the same size.
- `waiting_share_8_ranks`: the share of the time that eight ranks wait for the slowest one, on the lengths of the
  agents-course rows. A simulation: the rows are dealt as in training, and passes of several sizes are timed in one
  process. `waiting_share_8_ranks_equal_rows` is the same if each rank gets the same number of rows, as with
  DistributedDataParallel.
- `bytes_vs_minimum`: the bytes that are added over the ranks in a step, against those of the gradients in FP32.
- `restart_s`: seconds from the kill of one of two ranks to the end of the next step, after both have started again from
  the last checkpoint. It includes the start of Python, the imports and the construction of the model.
"""

import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tunemill_trainer.learn.gradients import GradientSum
from tunemill_trainer.learn.micro_batches import deal, split
from tunemill_trainer.process.ranks import Place, Ranks

from tunemill_dev.bench import train
from tunemill_dev.cluster.ports import free_ports

OUTPUT = Path("build/bench/distributed.json")
ROWS, ROUNDS = 64, 3
BATCH = 16
"""Rows of a step of the timed runs."""
_RANKS, _STEPS, _ROWS_PER_RANK, _PASS_TOKENS = 8, 200, 8, 16_384
"""Of the simulation."""
_SPAWN = multiprocessing.get_context("spawn")


def main() -> None:
    """Print the results and write them to `build/bench/distributed.json`."""
    figures = {**_speeds(), **_waiting(), "bytes_vs_minimum": _bytes(), "restart_s": _restart()}
    text = json.dumps({name: round(figure, 4) for name, figure in figures.items()}, indent=2)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(text + "\n")
    print(text)


def _speeds() -> dict[str, float]:
    ours, ddp = [], []
    for _ in range(ROUNDS):
        # In turns, so that other load on the machine affects all of them.
        ours.append(_epoch(_train_ours, 1) / _epoch(_train_ours, 2))
        ddp.append(_epoch(_train_with_trl, 1) / _epoch(_train_with_trl, 2))
    return {"speed_2_vs_1": statistics.median(ours), "trl_ddp_speed_2_vs_1": statistics.median(ddp)}


def _epoch(work: Callable[..., None], count: int) -> float:
    """Return the seconds of an epoch, of the slowest process."""
    return max(float(result) for result in _together(work, count))


def _together(work: Callable[..., None], count: int, *arguments: object) -> list[Any]:
    """Run `work(place, send, *arguments)` in processes; return the first thing that each one sends."""
    processes = _start(work, count, *arguments)
    try:
        return [receiving.recv() for _, receiving in processes]
    finally:
        _end(processes)


def _start(work: Callable[..., None], count: int, *arguments: object) -> list[tuple[Any, Connection]]:
    (port,), processes = free_ports(1), []
    for index in range(count):
        receiving, sending = _SPAWN.Pipe(duplex=False)
        place = Place(index, count, index, count, "127.0.0.1", port)
        process = _SPAWN.Process(target=_work, args=(work, place, sending, arguments))
        process.start()
        sending.close()
        processes.append((process, receiving))
    return processes


def _end(processes: Sequence[tuple[Any, Connection]]) -> None:
    for process, _ in processes:
        process.kill()
        process.join()


def _work(work: Callable[..., None], place: Place, sending: Connection, arguments: tuple[object, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    work(place, sending.send, *arguments)


def _met(place: Place) -> Ranks:
    ranks = Ranks(place)
    ranks.connect("bench")
    ranks.meet("cpu")
    return ranks


def _train_ours(place: Place, send: Callable[[object], None]) -> None:
    watch = train.step_clock()
    rows = train.agents_course_rows(ROWS)
    train.ours(train.base_model("sdpa"), rows, BATCH, watch, added=train.ADDED, ranks=_met(place))
    send(watch.seconds)


def _train_with_trl(place: Place, send: Callable[[object], None]) -> None:
    if place.count > 1:
        os.environ |= {
            "RANK": str(place.index),
            "WORLD_SIZE": str(place.count),
            "LOCAL_RANK": str(place.index),
            "LOCAL_WORLD_SIZE": str(place.count),
            "MASTER_ADDR": place.host,
            "MASTER_PORT": str(place.port),
        }
    watch = train.step_clock()
    rows = train.agents_course_rows(ROWS)
    batch = BATCH // place.count
    train.trl_defaults(train.base_model("sdpa"), rows, watch, added=train.ADDED, batch=batch)
    send(watch.seconds)


def _waiting() -> dict[str, float]:
    (times,) = _together(_time_passes, 1)
    lengths = [len(row["input_ids"]) for row in train.agents_course_rows(_STEPS * _RANKS * _ROWS_PER_RANK)]
    random.Random(1).shuffle(lengths)
    count = _RANKS * _ROWS_PER_RANK
    steps = [lengths[at : at + count] for at in range(0, len(lengths), count)]
    equal = [list(range(rank, count, _RANKS)) for rank in range(_RANKS)]
    return {
        "waiting_share_8_ranks": _share(steps, times, partial(deal, ranks=_RANKS)),
        "waiting_share_8_ranks_equal_rows": _share(steps, times, lambda _lengths: equal),
    }


def _share(
    steps: Sequence[list[int]], times: Sequence[tuple[int, float]], dealt: Callable[[list[int]], list[list[int]]]
) -> float:
    """Return the share of the time that the ranks wait."""
    busy = slowest = 0.0
    for lengths in steps:
        seconds = []
        for rows in dealt(lengths):
            own = [lengths[at] for at in rows]
            passes = split(own, _PASS_TOKENS, padded=False)
            seconds.append(sum(_seconds(sum(own[at] for at in chosen), times) for chosen in passes))
        busy += sum(seconds)
        slowest += len(seconds) * max(seconds)
    return 1 - busy / slowest


def _seconds(tokens: int, times: Sequence[tuple[int, float]]) -> float:
    """Return the time of a pass, interpolated between the measured ones, and proportional above the largest."""
    (low, at_low) = (0, 0.0)
    for high, at_high in times:
        if tokens <= high:
            return at_low + (at_high - at_low) * (tokens - low) / (high - low)
        low, at_low = high, at_high
    return at_low * tokens / low


def _time_passes(_place: Place, send: Callable[[object], None]) -> None:
    """Send tokens and seconds of forward and backward passes of several sizes, the median of three."""
    times = []
    for rows in (1, 2, 4, 8):
        lengths = [len(row["input_ids"]) for row in train.agents_course_rows(rows)]
        seconds = []
        for _ in range(4):
            watch = train.step_clock()
            train.ours(train.base_model("sdpa"), train.agents_course_rows(rows), rows, watch, added=train.ADDED)
            seconds.append(watch.seconds)
        times.append((sum(lengths), statistics.median(seconds[1:])))
    send(times)


def _bytes() -> float:
    (ratio,) = _together(_count_bytes, 1)
    return float(ratio)


def _count_bytes(place: Place, send: Callable[[object], None]) -> None:
    from peft import get_peft_model

    model = train.base_model("sdpa")
    tuned = get_peft_model(model, train.adapter_for(model, train.ADDED))
    trained = sum(each.numel() for each in tuned.parameters() if each.requires_grad)
    gradients = GradientSum(tuned.parameters(), Ranks(place), figures=4 + 2)
    gradients.start()
    send(gradients.nbytes / (4 * trained))


def _restart() -> float:
    with tempfile.TemporaryDirectory() as folder:
        processes = _start(_train_until_killed, 2, Path(folder), False)
        try:
            for _, receiving in processes:
                receiving.recv()
                receiving.recv()
            killed = time.monotonic()
            processes[1][0].kill()
            wait([process.sentinel for process, _ in processes])
            for process, _ in processes:
                process.join()
        finally:
            _end(processes)
        _together(_train_until_killed, 2, Path(folder), True)
        return time.monotonic() - killed


def _train_until_killed(place: Place, send: Callable[[object], None], folder: Path, resumed: bool) -> None:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc] # transformers ships no types
        def on_step_end(self, _args: object, state: Any, *_: object, **__: object) -> None:  # noqa: ANN401
            send(state.global_step)

    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    whole = [path for path in found if (path / "trainer_state.json").exists()]
    checkpoint = whole[-1] if resumed else None
    rows = train.agents_course_rows(ROWS)
    model = train.base_model("sdpa")
    train.ours(model, rows, BATCH // 4, Steps(), ranks=_met(place), folder=folder, checkpoint=checkpoint)


if __name__ == "__main__":
    main()
