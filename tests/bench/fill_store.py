"""Stores runs, reading the index after each: ``python fill_store.py FOLDER KEY COUNT``."""

import sys
from pathlib import Path

from vram_plan.bench.measurement import SCHEMA
from vram_plan.bench.runs.store import Store, new_id


def main() -> None:
    folder, key, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    store = Store(folder)
    for number in range(count):
        run = {"id": new_id(), "key": f"{key}{number}", "series": key}
        store.add({"schema": SCHEMA, "outcome": "ok", "run": run})
        store.index()


if __name__ == "__main__":
    main()
