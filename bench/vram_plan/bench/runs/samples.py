"""A run's samples as compressed columns in a file beside the run.

The file is whole before the run is, so that a run never misses its samples; one whose run never
came is left behind by a writer that was killed, and is removed.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["ENDING", "joined", "packed", "parted"]

ENDING = ".samples.json.gz"
_MOST_BYTES = 64 * 2**20


def parted(document: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """A run without its columns, and the columns; None where nothing was sampled."""
    samples = document.get("samples") or {}
    columns = samples.get("columns")
    if not columns:
        return dict(document), None
    kept = {name: value for name, value in samples.items() if name != "columns"}
    return {**document, "samples": kept}, columns


def packed(columns: Mapping[str, Any]) -> bytes:
    """The columns as a file's content: the same for the same columns."""
    return gzip.compress(json.dumps(columns).encode(), mtime=0)


def joined(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """A run with the columns of the file beside it; without, where it is missing or damaged."""
    samples = document.get("samples")
    if not isinstance(samples, dict) or "columns" in samples:
        return document
    return {**document, "samples": {**samples, "columns": _columns(path)}}


def _columns(path: Path) -> dict[str, Any]:
    try:
        with gzip.open(path) as file:  # somebody else's may unpack to anything
            text = file.read(_MOST_BYTES + 1)
        found = json.loads(text) if len(text) <= _MOST_BYTES else None
    except (OSError, EOFError, ValueError, zlib.error):
        return {}
    return found if isinstance(found, dict) else {}
