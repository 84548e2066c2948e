"""A process group over gloo that works on copies, so that the profiler sees every free.

Gloo's threads hold the tensors of a collective until they get round to letting go, sometimes as the
last holder, and the profiler does not see what other threads free. NCCL's streams hold nothing: a
collective that writes where it is told allocates nothing else.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import distributed
from torch._C import _distributed_c10d as c10d
from torch.futures import Future

from vram_plan.bench.trace.real import aside

__all__ = ["CopyingGroup", "register"]

_NAME = "copying"
#: Stubs say how Python calls it; C++ calls with other arguments.
_ProcessGroup: Any = distributed.ProcessGroup


def register() -> str:
    """Make the group known to ``init_process_group``; return its name there."""
    if _NAME.upper() not in distributed.Backend._plugins:
        distributed.Backend.register_backend(_NAME, _create, devices=["cpu"])
    return f"cpu:{_NAME}"


def _create(store: Any, rank: int, size: int, timeout: Any) -> "CopyingGroup":
    return CopyingGroup(distributed.ProcessGroupGloo(store, rank, size, timeout), rank, size)


class CopyingGroup(_ProcessGroup):  # type: ignore[misc]  # see above
    """Every collective is done, and nothing of the caller's held, when it returns."""

    def __init__(self, gloo: Any, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._gloo = gloo

    def getBackendName(self) -> str:  # noqa: N802  # torch's name
        """The name under which torch knows the group."""
        return _NAME

    @property
    def group_name(self) -> str:
        """The name under which functional collectives find the group."""
        return str(distributed.distributed_c10d._world.pg_names[self])

    def allreduce(self, tensors: Sequence[torch.Tensor], opts: Any) -> Any:
        """Sum tensors over the ranks, in place."""
        return _in_place(self._gloo.allreduce, tensors, opts)

    def allreduce_coalesced(self, tensors: Sequence[torch.Tensor], opts: Any) -> Any:
        """The same: what functional collectives call, with one tensor."""
        reduced = c10d.AllreduceOptions()
        reduced.reduceOp = opts.reduceOp
        return self.allreduce(tensors, reduced)

    def broadcast(self, tensors: Sequence[torch.Tensor], opts: Any) -> Any:
        """Send one rank's tensors to all."""
        return _in_place(self._gloo.broadcast, tensors, opts)

    def allgather(
        self, outputs: Sequence[Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor], opts: Any
    ) -> Any:
        """Collect every rank's tensor, each in its own."""
        with aside():
            copies = [_copies(row) for row in outputs]
            self._gloo.allgather(copies, _copies(inputs), opts).wait()
            return _give_back(_flat(copies), _flat(outputs))

    def all_gather_single(self, output: torch.Tensor, given: torch.Tensor, opts: Any) -> Any:
        """Collect every rank's tensor, one behind the other."""
        rows = list(output.chunk(self.size()))
        return self.allgather([rows], [given], c10d.AllgatherOptions())

    def all_gather_single_coalesced(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], opts: Any
    ) -> Any:
        """The same for several tensors: what functional collectives call, with one."""
        for output, given in zip(outputs, inputs, strict=True):
            work = self.all_gather_single(output, given, opts)
        return work

    def reduce_scatter_single(self, output: torch.Tensor, given: torch.Tensor, opts: Any) -> Any:
        """Sum over the ranks; every rank keeps its part."""
        reduced = c10d.AllreduceOptions()
        reduced.reduceOp = opts.reduceOp
        with aside():
            copies = _copies([given])
            self._gloo.allreduce(copies, reduced).wait()
            return _give_back([copies[0].chunk(self.size())[self.rank()]], [output])

    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], opts: Any
    ) -> Any:
        """The same for several tensors: what functional collectives call, with one."""
        for output, given in zip(outputs, inputs, strict=True):
            work = self.reduce_scatter_single(output, given, opts)
        return work

    def scatter(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[Sequence[torch.Tensor]], opts: Any
    ) -> Any:
        """Send every rank its part of one rank's tensors."""
        with aside():
            copies = _copies(outputs)
            self._gloo.scatter(copies, [_copies(row) for row in inputs], opts).wait()
            return _give_back(copies, outputs)

    def barrier(self, opts: Any) -> Any:
        """Wait for every rank."""
        with aside():
            self._gloo.barrier(opts).wait()
            return _done([])


def _in_place(collective: Any, tensors: Sequence[torch.Tensor], opts: Any) -> Any:
    with aside():
        copies = _copies(tensors)
        collective(copies, opts).wait()
        return _give_back(copies, tensors)


def _copies(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _flat(rows: Iterable[Iterable[torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for row in rows for tensor in row]


def _give_back(copies: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> Any:
    with torch.no_grad():
        for copy, tensor in zip(copies, tensors, strict=True):
            tensor.copy_(copy.view_as(tensor))
    return _done(tensors)


def _done(tensors: Sequence[torch.Tensor]) -> Any:
    future: Future[Any] = Future()
    future.set_result(list(tensors))
    return c10d._create_work_from_future(future)  # type: ignore[attr-defined]  # not in its stub
