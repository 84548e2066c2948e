"""``python -m vram_plan.bench.virtual FOLDER TOGETHER``: ranks; their cases are JSON on stdin.

The libraries are imported once; every rank is a fork of this process, since DeepSpeed and the
process group can be set up only once in each.
"""

import json
import os
import pickle
import signal
import sys
import traceback
import warnings
from pathlib import Path

from vram_plan.bench.virtual.case import ZeroCase
from vram_plan.bench.virtual.launch import CODES, VirtualRankError
from vram_plan.bench.virtual.worker import import_libraries, run_rank

__all__ = ["main"]


def main() -> None:
    """Run the cases; what was seen of number n, or an error, is left in ``n.pickle``."""
    folder, together = Path(sys.argv[1]), int(sys.argv[2])
    cases = [ZeroCase.from_json(text) for text in json.load(sys.stdin)]
    os.dup2(2, 1)  # libraries print to stdout
    _end_with(os.getppid())
    seconds = import_libraries()
    running: dict[int, int] = {}
    codes: dict[int, int] = {}
    for number, case in enumerate(cases):
        if len(running) >= together:
            _reap(running, codes)
        running[_fork(case, folder / f"{number}.pickle", seconds)] = number
    while running:
        _reap(running, codes)
    Path(folder, CODES).write_text(json.dumps([codes[n] for n in range(len(cases))]))
    signal.setitimer(signal.ITIMER_REAL, 0.0)  # Python drops its handlers before it ends


def _end_with(parent: int) -> None:
    """End this process and its forks once the one that started it is gone, killed perhaps."""

    def look(*signal_and_frame: object) -> None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)  # forks have no timer


def _fork(case: ZeroCase, result: Path, import_seconds: float) -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads; the libraries' own hold no lock that a child would need.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        result.write_bytes(pickle.dumps(_found(case, import_seconds)))
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's is to be cleaned up here


def _found(case: ZeroCase, import_seconds: float) -> object:
    try:
        return run_rank(case, import_seconds)
    except ValueError as refusal:
        return _refusal(refusal)
    # Whatever a library raises inside the step is what was seen of this configuration.
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        return VirtualRankError("error", f"DeepSpeed's step failed: {type(error).__name__}: {text}")


def _refusal(error: ValueError) -> ValueError:
    """An error of our own as it is; a library's with the library's name before it."""
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    text = " ".join(str(error).split())
    if package == "vram_plan":
        return ValueError(text)
    return ValueError(f"dry-run: {package} refuses this configuration: {text}")


def _reap(running: dict[int, int], codes: dict[int, int]) -> None:
    pid, status = os.wait()
    codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
