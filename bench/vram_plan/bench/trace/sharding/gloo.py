"""The real thing at small size: a process for each rank, gloo between them, the CPU's allocator."""

import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.timeline import Trace

__all__ = ["trace_ranks"]

_TIMEOUT_SECONDS = 300.0


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
                raise RuntimeError(error.strip() if error else "a rank failed")
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
    from vram_plan.bench.trace.sharding.copying import register

    configs: list[TraceConfig] = pickle.loads((place / "configs").read_bytes())
    build_model(configs[0])  # brings the imports, which look at torch's functions as they are
    load_libraries()
    distributed.init_process_group(
        register(), init_method=f"file://{place}/store", rank=rank, world_size=count
    )
    with without_library_noise():
        traces = [trace_cpu(config) for config in configs]
    if rank == 0:
        (place / "traces").write_bytes(pickle.dumps(traces))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _run_rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
