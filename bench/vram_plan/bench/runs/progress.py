"""What a worker says while it runs: one JSON line after the other, and the watcher's view of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

__all__ = ["Progress", "Watched"]


class Progress:
    """The worker's side: every line is written at once; none is lost with the process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def say(self, stage: str, **more: Any) -> None:
        """A stage begins: ``load``, ``step``, ``measure`` or ``save``."""
        self._file.write(json.dumps({"stage": stage, "at": time.monotonic(), **more}) + "\n")


class Watched:
    """The watcher's side: reads what is new, and knows when something was last said.

    The clock is the machine's monotonic one, which processes share.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self._offset = 0
        self.heard = time.monotonic()

    def read(self) -> list[dict[str, Any]]:
        """Lines that came since the last call; a half-written one waits."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole, newline, _ = text.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        new = [json.loads(line) for line in whole.splitlines() if line.strip()]
        if new:
            self.heard = time.monotonic()
            self.lines += new
        return new

    @property
    def stage(self) -> str:
        """The stage last heard of."""
        return str(self.lines[-1]["stage"]) if self.lines else "start"
