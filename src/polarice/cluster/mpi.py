"""Ranks that mpirun or srun started; the only place that knows mpi4py."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from polarice.cluster.launch import Launch
from polarice.cluster.packed import dealt, joined, summed
from polarice.cluster.watch import Line, start_hub
from polarice.types import InputError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

T = TypeVar("T")
POLL_S = (2e-5, 1e-3)  # first and longest sleep between looks at who has come
OTHERS_FAULT_S = 5.0  # in which the hub should have heard of a rank that is gone


class MPI:
    """The ranks of a communicator.

    A step's sums are one all-reduce; MPI libraries do it within a node first, through shared memory, then between
    nodes. Ranks that wait for others sleep, so that the cores are left to those that still work.
    """

    def __init__(self, comm: Intracomm, node: Intracomm) -> None:
        self._comm, self._node = comm, node
        self.rank, self.size = comm.rank, comm.size
        self.node_ranks = tuple(node.allgather(comm.rank))
        self.ending = False  # whether every rank knows that all of them are to end

    def sum(self, stats: T) -> T:
        from mpi4py.MPI import IN_PLACE

        self._meet()
        return summed(stats, lambda buffer: self._comm.Allreduce(IN_PLACE, buffer))

    def reduce_scatter(self, parts: Sequence[T]) -> T:
        self._meet()
        return dealt(parts, self.rank, self._comm.Reduce_scatter)

    def all_gather(self, parts: T) -> T:
        self._meet()
        return joined(parts, self._gathered)

    def collect(self, value: T) -> list[T]:
        self._meet()
        return self._comm.allgather(value)

    def broadcast(self, value: T, root: int = 0) -> T:
        self._meet()
        return self._comm.bcast(value, root)

    def on_root(self, make: Callable[[], T]) -> T:
        return self._made(self._comm, make)

    def on_node_root(self, make: Callable[[], T]) -> T:
        return self._made(self._node, make)

    def _made(self, comm: Intracomm, make: Callable[[], T]) -> T:
        """What rank 0 of `comm` makes. If it raises in the whole job's communicator, all ranks end together."""
        whole = comm is self._comm
        if comm.rank > 0:
            _wait(comm.Ibarrier())
            done, value = comm.bcast(None)
            if not done:
                self.ending = True
                raise SystemExit(2)
            return value
        try:
            value = make()
        except BaseException:
            self.ending = whole
            if whole:
                _wait(comm.Ibarrier())
                comm.bcast((False, None))
            raise
        _wait(comm.Ibarrier())
        comm.bcast((True, value))
        return value

    def _gathered(self, own: np.ndarray) -> list[np.ndarray]:
        sizes = self._comm.allgather(len(own))
        everyone = np.empty(sum(sizes), np.uint8)
        self._comm.Allgatherv(own, (everyone, sizes))
        return np.split(everyone, np.cumsum(sizes)[:-1])

    def _meet(self) -> None:
        """Wait for the others, asleep."""
        _wait(self._comm.Ibarrier())


def _wait(request: Any) -> None:
    pause, longest = POLL_S
    while not request.Test():
        time.sleep(pause)
        pause = min(2 * pause, longest)


@contextmanager
def joined_world(job: str, launch: Launch) -> Iterator[MPI]:
    """All ranks, while the block runs; see `polarice.cluster.world`. InputError where MPI does not find them all."""
    address = start_hub(job, launch.size, launch.one_node) if launch.rank == 0 else None
    world = _loaded(launch)
    if world.size != launch.size:
        raise InputError(
            f"{launch.size} ranks were started, and MPI knows of {world.size}: its library and what started them do "
            "not speak the same language; try srun --mpi=pmi2 (srun --mpi=list names others), or mpirun of the same MPI"
        )
    node: Any = world.Split_type(_shared())
    address = world.bcast(address)
    hosts = world.allgather(socket.gethostname())
    witness = next((rank for rank, host in enumerate(hosts) if host != hosts[0]), 1)
    line = Line(address, world.rank, world.rank == witness)
    _take_share_of_cores(node)
    comm = MPI(world, node)
    try:
        yield comm
    except BaseException as error:
        if comm.ending or isinstance(error, KeyboardInterrupt):
            line.leave() if comm.ending else line.fail("")
            raise
        _fail(world, line, error)
    comm._meet()
    line.leave()
    _finalize()


def _loaded(launch: Launch) -> Intracomm:
    """The communicator of all ranks, MPI being loaded now."""
    if launch.open_mpi:
        os.environ.setdefault("MPI4PY_MPIABI", "openmpi")
    try:
        import mpi4py
    except ImportError as error:
        raise InputError(
            f"{launch.size} ranks were started, and mpi4py is missing: pip install 'polarice[mpi]'"
        ) from error

    mpi4py.rc.finalize = False  # a rank that fails does not wait for the others
    from mpi4py import MPI as library

    return library.COMM_WORLD


def _shared() -> int:
    from mpi4py import MPI as library

    return library.COMM_TYPE_SHARED


def _library_error() -> type[Exception]:
    from mpi4py import MPI as library

    return library.Exception


def _finalize() -> None:
    from mpi4py import MPI as library

    library.Finalize()


def _fail(world: Intracomm, line: Line, error: BaseException) -> None:
    """Say what went wrong on this rank, end the others, and leave. What goes wrong in MPI is most often that another
    rank is gone: the hub hears of that by itself, and ends this one."""
    if isinstance(error, _library_error()):
        time.sleep(OTHERS_FAULT_S)
    if not isinstance(error, InputError | SystemExit):
        traceback.print_exception(error, file=sys.__stderr__)
    line.fail(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
    if not line.holds:
        world.Abort(2)
    raise SystemExit(2) from error


def _take_share_of_cores(node: Intracomm) -> None:
    """Keep to an even part of the node's cores, unless the launcher has given this rank some of its own."""
    if not hasattr(os, "sched_setaffinity"):
        return
    own = sorted(os.sched_getaffinity(0))
    if any(other != own for other in node.allgather(own)) or len(own) < node.size:
        return
    first, last = (len(own) * rank // node.size for rank in (node.rank, node.rank + 1))
    os.sched_setaffinity(0, own[first:last])
