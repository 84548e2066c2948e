"""Kills writers of a store at random moments; prints what each had said before it died.

Run as ``python kill_points.py FOLDER COUNT``: forks COUNT writers one after the other, each of
which stores runs and says the id of every one that is in; kills each after a random time.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from vram_plan.bench.measurement import SCHEMA
from vram_plan.bench.runs.store import Store, new_id


def write(folder: Path, said: int) -> None:
    store = Store(folder)
    while True:
        name = new_id()
        run = {"id": name, "key": name, "series": "s"}
        store.add({"schema": SCHEMA, "outcome": "ok", "run": run})
        os.write(said, f"{name}\n".encode())
        store.index()


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(7)
    stored: list[str] = []
    for _ in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            write(folder, writer)
        os.close(writer)
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as file:
            stored += file.read().split()
    print(json.dumps(stored))


if __name__ == "__main__":
    main()
