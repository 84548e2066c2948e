"""The process in which a run happens: ``python -m vram_plan.bench.runs.worker FOLDER``.

Reads ``job.json``, says what it does in ``progress.jsonl``, and writes ``result.json`` at once and
whole. That file is the only truth about the run: without it the run did not end well.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vram_plan.bench.instants import instants_of
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.progress import Progress
from vram_plan.bench.runs.store import write_whole
from vram_plan.bench.translate import trace_config

if TYPE_CHECKING:
    from vram_plan.bench.trace import TraceConfig

__all__ = ["main"]


def main() -> None:
    """Run the job of a folder."""
    folder = Path(sys.argv[1])
    progress = Progress(folder / "progress.jsonl")
    progress.say("load")
    try:
        result = _run(Job.from_json((folder / "job.json").read_text(encoding="utf-8")), progress)
    # Whatever went wrong is the result: the watcher tells an out-of-memory run from an error.
    except Exception as error:
        result = {"exception": type(error).__name__, "message": str(error)}
    progress.say("save")
    write_whole(folder / "result.json", json.dumps(result))


def _run(job: Job, progress: Progress) -> dict[str, Any]:
    config = trace_config(job.predict().config, job.fields())
    _inject(os.environ.get("VRAM_PLAN_FAULT", ""), progress)
    timing = _timed(job, config, progress)
    progress.say("measure")
    return timing | _memory(job, config)


def _timed(job: Job, config: TraceConfig, progress: Progress) -> dict[str, Any]:
    from vram_plan.bench.trace.quiet import without_library_noise
    from vram_plan.bench.trace.timed import TimedRun

    with without_library_noise():
        run = TimedRun(config, job.device, job.seed)
        first_loss = run.loss()
        seconds = []
        for number in range(job.warmup_steps + job.steps):
            progress.say("step", number=number)
            seconds.append(run.seconds())
        progress.say("step", number=len(seconds))
        return {
            "warmup_seconds": seconds[: job.warmup_steps],
            "step_seconds": seconds[job.warmup_steps :],
            "losses": [first_loss, run.loss()],
            "trainable_parameters": run.trainable_parameters,
        }


def _memory(job: Job, config: TraceConfig) -> dict[str, Any]:
    """The allocator's own events of a step on this device."""
    from vram_plan.bench.trace import trace_step

    trace = trace_step(replace(config, device=job.device))
    found = instants_of(trace.events, trace.start_blocks)
    return {
        "instants": {instant.name: instant.bytes for instant in found},
        "reserved_bytes": getattr(trace, "reserved_bytes", None),
        "parameters": trace.parameters,
    }


def _inject(fault: str, progress: Progress) -> None:
    """A fault asked for by a test, so that the ways a run can end are tried without a GPU."""
    if fault == "oom":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. (injected)")
    if fault == "hang":
        import time

        progress.say("step", number=0)
        time.sleep(3600)
    if fault == "exit":
        os._exit(0)


if __name__ == "__main__":
    main()
