"""The sides of a comparison: an interpreter with its own libraries, and how one runs a suite."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.store import Store

__all__ = ["INSTALL", "Side", "drop_checkouts", "from_ref", "run_side"]

INSTALL = "python -m pip install -q -e .[bench]"
"""How a git reference is installed in its own environment, unless told otherwise."""
_TAIL_LINES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Where one side runs.

    Attributes:
        name: ``base`` or ``head``.
        python: its interpreter.
        environment: variables set beside those of this process.
    """

    name: str
    python: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def from_ref(name: str, ref: str, *, folder: Path, install: str = INSTALL) -> Side:
    """Check a git reference out beside this repository and install it in its own environment.

    Args:
        name: ``base`` or ``head``.
        ref: a branch, tag or commit, or the path of an interpreter that is ready.
        folder: where checkout and environment go.
        install: command run in the checkout, with ``python`` the environment's own.

    Raises:
        ValueError: if a step fails, with the last lines it wrote.
    """
    if Path(ref).is_file() and os.access(ref, os.X_OK):
        return Side(name=name, python=Path(ref).absolute())
    checkout, place = folder / f"{name}-checkout", folder / f"{name}-venv"
    _step(["git", "worktree", "add", "--detach", "--force", str(checkout), ref], f"--{name} {ref}")
    _step([sys.executable, "-m", "venv", str(place)], f"--{name} {ref}")
    python = place / "bin" / "python"
    words = [str(python) if word == "python" else word for word in shlex.split(install)]
    _step(words, f"--install for --{name} {ref}", cwd=checkout)
    return Side(name=name, python=python)


def drop_checkouts(folder: Path) -> None:
    """Take back what ``from_ref`` told git."""
    for checkout in folder.glob("*-checkout"):
        command = ["git", "worktree", "remove", "--force", str(checkout)]
        subprocess.run(command, capture_output=True, check=False)


def run_side(side: Side, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Run a suite once in fresh processes; the runs it stored.

    Args:
        side: whose environment.
        arguments: of ``vram-plan bench run``: a suite, or options.

    Raises:
        ValueError: if no run ended well, with the last lines it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="vram-plan-ab-") as folder:
        store = ["--store", folder]
        command = [str(side.python), "-m", "vram_plan.app", "bench", "run", *arguments, *store]
        ended = subprocess.run(
            command,
            env={**os.environ, **side.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        rows = Store(Path(folder)).index()
    if not any(row["outcome"] == "ok" for row in rows):
        raise ValueError(f"{side.name}: no run ended well: {_tail(ended.stdout + ended.stderr)}")
    return rows


def _step(command: Sequence[str], what: str, cwd: Path | None = None) -> None:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ValueError(f"{what}: {' '.join(command[:3])} failed: {_tail(ended.stderr)}")


def _tail(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-_TAIL_LINES:]) or "it wrote nothing"
