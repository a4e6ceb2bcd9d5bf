"""A fit on several devices: this process has the first one, and every further one a process of its own.

Lightning's own launcher runs the whole command again for each device, which would start a sweep anew.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import multiprocessing
from torch.distributed import destroy_process_group, is_initialized

from lvd.errors import LvdError

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Rank:
    """One of the processes that fit together; they meet at a port of this machine."""

    number: int
    of: int
    port: int


@contextmanager
def further_ranks(devices: int, fit: Callable[[Rank], object]) -> Iterator[Rank | None]:
    """Processes that call `fit` with ranks 1 and up, while the block fits as the rank that it is given.

    `fit` travels to other processes: a function of a module, or a partial of one. One device: no process is
    started, and the rank is None.

    Raises:
        LvdError: a process ended before it came to `fit`.
    """
    if devices == 1:
        yield None
        return
    port, context = _free_port(), multiprocessing.get_context("spawn")
    others = []
    try:
        for number in range(1, devices):
            ours, theirs = context.Pipe()
            arguments = (fit, Rank(number, devices, port), torch.get_num_threads(), theirs)
            process = context.Process(target=_fit_as, args=arguments, daemon=True)
            process.start()
            others.append((process, ours))
        for process, ours in others:
            while not ours.poll(0.1):
                if not process.is_alive():
                    raise LvdError(f"devices={devices}: a process ended before it had begun to train")
        yield Rank(0, devices, port)
        for process, _ in others:
            process.join()
    finally:
        for process, _ in others:
            process.terminate()
            process.join()
        if is_initialized():  # another fit meets at another port
            destroy_process_group()


def _fit_as(fit: Callable[[Rank], object], rank: Rank, threads: int, begun: Connection) -> None:
    torch.set_num_threads(threads)
    begun.send(True)
    fit(rank)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HOST, 0))
        return int(found.getsockname()[1])


class OneOfSeveral(LightningEnvironment):
    """Tells Lightning which process this is, and that there is none for it to start."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return _HOST

    @property
    def main_port(self) -> int:
        return self._rank.port

    def local_rank(self) -> int:
        return self._rank.number

    def node_rank(self) -> int:
        return 0


def options_of(rank: Rank | None) -> dict[str, Any]:
    """What a Trainer is told of its rank; batches are shared out by the data (`lvd.detect.data`)."""
    if rank is None:
        return {"devices": 1}  # Lightning's DDP would replay the command line into a new sweep
    return {
        "devices": rank.of,
        "strategy": "ddp",
        "plugins": [OneOfSeveral(rank)],
        "use_distributed_sampler": False,
    }
