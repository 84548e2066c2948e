"""Kills writers of a store at points of the commit, counted in lines of the store's own code.

``python kill_points.py random FOLDER COUNT``: forks COUNT writers one after the other on one store,
each of which stores runs and says the id of every one that is in, and kills each at a random point;
prints what was said.

``python kill_points.py every FOLDER``: a store with one run for every point of the next commit,
which is killed there; prints what each held afterwards.
"""

import json
import os
import random
import signal
import sys
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from vram_plan.bench.measurement import SCHEMA
from vram_plan.bench.runs import samples, store
from vram_plan.bench.runs.store import Damaged, Store, new_id

_FILES = {store.__file__, samples.__file__}
_FARTHEST = 2000
"""Lines of a few commits, the reading of the index among them."""


def run(name: str) -> dict[str, Any]:
    seen = {"columns": {"seconds": [0.1, 0.2], "host_bytes": [1, 2]}}
    about = {"id": name, "key": name, "series": "s"}
    return {"schema": SCHEMA, "outcome": "ok", "run": about, "samples": seen}


def die_at(point: int) -> None:
    """Kill this process as it comes to so many lines of the store."""
    left = point

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in _FILES:
            return None
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    sys.settrace(trace)


def write(folder: Path, said: int) -> None:
    """Store runs for ever."""
    while True:
        name = new_id()
        Store(folder).add(run(name))
        os.write(said, f"{name}\n".encode())
        Store(folder).index()


def at_random(folder: Path, writers: int) -> list[str]:
    """What the writers had said before they died."""
    chance = random.Random(7)
    said: list[str] = []
    for _ in range(writers):
        point = chance.randrange(_FARTHEST)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            die_at(point)
            write(folder, writer)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader) as file:
            said += file.read().split()
    return said


def everywhere(folder: Path) -> list[dict[str, Any]]:
    """What every store held; the last writer comes through."""
    found = []
    for point in count():
        place = folder / str(point)
        Store(place).add(run("first"))
        child = os.fork()
        if child == 0:
            die_at(point)
            Store(place).add(run("second"))
            Store(place).index()
            sys.settrace(None)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found.append(held(place))
        if os.WIFEXITED(status):
            break
    return found


def held(folder: Path) -> dict[str, Any]:
    """What a reader finds, and what is there once the run is made again."""
    found = Store(folder)
    documents = list(found.documents())
    whole = [one for one in documents if not isinstance(one, Damaged)]
    finished = sorted(found.finished())
    if "second" not in finished:
        found.add(run("second"))
    return {
        "ids": [one["run"]["id"] for one in whole],
        "finished": finished,
        "damaged": len(documents) - len(whole),
        "sampled": all(len(one["samples"]["columns"]["seconds"]) == 2 for one in whole),
        "again": sorted(found.finished()),
    }


def main() -> None:
    how, folder = sys.argv[1], Path(sys.argv[2])
    print(
        json.dumps(at_random(folder, int(sys.argv[3])) if how == "random" else everywhere(folder))
    )


if __name__ == "__main__":
    main()
