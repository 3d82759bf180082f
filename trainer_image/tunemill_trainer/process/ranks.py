"""The ranks of a run: the processes that train together, one per GPU, or one per node on CPUs.

`rank_processes` starts them and gives each one its `Place`. They meet at a key-value store in rank 0, and exchange
tensors through torch.distributed: NCCL on GPUs, gloo on CPUs. Torch's own variables (RANK, WORLD_SIZE) are not set:
with them Transformers and accelerate would wrap the model for data parallelism of their own.

A rank that loses another one raises PeerLost. With one rank, all methods return at once, and torch.distributed is not
used. See docs/adr/0018-several-gpus.md.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.process.stop import StopSignal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

T = TypeVar("T")

ENV_PLACE = "TUNEMILL_PLACE"
"""Set by `rank_processes` for each rank: its Place as JSON."""
ENV_PEER_TIMEOUT = "TUNEMILL_PEER_TIMEOUT_SECONDS"
"""How long a rank waits for the others in an exchange, for example in spec.podTemplates.train.env."""
_PEER_TIMEOUT_SECONDS = 1800.0
"""Its default. Others wait this long while rank 0 saves a checkpoint and uploads the one before it."""
_MEETING_SECONDS = 3600.0
"""How long a rank waits until all have started. The pods of a group may start at different times."""
_LEAVING_SECONDS = 30.0
"""How long rank 0 waits at the end until the others have noticed it."""
_ATTEMPT_SECONDS = 2
"""Waiting is split into attempts of this length, between which a request to stop is noticed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """The place of a process among the ranks.

    Attributes:
        index: the rank, from 0.
        count: number of ranks of the run.
        local_index: the rank among those of its node.
        local_count: number of ranks of its node.
        host: host of rank 0.
        port: port of the store in rank 0.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    host: str = ""
    port: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the place of this process; without the variable it is the only rank."""
        text = environment.get(ENV_PLACE, "")
        return cls(**json.loads(text)) if text else cls()

    def to_environment(self) -> dict[str, str]:
        """Return the variable for `from_environment`."""
        return {ENV_PLACE: json.dumps(asdict(self))}

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone reports, uploads and commits."""
        return self.index == 0

    @property
    def node(self) -> int:
        """The index of the node."""
        return self.index // self.local_count


class PeerLost(StageError):  # noqa: N818 - named like its reason
    """Another rank of the run ended, or does not answer."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.PEER_LOST, message)


class AgreedStop:
    """A request to stop that all ranks follow after the same step.

    Args:
        signal: the request to this process.
        alone: whether there is only one rank, which need not agree with others.
    """

    def __init__(self, signal: StopSignal, *, alone: bool) -> None:
        self.signal = signal
        self._alone = alone
        self._agreed = False

    @property
    def requested(self) -> bool:
        """Whether to stop: there was a request, and all ranks know about it."""
        return self.signal.requested if self._alone else self._agreed

    def agree(self, *, any_requested: bool) -> None:
        """Record whether any rank had a request in the last step."""
        self._agreed = self._agreed or any_requested


