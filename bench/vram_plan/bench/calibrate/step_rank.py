"""One rank of small fine-tunes under DDP: ``python -m vram_plan.bench.calibrate.step_rank FOLDER``.

Rank 0 writes what a step took. The time is the process' own, gloo's threads included: each rank has
a core to itself, so that is the wall's on a machine where nothing else runs, and nearly the same
on one where much does. Rank, number of ranks and the fine-tunes are in the environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from statistics import median

from vram_plan.bench.calibrate.collective_rank import MEETING, RESULT
from vram_plan.bench.runs.group import die_with_parent
from vram_plan.bench.runs.store import write_whole

__all__ = ["NAMES", "STEPS", "main"]

NAMES, STEPS = "VRAM_PLAN_FINE_TUNES", "VRAM_PLAN_STEPS"


def main() -> None:
    """Run every fine-tune that the environment names, so many steps each."""
    die_with_parent()
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / MEETING}",
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    steps = int(os.environ[STEPS])
    found = {name: _seconds(name, steps) for name in os.environ[NAMES].split(",")}
    if rank == 0:
        write_whole(folder / RESULT, json.dumps([found]))
    distributed.destroy_process_group()


def _seconds(name: str, steps: int) -> float:
    """The middle of several steps, after one that makes the optimizer's states."""
    from torch.nn.parallel import DistributedDataParallel

    from vram_plan.bench.calibrate.check import FINE_TUNES
    from vram_plan.bench.calibrate.reference import configured
    from vram_plan.bench.trace.quiet import without_library_noise
    from vram_plan.bench.trace.timed import TimedRun
    from vram_plan.bench.translate import trace_config

    fields, options = FINE_TUNES[name]
    with without_library_noise():
        run = TimedRun(trace_config(configured(fields, options, "cpu"), fields), "cpu", 0)
        run.step.model = DistributedDataParallel(run.step.model)
        run.step.run(run.batch)
        taken = []
        for _ in range(steps):
            started = time.process_time()
            run.step.run(run.batch)
            taken.append(time.process_time() - started)
    return median(taken)


if __name__ == "__main__":
    main()
