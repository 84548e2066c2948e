"""A process of its own that samples a run: ``python -m vram_plan.bench.runs.sampler``.

It holds nothing of the run's process, so that it costs the run no time; it ends when it is told to
or when the sampled process is gone. The first GPU's readings have their plain names, those of
others are called ``gpu1_used_bytes`` and so on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vram_plan.bench.runs.nvml import Gpu, NoNvmlError

__all__ = ["Sampler", "columns", "main"]

HERTZ = 10.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Sampler:
    """Samples a process while the block runs; ``columns`` has what was seen.

    Args:
        pid: the process (and, for its memory on the host, its children).
        folder: where the samples go until they are read.
        uuids: the GPUs of the run on this machine; without one the host alone is sampled.
        hertz: samples a second.
    """

    def __init__(
        self, pid: int, folder: Path, *, uuids: Sequence[str] = (), hertz: float = HERTZ
    ) -> None:
        if not 0 < hertz <= 100:
            raise ValueError(f"--hertz {hertz:g}: between 0 and 100; NVML itself is no faster")
        self.path = folder / "samples.jsonl"
        command = [sys.executable, "-m", "vram_plan.bench.runs.sampler", str(self.path)]
        command += ["--pid", str(pid), "--hertz", str(hertz)]
        for uuid in uuids:
            command += ["--gpu", uuid]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    @property
    def process_id(self) -> int:
        """Of the process that samples."""
        return self._process.pid

    def stop(self) -> dict[str, Any]:
        """End it and return its samples by column."""
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return columns(self.path)


def columns(path: Path) -> dict[str, Any]:
    """Samples by column, with what was said about them; a half-written last line is left out."""
    about: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if "seconds" in found:
            rows.append(found)
        else:
            about |= found
    names = dict.fromkeys(name for row in rows for name in row)
    return about | {"columns": {name: [row.get(name) for row in rows] for name in names}}


def main() -> None:
    """Sample until the end."""
    parser = argparse.ArgumentParser(prog="python -m vram_plan.bench.runs.sampler")
    parser.add_argument("path", type=Path)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--gpu", action="append", default=[])
    parser.add_argument("--hertz", type=float, default=HERTZ)
    given = parser.parse_args()
    ended: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        ended.append(number)

    signal.signal(signal.SIGTERM, end)
    gpus, about = _open(given.gpu)
    started = time.monotonic()
    with given.path.open("w", encoding="utf-8", buffering=1) as file:
        file.write(json.dumps(about | {"hertz": given.hertz, "started": started}) + "\n")
        number = 0
        while not ended and _alive(given.pid):
            pids = tree(given.pid)
            row = {"seconds": time.monotonic() - started, "host_bytes": resident_bytes(pids)}
            for place, gpu in gpus:
                row |= _told(place, gpu.sample(pids))
            file.write(json.dumps(row) + "\n")
            number += 1
            # From the start, not from the last sample: delays do not add up.
            time.sleep(max(0.0, started + number / given.hertz - time.monotonic()))
    for _, gpu in gpus:
        gpu.close()


def _told(place: int, seen: dict[str, Any]) -> dict[str, Any]:
    """Readings under the names of their GPU."""
    return {f"gpu{place}_{name}": value for name, value in seen.items()} if place else seen


def _open(uuids: Sequence[str]) -> tuple[list[tuple[int, Gpu]], dict[str, Any]]:
    """The GPUs that can be asked, with their place, and what is said of all of them once."""
    if not uuids:
        return [], {"gpu": None, "gpu_reason": "the run uses no GPU"}
    found: list[tuple[int, Gpu]] = []
    facts: list[dict[str, Any] | None] = []
    reason = None
    for place, uuid in enumerate(uuids):
        try:
            gpu = Gpu(uuid)
        except NoNvmlError as error:
            reason = reason or str(error)
            facts.append(None)
        else:
            found.append((place, gpu))
            facts.append(gpu.facts)
    about = {"gpu": facts[0], "gpu_reason": reason}
    return found, about | ({"gpus": facts} if len(uuids) > 1 else {})


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def tree(pid: int) -> set[int]:
    """A process and all below it; empty where /proc does not tell."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        one = todo.pop()
        try:
            children = Path(f"/proc/{one}/task/{one}/children").read_text(encoding="utf-8")
        except OSError:
            continue
        found.add(one)
        todo += [int(child) for child in children.split()]
    return found


def resident_bytes(pids: Collection[int]) -> int | None:
    """Resident bytes of processes; None where none of them tells."""
    sizes = []
    for pid in pids:
        try:
            pages = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]
        except (OSError, IndexError):
            continue
        sizes.append(int(pages) * _PAGE_BYTES)
    return sum(sizes) if sizes else None


if __name__ == "__main__":
    main()