class Ranks:
    """The ranks of a run, seen from one of them.

    Args:
        place: the place of this process.
        signal: ends waiting for other ranks.
    """

    def __init__(self, place: Place = Place(), signal: StopSignal | None = None) -> None:
        self.place = place
        self.stop = AgreedStop(signal or StopSignal(), alone=place.count == 1)
        self._store: Any = None
        self._name = ""

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.place.first

    @property
    def index(self) -> int:
        """The rank, from 0."""
        return self.place.index

    @property
    def count(self) -> int:
        """The number of ranks."""
        return self.place.count

    def connect(self, name: str) -> None:
        """Connect to the store of rank 0, and wait until it is there.

        Args:
            name: of the stage and its output. A rank of another stage or of a group of another size is not accepted.

        Raises:
            PeerLost: rank 0 did not come.
            Interrupted: there was a request to stop.
        """
        if self.count == 1:
            return
        self._name = f"{name}/{self.count}"
        import torch.distributed as dist

        def attempt() -> Any:  # noqa: ANN401 - torch has no type for it
            store = dist.TCPStore(
                self.place.host,
                self.place.port,
                is_master=self.first,
                wait_for_workers=False,
                timeout=timedelta(seconds=_ATTEMPT_SECONDS),
            )
            if self.first:
                store.set(self._name, "")
            store.wait([self._name], timedelta(seconds=_ATTEMPT_SECONDS))
            return store

        self._store = self._until(attempt, _MEETING_SECONDS, "rank 0", (dist.DistError, RuntimeError))

    def once_per_node(self, name: str, work: Callable[[], T]) -> T:
        """Return the result of `work`, which one rank of each node runs while the others of the node wait.

        Args:
            name: tells this call from others.
            work: leaves files for the others. Its result must be JSON.

        Raises:
            PeerLost: rank 0 ended.
            Interrupted: there was a request to stop.
        """
        if self.count == 1:
            return work()
        key = f"{self._name}/{name}/{self.place.node}"
        if self.place.local_index == 0:
            result = work()
            with self._peers(f"sharing {name}"):
                self._store.set(key, json.dumps(result))
            return result
        self._wait(key)
        with self._peers(f"sharing {name}"):
            shared: T = json.loads(self._store.get(key))
        return shared

    def meet(self, device: str) -> None:
        """Wait until all ranks are here, and start torch.distributed.

        Args:
            device: cpu or cuda. The device of a rank is the first one that it sees.

        Raises:
            PeerLost: not all ranks came.
            Interrupted: there was a request to stop.
        """
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        with self._peers("meeting"):
            self._store.set(f"{self._name}/here/{self.index}", "")
        for rank in range(self.count):
            self._wait(f"{self._name}/here/{rank}", _MEETING_SECONDS, f"rank {rank}")
        backend = "cpu:gloo"
        if device == "cuda":
            torch.cuda.set_device(0)
            backend += ",cuda:nccl"
        # Transformers warns that it does not use the group.
        logging.getLogger("transformers.training_args").setLevel(logging.ERROR)
        with self._peers("meeting"):
            dist.init_process_group(
                backend,
                store=dist.PrefixStore(f"{self._name}/group", self._store),
                rank=self.index,
                world_size=self.count,
                timeout=timedelta(seconds=peer_timeout()),
            )
        if self.first:
            _log.info("%d ranks, %d on each node", self.count, self.place.local_count)

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over all ranks."""
        if self.count > 1:
            import torch.distributed as dist

            with self._peers("adding gradients"):
                dist.all_reduce(tensor)

    def copy_from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by those of rank 0."""
        if self.count > 1:
            import torch.distributed as dist

            with self._peers("copying the initial weights"):
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank. They are pickled, and exchanged by gloo also on GPUs."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        with self._peers("gathering results"):
            dist.all_gather_object(values, value)
        return values

    def decided_by_first(self, decide: Callable[[], T]) -> T:
        """Return the decision of rank 0; the others do not decide."""
        return self.gather(decide() if self.first else None)[0]  # type: ignore[return-value] # rank 0 has decided

    def finish(self) -> None:
        """Wait until rank 0 calls this method, then leave the group.

        No rank ends successfully before rank 0 has committed: otherwise its pod would be complete while the others
        start again without it.

        Raises:
            PeerLost: rank 0 ended.
        """
        if self.count == 1:
            return
        import torch.distributed as dist

        key = f"{self._name}/finished"
        if self.first:
            with self._peers("finishing"):
                self._store.set(key, "")
        else:
            self._wait(key)
        with self._peers("finishing"):
            # The store is in rank 0, which must not end while others read from it.
            left = self._store.add(f"{self._name}/left", 1)
            deadline = time.monotonic() + _LEAVING_SECONDS
            while self.first and left < self.count and time.monotonic() < deadline:
                time.sleep(0.1)
                left = self._store.add(f"{self._name}/left", 0)
        if dist.is_initialized():
            dist.destroy_process_group()

    def _wait(self, key: str, seconds: float = float("inf"), what: str = "another rank") -> None:
        """Wait until a key is in the store."""
        import torch.distributed as dist

        def attempt() -> None:
            self._store.wait([key], timedelta(seconds=_ATTEMPT_SECONDS))

        with self._peers("waiting"):
            self._until(attempt, seconds, what, (dist.DistStoreError,))

    def _until(self, attempt: Callable[[], T], seconds: float, what: str, retried: tuple[type[Exception], ...]) -> T:
        deadline = time.monotonic() + seconds
        while True:
            self.stop.signal.check()
            try:
                return attempt()
            except retried as error:
                if time.monotonic() > deadline:
                    raise PeerLost(f"{what} did not come within {seconds:.0f} seconds") from error
                _log.debug("waiting for %s: %s", what, error)
                time.sleep(0.1)

    @contextmanager
    def _peers(self, doing: str) -> Iterator[None]:
        """Convert the errors of torch.distributed inside the block, except a lack of memory of this rank."""
        try:
            yield
        except RuntimeError as error:
            if "out of memory" in str(error):
                raise
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise PeerLost(f"rank {self.index} lost another rank while {doing}: {first_line}") from error


def peer_timeout(environment: Mapping[str, str] = os.environ) -> float:
    """Return how long a rank waits for the others in an exchange, in seconds."""
    try:
        return max(1.0, float(environment[ENV_PEER_TIMEOUT]))
    except (KeyError, ValueError):
        return _PEER_TIMEOUT_SECONDS
