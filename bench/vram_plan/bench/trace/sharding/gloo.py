"""The real thing at small size: a process for each rank, gloo between them, the CPU's allocator."""

import functools
import os
import pickle
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.sharding.storages import patched
from vram_plan.bench.trace.storages import tensors_in
from vram_plan.bench.trace.timeline import Trace

__all__ = ["trace_ranks"]

_TIMEOUT_SECONDS = 300.0
_REST_SECONDS = 0.001
_PATIENCE_SECONDS = 2.0
#: Under their names in torch 2.13 and before.
_COLLECTIVES = (
    "all_gather_single",
    "all_gather_into_tensor",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "all_reduce",
)


def trace_ranks(*configs: TraceConfig) -> list[Trace]:
    """Run every rank on real tensors; return what rank 0 allocated in each configuration.

    Args:
        configs: run one after another by the same processes, so of as many ranks.

    Raises:
        RuntimeError: a rank failed; with the last line it wrote.
    """
    counts = {max(config.ranks, config.tp) for config in configs}
    if len(counts) != 1:
        raise ValueError(f"these configurations have {sorted(counts)} ranks: run them apart")
    count = counts.pop()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "configs").write_bytes(pickle.dumps(configs))
        ranks = [_start(place, rank, count) for rank in range(count)]
        try:
            errors = [rank.communicate(timeout=_TIMEOUT_SECONDS)[1] for rank in ranks]
        finally:
            for rank in ranks:
                with suppress(ProcessLookupError):
                    rank.kill()
        for process, error in zip(ranks, errors, strict=True):
            if process.returncode:
                raise RuntimeError(error.strip().splitlines()[-1] if error else "a rank failed")
        traces: list[Trace] = pickle.loads((place / "traces").read_bytes())
        return traces


def _start(place: Path, rank: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __name__, str(place), str(rank), str(count)]
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {"GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def _run_rank(place: Path, rank: int, count: int) -> None:
    from torch import distributed

    from vram_plan.bench.trace.build import build_model
    from vram_plan.bench.trace.optimizers import load_libraries
    from vram_plan.bench.trace.quiet import without_library_noise
    from vram_plan.bench.trace.real import trace_cpu

    configs: list[TraceConfig] = pickle.loads((place / "configs").read_bytes())
    build_model(configs[0])  # brings the imports, which look at torch's functions as they are
    load_libraries()
    distributed.init_process_group(
        "gloo", init_method=f"file://{place}/store", rank=rank, world_size=count
    )
    with without_library_noise(), patched(_released()):
        traces = [trace_cpu(config) for config in configs]
    if rank == 0:
        (place / "traces").write_bytes(pickle.dumps(traces))
    distributed.barrier()
    distributed.destroy_process_group()


def _released() -> list[tuple[Any, str, Any]]:
    """Patches of the collectives, so that the profiler sees what a GPU's would allocate.

    Gloo's threads must let go of a collective's tensors before the caller does, since the profiler
    does not see what other threads free. Gloo's working copies, which NCCL has not, are left out:
    a collective that writes where it is told allocates nothing else.
    """
    from torch import distributed

    owners: tuple[tuple[Any, Any], ...] = (
        (distributed, _aside),
        (torch.ops._c10d_functional, _rested),
    )
    return [
        (owner, name, patch(getattr(owner, name)))
        for owner, patch in owners
        for name in _COLLECTIVES
        if hasattr(owner, name)
    ]


def _rested(function: Any, seconds: float = 0.02) -> Any:
    """Returns when gloo's threads have let go of what they were given, or the time is up.

    Functional collectives are held until they are waited for.
    """

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        given = list(tensors_in([*args, *keywords.values()]))
        before = list(map(_holders, given))
        result = function(*args, **keywords)
        patience = time.monotonic() + seconds
        while list(map(_holders, given)) != before and time.monotonic() < patience:
            time.sleep(_REST_SECONDS)
        return result

    return call


def _holders(tensor: Any) -> tuple[int, int]:
    """References to a tensor and to its storage."""
    storage = tensor.untyped_storage()._cdata
    return tensor._use_count(), torch._C._storage_Use_Count(storage)


def _aside(function: Any) -> Any:
    """What it allocates is marked as no part of the step."""
    from vram_plan.bench.trace.real import aside

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        with aside():
            return _rested(function, _PATIENCE_SECONDS)(*args, **keywords)

    return call


if __name__ == "__main__":
    _run_rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
