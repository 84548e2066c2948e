"""How a run ended, from what its processes left behind."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.failures import Failure, of_exception, of_exit

__all__ = ["ending", "oom_kills"]

#: torchrun's table of failures (torch/distributed/elastic/multiprocessing/errors/__init__.py).
_RANK_ENDED = re.compile(r"rank\s*:\s*(\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*:\s*(-?\d+)")
_EVENTS = Path("/sys/fs/cgroup/memory.events")


def ending(
    folder: Path, code: int, log: str, *, stopped: str | None = None, kills: int = 0
) -> tuple[Failure | None, dict[str, Any] | None]:
    """What went wrong, or the result; an exit code of 0 without a result is a crash.

    Args:
        folder: of the run.
        code: of the process that was started, the launcher of the ranks where there are several.
        log: the end of what all of them printed.
        stopped: the limit by which the run was stopped.
        kills: processes of this cgroup that the system killed for memory meanwhile.
    """
    if stopped:
        outcome, _, limit = stopped.partition(":")
        return Failure(outcome=outcome, message=f"stopped by the {limit} limit"), None
    path = folder / "result.json"
    if path.exists():
        return _result(path)
    words = _last_words(folder)
    dead = _dead_rank(log, {word["rank"] for word in words})
    if dead is not None:
        rank, number = dead
        found = _killed_for_memory(of_exit(number, log), kills)
        return replace(found, message=f"rank {rank} died alone: {found.message}"), None
    if words:
        word = words[0]
        return of_exception(str(word["exception"]), str(word["message"])), word
    return _killed_for_memory(of_exit(code, log), kills), None


def oom_kills(events: Path = _EVENTS) -> int:
    """Processes that the system has killed for memory in this cgroup; 0 where it does not tell."""
    try:
        lines = events.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _result(path: Path) -> tuple[Failure | None, dict[str, Any] | None]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("instants"), dict):
            raise ValueError("no result")
    except (ValueError, OSError) as error:
        line = " ".join(str(error).split())[:200]
        return Failure(outcome="crash", message=f"the result file is damaged: {line}"), None
    return None, found


def _last_words(folder: Path) -> list[dict[str, Any]]:
    """What ranks said that failed, the first of them first: later ones may only miss the first."""
    found = []
    for path in folder.glob("failed-*.json"):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda word: float(word["at"]))


def _dead_rank(log: str, told: set[int]) -> tuple[int, int] | None:
    """A rank that a signal ended before it could say anything, and the signal.

    torchrun's own signal does not count.
    """
    for rank, code in _RANK_ENDED.findall(log):
        if int(code) < 0 and int(rank) not in told and -int(code) != signal.SIGTERM:
            return int(rank), int(code)
    return None


def _killed_for_memory(found: Failure, kills: int) -> Failure:
    """A kill that the cgroup counts is the host's memory."""
    if found.outcome != "killed" or not kills:
        return found
    return Failure(outcome="oom", message="the system killed it for host memory", whose="host")
