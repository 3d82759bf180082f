"""Starts the ranks of a node, one process each, and waits for them.

It takes the place of torchrun, whose agent loses what the pod has to say about a failure: it replaces the exit code by
1, kills all ranks 30 seconds after SIGTERM, and needs the memory of torch itself. It starts no rank again: when one
fails, the pod fails, and all pods start again from the newest checkpoint.

See docs/adr/0018-several-gpus.md.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Self

from tunemill_api.constants import COORDINATOR_PORT, ENV_COORDINATOR, ENV_NODE_RANK, ENV_NODES
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.run_spec import RunSpec

from tunemill_trainer.errors import StageError
from tunemill_trainer.process import cpus, signals
from tunemill_trainer.process.ranks import Place
from tunemill_trainer.process.stop import grace_seconds

_OWN_REASON_SECONDS = 5.0
"""After a rank has lost another one: how long the other ranks of the node have to end with their own reason."""
_AFTER_GRACE_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
_DEVICES = "CUDA_VISIBLE_DEVICES"
_TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Set by some platforms. With them accelerate would start a process group of its own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A node among those that train together.

    Attributes:
        index: from 0.
        count: number of nodes.
        ranks: processes of each node.
        host: host of node 0.
        port: port of the store; 0 for a free one, with one node.
    """

    index: int
    count: int
    ranks: int
    host: str
    port: int

    @classmethod
    def of(cls, run: RunSpec, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the node that this process is on, as the operator describes it to the pod.

        A local run has the ranks of all nodes on one machine.

        Args:
            run: the run, with spec.compute.
            environment: the environment variables.

        Raises:
            StageError: InvalidSpec, when the variables contradict each other.
        """
        ranks = max(run.spec.compute.gpus, 1)
        count = int(environment.get(ENV_NODES, "1"))
        if count == 1:
            return cls(0, 1, ranks * (run.spec.compute.nodes if run.local else 1), "127.0.0.1", 0)
        index = int(environment.get(ENV_NODE_RANK, "-1"))
        # A port is given where several groups share an address, as on one machine.
        host, _, port = environment.get(ENV_COORDINATOR, "").partition(":")
        if not host or not 0 <= index < count:
            raise StageError(
                Reason.INVALID_SPEC,
                f"expected {ENV_COORDINATOR} and {ENV_NODE_RANK} from 0 to {count - 1} with {ENV_NODES}={count}, found "
                f"{host!r} and {environment.get(ENV_NODE_RANK)!r}",
            )
        return cls(index, count, ranks, host, int(port or COORDINATOR_PORT))

    @property
    def all_ranks(self) -> int:
        """The number of ranks on all nodes."""
        return self.ranks * self.count

    def places(self) -> list[Place]:
        """Return the places of the ranks of this node."""
        port = self.port or _free_port()
        return [
            Place(self.index * self.ranks + local, self.all_ranks, local, self.ranks, self.host, port)
            for local in range(self.ranks)
        ]


@dataclass(frozen=True)
class Ended:
    """How the ranks of a node ended.

    Attributes:
        code: the exit code of the pod, 128 plus the signal for a rank that was killed.
        local_index: the rank whose report is that of the pod.
    """

    code: int
    local_index: int


def run(places: Sequence[Place], commands: Sequence[Sequence[str]], *, on_gpus: bool) -> Ended:
    """Start a process per rank and wait until all have ended.

    SIGTERM and SIGINT are forwarded as SIGTERM to every rank. When a rank fails, the others are killed: at once, or
    after a few seconds if it only lost another one, which may be about to report why it failed.

    Args:
        places: of the ranks of this node.
        commands: program and arguments of each rank.
        on_gpus: whether each rank sees a GPU of its own.
    """
    return _Processes(places, commands, on_gpus=on_gpus).run()


class _Processes:
    def __init__(self, places: Sequence[Place], commands: Sequence[Sequence[str]], *, on_gpus: bool) -> None:
        self._places, self._commands, self._on_gpus = places, commands, on_gpus
        self._running: dict[int, int] = {}
        """Local ranks by process id."""
        self._codes: dict[int, int] = {}
        """Exit codes by local rank, in the order in which they ended, without those that were killed here."""
        self._killed = False
        self._timers: list[threading.Timer] = []
        self._stopping = False

    def run(self) -> Ended:
        with signals.handling(self._on_signal):
            for place, command in zip(self._places, self._commands, strict=True):
                pid = os.posix_spawn(
                    command[0],
                    list(command),
                    _environment(place, on_gpu=self._on_gpus),
                    setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGPIPE],
                )
                self._running[pid] = place.local_index
            if self._stopping:
                self._send(signal.SIGTERM)
            while self._running:
                pid, status = os.waitpid(-1, 0)
                local = self._running.pop(pid, None)
                if local is not None:
                    self._on_end(local, signals.exit_code(status))
        for timer in self._timers:
            timer.cancel()
        return self._outcome()

    def _on_end(self, local: int, code: int) -> None:
        if self._killed and code == 128 + signal.SIGKILL:
            return
        self._codes[local] = code
        if code in (ExitCode.DONE, ExitCode.INTERRUPTED) or not self._running:
            return
        _log.warning("rank %d ended with exit code %d: ending the other ranks", self._places[local].index, code)
        if code == ExitCode.PEER_LOST:
            self._later(_OWN_REASON_SECONDS)
        else:
            self._kill()

    def _outcome(self) -> Ended:
        codes = self._codes
        own = [local for local, code in codes.items() if code not in (ExitCode.DONE, ExitCode.PEER_LOST)]
        # A rank that was stopped is the cause only if no other one failed.
        own.sort(key=lambda local: codes[local] == ExitCode.INTERRUPTED)
        if own:
            return Ended(codes[own[0]], own[0])
        if self._stopping and self._killed:
            return Ended(ExitCode.INTERRUPTED, next(iter(codes), 0))
        lost = [local for local, code in codes.items() if code == ExitCode.PEER_LOST]
        return Ended(ExitCode.PEER_LOST, lost[0]) if lost else Ended(ExitCode.DONE, 0)

    def _later(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._kill)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _kill(self) -> None:
        self._killed = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        for pid in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = True
            # A rank that waits inside torch.distributed does not see a signal until its peers answer.
            self._later(grace_seconds() + _AFTER_GRACE_SECONDS)
            self._send(signal.SIGTERM)


def end_with_parent(place: Place) -> None:
    """Have this process killed when the one that started it ends, if it is one of several ranks.

    A rank that is left over would write checkpoints while those of the next attempt do.
    """
    if place.count > 1:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def command_for(stage: str, options: Sequence[str]) -> list[str]:
    """Return the command of a rank of a stage."""
    return [sys.executable, "-m", "tunemill_trainer", stage, *options]


def _environment(place: Place, *, on_gpu: bool) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _TORCH_VARIABLES}
    environment = {**kept, **place.to_environment()}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cpus.available() // place.local_count)))
    # Each exchange then raises an error when a peer is lost, instead of aborting the process without a report.
    environment.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    if on_gpu:
        visible = kept.get(_DEVICES, "")
        devices = visible.split(",") if visible else [str(at) for at in range(place.local_count)]
        # Each rank sees its own GPU only, as cuda:0.
        environment[_DEVICES] = devices[place.local_index] if place.local_index < len(devices) else ""
    return environment


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
