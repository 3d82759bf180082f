"""Several ranks on this machine, each a forked process, that work on the same task."""

import contextlib
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from learn.processes import _FORKING
from tunemill_trainer.process.ranks import Place, Ranks


def in_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `work(ranks, *arguments)` in this many ranks; return the results by rank."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for index in range(count):
        receiving, sending = _FORKING.Pipe(duplex=False)
        place = Place(index, count, index, count, "127.0.0.1", port)
        process = _FORKING.Process(target=_rank, args=(place, sending, work, arguments))
        process.start()
        sending.close()
        started.append((process, receiving))
    results = []
    try:
        for _, receiving in started:
            assert receiving.poll(120), "a rank has no result after two minutes"
            # As bytes: torch would share a tensor's memory with a process that has ended.
            result = pickle.loads(receiving.recv_bytes())  # noqa: S301 - from our own process
            assert not isinstance(result, Failed), result
            results.append(result)
    finally:
        for process, receiving in started:
            process.kill()
            process.join()
            receiving.close()
    return results


class Failed(str):
    """The traceback of a rank that failed."""

    __slots__ = ()


def _rank(place: Place, sending: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(place)
    try:
        ranks.connect("test")
        ranks.meet("cpu")
        sending.send_bytes(pickle.dumps(work(ranks, *arguments)))
        with contextlib.suppress(Exception):
            ranks.finish()
    except BaseException:  # noqa: BLE001 - for the test to show
        sending.send_bytes(pickle.dumps(Failed(traceback.format_exc())))
