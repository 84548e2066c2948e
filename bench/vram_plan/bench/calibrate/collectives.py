"""What the GPUs of this machine exchange: timed by a process each, fitted to latency and rate."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from math import exp, log
from pathlib import Path
from typing import Any

from vram_plan.bench.calibrate.collective_rank import RESULT
from vram_plan.bench.calibrate.minimize import nelder_mead
from vram_plan.bench.runs.group import environment_of
from vram_plan.estimator.speed.collectives import sent_bytes
from vram_plan.profiles.collective_rates import CollectiveRate, MeasuredLinks

__all__ = ["fit_links", "measure_links", "run_ranks", "timings"]

_RANK = "vram_plan.bench.calibrate.collective_rank"
_LIMIT_SECONDS = 120.0
_POLL_SECONDS = 0.05
_SHORTEST = 1e-9


def measure_links(device: str, ranks: int) -> MeasuredLinks:
    """Time collectives between ``ranks`` processes of this machine and fit them.

    Raises:
        ValueError: when a rank fails, or they do not finish.
    """
    return fit_links(timings(device, ranks))


def timings(device: str, ranks: int, limit: float = _LIMIT_SECONDS) -> list[dict[str, Any]]:
    """Every timing: kind, ranks, bytes of the whole tensor, seconds.

    Raises:
        ValueError: when a rank fails, or they do not finish.
    """
    return run_ranks(_RANK, device, ranks, limit, {})


def run_ranks(
    module: str, device: str, ranks: int, limit: float, told: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What rank 0 of several processes of a module wrote; ``told`` is in their environment.

    Raises:
        ValueError: when a rank fails, or they do not finish.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vram-plan-links-")))
        started: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, started)
        log = stack.enter_context((folder / "log").open("wb"))
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environment = environment_of(device, {**told, **own, "VRAM_PLAN_DEVICE": device})
            started.append(_start(module, folder, environment, log))
        failed = _wait(started, limit)
        path = folder / RESULT
        if failed or not path.exists():
            last = (folder / "log").read_text(encoding="utf-8", errors="replace").strip()
            line = last.splitlines()[-1] if last else "nothing was said"
            raise ValueError(f"collectives between {ranks} ranks: {failed or 'no result'}: {line}")
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return found


def _start(
    module: str, folder: Path, environment: dict[str, str], log: Any
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", module, str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def _wait(started: Sequence[subprocess.Popen[bytes]], limit: float) -> str | None:
    """Until all have ended well; else what went wrong."""
    patience = time.monotonic() + limit
    while any(one.poll() is None for one in started):
        for rank, one in enumerate(started):
            if one.returncode:
                return f"rank {rank} failed"
        if time.monotonic() > patience:
            return f"not finished after {limit:g} s"
        time.sleep(_POLL_SECONDS)
    return next((f"rank {i} failed" for i, one in enumerate(started) if one.returncode), None)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    for one in started:
        if one.poll() is None:
            one.kill()
        one.wait()


def fit_links(rows: Sequence[Mapping[str, Any]]) -> MeasuredLinks:
    """Latency and rate of every collective by number of ranks."""

    def group(row: Mapping[str, Any]) -> tuple[str, int]:
        return row["kind"], row["ranks"]

    ordered = sorted(rows, key=group)
    return MeasuredLinks(
        rates=tuple(
            _fit(kind, ranks, list(found)) for (kind, ranks), found in groupby(ordered, group)
        )
    )


def _fit(kind: str, ranks: int, rows: Sequence[Mapping[str, Any]]) -> CollectiveRate:
    """The line that misses the measured seconds by the least share in all.

    In shares a small message counts as much as a large one: latency is seen in the first, the rate
    in the last. A message that took longer than a larger one was disturbed, and counts as that.
    """
    points: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: -int(row["bytes"])):
        quickest = min(row["seconds"], points[-1][1]) if points else row["seconds"]
        points.append((sent_bytes(kind, row["bytes"], ranks), quickest))
    least, most = min(points), max(points)

    def cost(point: Sequence[float]) -> float:
        latency, rate = exp(point[0]), exp(point[1])
        return sum(abs(log((latency + sent / rate) / seconds)) for sent, seconds in points)

    start = [log(max(least[1], _SHORTEST)), log(most[0] / most[1])]
    latency, rate = map(exp, nelder_mead(cost, start, step=0.3, evaluations=400))
    return CollectiveRate(kind=kind, ranks=ranks, latency_seconds=latency, bytes_per_s=rate)
