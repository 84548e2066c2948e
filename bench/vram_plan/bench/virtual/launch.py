"""Start the processes that are ranks, and say plainly what became of them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vram_plan.bench.virtual.case import ZeroCase
from vram_plan.bench.virtual.result import RankTrace

__all__ = ["CODES", "DEFAULT_TIMEOUT_SECONDS", "VirtualRankError", "launch"]

CODES = "codes.json"
DEFAULT_TIMEOUT_SECONDS = 1200.0
_LAST_CHARACTERS = 400


class VirtualRankError(RuntimeError):
    """A rank that did not come to its end.

    Attributes:
        outcome: ``error``, ``killed`` or ``timeout``.
    """

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(outcome, message)
        self.outcome = outcome
        self.message = message

    def __str__(self) -> str:
        return self.message


def launch(
    cases: Sequence[ZeroCase],
    *,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    together: int | None = None,
) -> list[RankTrace | Exception]:
    """Run every case in a process of its own; what failed is returned, not raised.

    A ``ValueError`` says what cannot be traced, a ``VirtualRankError`` that a process failed or
    was killed.

    Args:
        cases: one for each process.
        timeout_seconds: after which all of them are ended.
        together: processes at a time (all ranks of a real process group); as many as there are
            processors where None.

    Raises:
        VirtualRankError: where the processes took too long or could not start.
    """
    count = together or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="vram-plan-") as name:
        folder = Path(name)
        command = [sys.executable, "-P", "-m", "vram_plan.bench.virtual", name, str(count)]
        _run(command, json.dumps([case.to_json() for case in cases]), folder, timeout_seconds)
        codes = json.loads(Path(folder, CODES).read_text())
        return [_read(folder / f"{number}.pickle", code) for number, code in enumerate(codes)]


def _run(command: list[str], cases: str, folder: Path, timeout_seconds: float) -> None:
    """Wait for the process that imports the libraries and forks the ranks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # so that the forks can be ended together with it
    )
    try:
        _, said = process.communicate(cases, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        message = f"DeepSpeed's step took more than {timeout_seconds:,.0f} s and was ended"
        raise VirtualRankError("timeout", message) from None
    finally:
        _end(process)
    if process.returncode or not Path(folder, CODES).exists():
        raise _failure(process.returncode, said)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stderr):
        if stream is not None:
            stream.close()


def _read(result: Path, code: int) -> RankTrace | Exception:
    if code or not result.exists():
        return _failure(code, "")
    found = pickle.loads(result.read_bytes())
    assert isinstance(found, (RankTrace, ValueError, VirtualRankError))
    return found


def _failure(code: int, said: str) -> VirtualRankError:
    if code < 0:
        message = f"the process that ran DeepSpeed was killed (signal {-code}); is memory short?"
        return VirtualRankError("killed", message)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1][-_LAST_CHARACTERS:] if lines else f"exit code {code}, no message"
    return VirtualRankError("error", f"DeepSpeed's step failed: {last}")
