"""Several ranks on this machine, each a forked process."""

import contextlib
import os
import pickle
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from learn.processes import FORKING, StageProcess, started
from learn.training import Ended, World
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, StageReport
from tunemill_dev.cluster.ports import free_ports
from tunemill_trainer.process.ranks import Place, Ranks

ENVIRONMENT: dict[str, str] = {}
"""More variables for `in_ranks`."""


def in_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `work(ranks, *arguments)` in this many ranks; return the results by rank."""
    (port,), processes = free_ports(1), []
    for index in range(count):
        receiving, sending = FORKING.Pipe(duplex=False)
        place = Place(index, count, index, count, "127.0.0.1", port)
        process = FORKING.Process(target=_rank, args=(place, ENVIRONMENT, sending, work, arguments))
        process.start()
        sending.close()
        processes.append((process, receiving))
    results = []
    try:
        for _, receiving in processes:
            assert receiving.poll(120), "a rank has no result after two minutes"
            # As bytes: torch would share a tensor's memory with a process that has ended.
            result = pickle.loads(receiving.recv_bytes())
            results.append(result)
        failed = [result for result in results if isinstance(result, Failed)]
        # The first one may only have lost the one that failed.
        assert not failed, "\n".join(failed)
    finally:
        for process, receiving in processes:
            process.kill()
            process.join()
            receiving.close()
    return results


class Failed(str):
    """The traceback of a rank that failed."""

    __slots__ = ()


def _rank(
    place: Place,
    environment: dict[str, str],
    sending: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= environment
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


@dataclass
class Group:
    """The pods of a stage that work together, each with a disk of its own and one rank.

    Attributes:
        world: the services.
        run: the run of the stage.
        folder: for the disks of the pods.
        attempts: how often the group was started.
    """

    world: World
    run: RunSpec
    folder: Path
    attempts: int = 0

    def stage(
        self,
        stage: Stage,
        count: int,
        watch: Callable[[str], tuple[int, int] | None] = lambda _line: None,
    ) -> list[Ended]:
        """Run a stage in this many pods; return how they ended, by rank.

        Args:
            stage: which.
            count: number of pods.
            watch: sees the log of rank 0, and returns a rank and the signal to send it, if any.
        """
        self.attempts += 1
        (port,), ended = free_ports(1), [Ended(-1, None, "")] * count
        with contextlib.ExitStack() as stack:
            pods = [
                stack.enter_context(self._pod(stage, Place(at, count, 0, 1, "127.0.0.1", port))) for at in range(count)
            ]

            def follow(rank: int) -> None:
                lines = []
                for line in pods[rank].lines():
                    lines.append(line)
                    if rank == 0 and (sent := watch(line)) is not None:
                        pods[sent[0]].send_signal(sent[1])
                code = pods[rank].wait(60)
                report = self._work(rank) / "report.json"
                found = StageReport.model_validate_json(report.read_text()) if report.exists() else None
                ended[rank] = Ended(code, found, "".join(lines))

            threads = [threading.Thread(target=follow, args=(rank,)) for rank in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return ended

    def _work(self, rank: int) -> Path:
        return self.folder / f"attempt-{self.attempts}" / f"pod-{rank}"

    def _pod(self, stage: Stage, place: Place) -> contextlib.AbstractContextManager[StageProcess]:
        work = self._work(place.index)
        work.mkdir(parents=True)
        (work / "run.json").write_text(self.run.model_dump_json(by_alias=True))
        files = ["--run-spec", str(work / "run.json"), "--work", str(work), "--report", str(work / "report.json")]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "TUNEMILL_SECRETS_DIR": str(self.world.secrets)}
        return started([stage.value, *files], variables | place.to_environment())
