"""A rank of a run: ``python -m vram_plan.bench.runs.worker FOLDER``, by itself or under torchrun.

Reads ``job.json``; rank 0 says what it does in ``progress.jsonl`` and writes ``result.json`` at
once and whole. That file is the only truth about the run: without it the run did not end well. A
rank that fails leaves ``failed-RANK.json`` and is gone at once, so that torchrun ends the others.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.group import die_with_parent
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.progress import Progress
from vram_plan.bench.runs.store import write_whole

__all__ = ["FAULT", "HOST_BYTES", "main"]

FAULT = "VRAM_PLAN_FAULT"
HOST_BYTES = "VRAM_PLAN_HOST_BYTES"


def main() -> None:
    """Run the job of a folder, as the rank that the environment names."""
    folder, rank = Path(sys.argv[1]), int(os.environ.get("RANK", "0"))
    die_with_parent()
    _limit_memory()
    code = 0
    try:
        (folder / f"pid-{rank}").write_text(str(os.getpid()), encoding="utf-8")
        progress = Progress(folder / "progress.jsonl" if rank == 0 else Path(os.devnull))
        progress.say("load")
        result = _run(Job.from_json((folder / "job.json").read_text(encoding="utf-8")), progress)
        if rank == 0:
            progress.say("save")
            write_whole(folder / "result.json", json.dumps(result))
    # Whatever went wrong is the result: the watcher tells an out-of-memory run from an error.
    except BaseException as error:
        code = _failed(folder, rank, error)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # the libraries' own endings may wait for ranks that are gone


def _failed(folder: Path, rank: int, error: BaseException) -> int:
    """Leave word of what happened; the exit code."""
    print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
    said = {"exception": type(error).__name__, "message": str(error), "rank": rank}
    try:
        write_whole(folder / f"failed-{rank}.json", json.dumps(said | {"at": time.monotonic()}))
    except OSError as full:
        return full.errno or errno.ENOSPC
    return 1


def _limit_memory() -> None:
    """Host memory that this process may have, where the launcher said so."""
    limit = os.environ.get(HOST_BYTES)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))


def _run(job: Job, progress: Progress) -> dict[str, Any]:
    config = job.predict().config
    _inject(os.environ.get(FAULT, ""), progress)
    from vram_plan.bench.engines.run import run_rank

    return run_rank(job, config, _with_fault(progress))


def _with_fault(progress: Progress) -> Any:
    """What is told of stages; ``kill:RANK:STEP`` kills a rank as it comes to a step."""
    kind, _, rest = os.environ.get(FAULT, "").partition(":")
    if kind != "kill":
        return progress.say
    rank, step = map(int, rest.split(":"))

    def say(stage: str, **more: Any) -> None:
        progress.say(stage, **more)
        if more.get("number") == step and rank == int(os.environ.get("RANK", "0")):
            os.kill(os.getpid(), signal.SIGKILL)

    return say


def _inject(fault: str, progress: Progress) -> None:
    """A fault asked for by a test, so that the ways a run can end are tried without a GPU."""
    if fault == "oom":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. (injected)")
    if fault == "hang":
        progress.say("step", number=0)
        time.sleep(3600)
    if fault == "exit":
        os._exit(0)


if __name__ == "__main__":
    main()
