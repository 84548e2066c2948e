"""One rank that times collectives: ``python -m vram_plan.bench.calibrate.collective_rank FOLDER``.

NCCL between GPUs, gloo between processes of a CPU. All ranks go through the same list; rank 0
writes what was found. Rank, number of ranks and device are in the environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.group import die_with_parent
from vram_plan.bench.runs.store import write_whole

__all__ = ["KINDS", "MEETING", "RESULT", "group_sizes", "main"]

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "point-to-point")
MEETING, RESULT = "meeting", "collectives.json"
_PATIENCE = timedelta(seconds=60)
_KIB = 2**10
_SIZES = {
    "cuda": tuple(32 * _KIB << shift for shift in (0, 3, 6, 9, 11, 13)),
    "cpu": tuple(4 * _KIB << shift for shift in (0, 4, 6, 8, 10, 11)),
}
"""Bytes of the whole tensor: up to 256 MiB between GPUs, up to 8 MiB through a CPU's sockets."""
_BLOCKS = 5
_BLOCK_SECONDS = 0.02
_MOST_CALLS = 20
_KIND_SECONDS = 1.5
"""Enough for every size where links are fast; slow ones do without the largest."""
_LEAST_SIZES = 4


def main() -> None:
    """Be the rank that the environment names."""
    die_with_parent()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = os.environ["VRAM_PLAN_DEVICE"]
    if device not in _SIZES:
        raise ValueError(f"device {device!r} is not one of: {', '.join(_SIZES)}")
    import torch
    from torch import distributed

    if device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder / MEETING}",
        rank=rank,
        world_size=ranks,
        timeout=_PATIENCE,
    )
    found = list(_Rank(device, rank, ranks).rows())
    if rank == 0:
        write_whole(folder / RESULT, json.dumps(found))
    distributed.destroy_process_group()


def group_sizes(ranks: int) -> list[int]:
    """Powers of two and the whole machine."""
    return sorted(
        {2**power for power in range(1, ranks.bit_length()) if 2**power < ranks} | {ranks}
    )


class _Rank:
    """One of the ranks at work."""

    def __init__(self, device: str, rank: int, ranks: int) -> None:
        self.device, self.rank, self.ranks = device, rank, ranks

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every timing: kind, ranks, bytes and seconds; nothing of groups without this rank."""
        from torch import distributed

        for size in group_sizes(self.ranks):
            group = distributed.new_group(list(range(size)))
            if self.rank < size:
                pairs = size == 2  # a pair is a pair in a group of any size
                for kind in KINDS if pairs else KINDS[:-1]:
                    yield from self._sweep(kind, size, group)

    def _sweep(self, kind: str, size: int, group: Any) -> Iterator[dict[str, Any]]:
        """One collective over all sizes, or as many as its time allows: every rank counts alike."""
        spent = 0.0
        for done, nbytes in enumerate(_SIZES[self.device]):
            if done >= _LEAST_SIZES and spent > _KIND_SECONDS:
                return
            call = self._call(kind, nbytes, size, group)
            call()  # the first one connects
            once = self._slowest(lambda: self._timed(call, 1), group)  # noqa: B023  # called at once
            calls = max(1, min(_MOST_CALLS, round(_BLOCK_SECONDS / once)))
            blocks = [
                self._slowest(lambda: self._timed(call, calls), group)  # noqa: B023  # called at once
                for _ in range(_BLOCKS)
            ]
            spent += once + sum(blocks) * calls
            yield {"kind": kind, "ranks": size, "bytes": nbytes, "seconds": min(blocks)}

    def _timed(self, call: Callable[[], object], calls: int) -> float:
        """Seconds of one of several calls in a row."""
        self._wait()
        started = time.perf_counter()
        for _ in range(calls):
            call()
        self._wait()
        return (time.perf_counter() - started) / calls

    def _slowest(self, measure: Callable[[], float], group: Any) -> float:
        """What the last rank took; all begin together."""
        import torch
        from torch import distributed

        distributed.all_reduce(torch.zeros(1, device=self.device), group=group)
        took = torch.tensor([measure()], device=self.device)
        distributed.all_reduce(took, op=distributed.ReduceOp.MAX, group=group)
        return float(took)

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _call(self, kind: str, nbytes: int, size: int, group: Any) -> Callable[[], object]:
        """The collective on a tensor of so many bytes: all of it, as the plan counts."""
        import torch
        from torch import distributed as d

        whole = torch.zeros(nbytes // 4 // size * size, device=self.device)
        part = torch.zeros(whole.numel() // size, device=self.device)
        if kind == "all-reduce":
            return lambda: d.all_reduce(whole, group=group)
        if kind == "all-gather":
            gather = _named(d, "all_gather_single", "all_gather_into_tensor")
            return lambda: gather(whole, part, group=group)
        if kind == "reduce-scatter":
            scatter = _named(d, "reduce_scatter_single", "reduce_scatter_tensor")
            return lambda: scatter(part, whole, group=group)
        if kind == "all-to-all":
            other = torch.empty_like(whole)
            return lambda: d.all_to_all_single(other, whole, group=group)
        if self.rank == 0:
            return lambda: d.send(whole, 1, group=group)
        return lambda: d.recv(whole, 0, group=group)


def _named(module: Any, *names: str) -> Callable[..., object]:
    """What a collective is called in this version: torch 2.13 renamed two of them."""
    found: Callable[..., object] = next(
        getattr(module, name) for name in names if hasattr(module, name)
    )
    return found


if __name__ == "__main__":
    main()
