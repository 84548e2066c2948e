"""Where runs are kept: one immutable JSON file each, and an index that can be made again.

The files are the truth; a run's samples are compressed in a file beside it. Several machines'
stores merge by copying files together; the index is SQLite's and is brought up to date when it is
asked, so that a power cut between a file and its index entry loses nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vram_plan.bench.measurement import SCHEMA
from vram_plan.bench.runs.samples import ENDING, joined, packed, parted
from vram_plan.bench.runs.surroundings import capacity_of, surroundings_of

__all__ = ["Damaged", "Store", "new_id", "write_whole"]

_TABLE = """
CREATE TABLE IF NOT EXISTS runs (
  file TEXT PRIMARY KEY, changed INTEGER, size INTEGER, id TEXT, key TEXT, series TEXT,
  created TEXT, model TEXT, method TEXT, engine TEXT, device TEXT, outcome TEXT,
  allocated INTEGER, planned INTEGER, seconds REAL,
  reserved INTEGER, device_bytes INTEGER, capacity INTEGER, surroundings TEXT
)
"""
_COLUMNS = (
    "file",
    "changed",
    "size",
    "id",
    "key",
    "series",
    "created",
    "model",
    "method",
    "engine",
    "device",
    "outcome",
    "allocated",
    "planned",
    "seconds",
    "reserved",
    "device_bytes",
    "capacity",
    "surroundings",
)
_MOST_BYTES = 64 * 2**20
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file that is no run: which, and why."""

    file: str
    reason: str


def new_id() -> str:
    """A name that sorts by time and that two machines never share."""
    seconds, micro = divmod(time.time_ns() // 1000, 10**6)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    return f"{stamp}.{micro:06d}-{secrets.token_hex(6)}"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, power cuts included."""
    data = content.encode() if isinstance(content, str) else content
    half = path.with_name(f".{path.name}.{os.getpid()}.half")
    try:
        with half.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name itself
    finally:
        os.close(folder)


class Store:
    """A folder of runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"

    def add(self, document: dict[str, Any]) -> Path:
        """Keep a run; nothing is ever written over.

        Raises:
            ValueError: if the folder cannot be written, with the way out.
        """
        path = self.runs / f"{document['run']['id']}.json"
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise ValueError(f"{path} exists already; a run is written once")
            kept, columns = parted(document)
            if columns is not None:
                write_whole(self._beside(path), packed(columns))
            write_whole(path, json.dumps(kept, ensure_ascii=False))
            self._drop_halves()
        except OSError as error:
            if not path.exists():
                with suppress(OSError):
                    self._beside(path).unlink(missing_ok=True)
            reason = error.strerror or str(error)
            raise ValueError(f"--store {self.folder}: {reason}; choose another folder") from None
        return path

    @staticmethod
    def _beside(path: Path) -> Path:
        """Where the samples of a run's file are."""
        return path.with_name(path.name.removesuffix(".json") + ENDING)

    def read(self, file: str, *, sampled: bool = True) -> dict[str, Any]:
        """One run, with its samples unless they are not wanted.

        Raises:
            ValueError: if the file is no run of a schema known here.
        """
        path = self.runs / file
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES // 2**20} MiB")
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or not isinstance(document.get("run"), dict):
            raise ValueError("no run")
        if document.get("schema") != SCHEMA:
            raise ValueError(f"schema {document.get('schema')!r}, this version reads {SCHEMA}")
        return joined(document, self._beside(path)) if sampled else document

    def documents(self) -> Iterator[dict[str, Any] | Damaged]:
        """Every run, oldest first; damaged files are told, not raised."""
        for name in self._names():
            try:
                yield self.read(name)
            except (OSError, ValueError) as error:
                yield Damaged(name, " ".join(str(error).split())[:200])

    def index(self) -> list[dict[str, Any]]:
        """One row a run, oldest first, from the index brought up to date."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as connection, connection:
            self._refresh(connection)
            rows = connection.execute("SELECT * FROM runs WHERE id IS NOT NULL ORDER BY id")
            return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]

    def damaged(self) -> list[Damaged]:
        """The files that the index could not read, and why; asked after ``index``."""
        with closing(self._connect()) as connection:
            names = [row[0] for row in connection.execute("SELECT file FROM runs WHERE id IS NULL")]
        return [self._why(name) for name in sorted(names)]

    def _why(self, name: str) -> Damaged:
        try:
            self.read(name)
        except (OSError, ValueError) as error:
            return Damaged(name, " ".join(str(error).split())[:200])
        return Damaged(name, "no id")

    def finished(self) -> dict[str, str]:
        """Key → outcome of the runs that need not be made again."""
        return {row["key"]: row["outcome"] for row in self.index()}

    def _drop_halves(self) -> None:
        """Remove what writers that were killed have left behind; nobody writes for so long."""
        alone = (
            one
            for one in self.runs.glob(f"*{ENDING}")
            if not one.with_name(one.name.removesuffix(ENDING) + ".json").exists()
        )
        for left in (*self.runs.glob(".*.half"), *alone):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.runs.glob("*.json")) if self.runs.exists() else []

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """When each file was changed, and its size."""
        if not self.runs.exists():
            return {}
        with os.scandir(self.runs) as files:
            found = [(one.name, one.stat()) for one in files if one.name.endswith(".json")]
        return {name: (about.st_mtime_ns, about.st_size) for name, about in sorted(found)}

    def _connect(self) -> sqlite3.Connection:
        """The index; one that is damaged is made again."""
        path = self.folder / "index.sqlite"
        for _ in range(2):
            connection = sqlite3.connect(path, timeout=30.0)
            try:
                connection.execute(_TABLE)
                known = [row[1] for row in connection.execute("PRAGMA table_info(runs)")]
                if tuple(known) == _COLUMNS:
                    return connection
            except sqlite3.DatabaseError:
                pass
            connection.close()
            path.unlink(missing_ok=True)
        raise ValueError(f"--store {self.folder}: its index cannot be made; is the disk full?")

    def _refresh(self, connection: sqlite3.Connection) -> None:
        """Files that came, changed or went since the last time."""
        query = "SELECT file, changed, size FROM runs"
        known = {file: (changed, size) for file, changed, size in connection.execute(query)}
        stamps = self._stamps()
        for name in known.keys() - stamps.keys():
            connection.execute("DELETE FROM runs WHERE file = ?", (name,))
        marks = ", ".join("?" * len(_COLUMNS))
        for name, stamp in stamps.items():
            if known.get(name) != stamp:
                row = self._row(name, stamp)
                connection.execute(f"INSERT OR REPLACE INTO runs VALUES ({marks})", row)

    def _row(self, name: str, stamp: tuple[int, int]) -> tuple[Any, ...]:
        try:
            found = self.read(name, sampled=False)
        except (OSError, ValueError):
            return (name, *stamp, *[None] * (len(_COLUMNS) - 3))
        run, config = found["run"], found.get("config") or {}
        seconds = sorted(found.get("step_seconds") or [])
        return (
            name,
            *stamp,
            run.get("id"),
            run.get("key"),
            run.get("series"),
            run.get("created_utc"),
            (found.get("model") or {}).get("name"),
            config.get("method"),
            config.get("engine"),
            found.get("device"),
            found.get("outcome"),
            (found.get("memory") or {}).get("allocated_bytes"),
            (found.get("plan") or {}).get("allocated_bytes"),
            seconds[len(seconds) // 2] if seconds else None,
            (found.get("memory") or {}).get("reserved_bytes"),
            (found.get("memory") or {}).get("device_bytes"),
            capacity_of(found),
            json.dumps(surroundings_of(found), sort_keys=True),
        )
