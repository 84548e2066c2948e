"""The processes of a run: how they are started, and how all of them are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from vram_plan.estimator.config import TrainConfig

__all__ = [
    "command",
    "die_with_parent",
    "end_all",
    "environment_of",
    "first_machine",
    "gpus_here",
]

_MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
# The address is given, since many a container cannot resolve its own name.
_ALONE = ("--standalone", "--local-addr", "127.0.0.1")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl.h
_WORKER = "vram_plan.bench.runs.worker"
_TORCHRUN = "vram_plan.bench.runs.torchrun"
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.02


def command(config: TrainConfig, folder: Path, *, virtual: bool) -> list[str]:
    """One process, or torchrun for an engine with ranks.

    Raises:
        ValueError: for a job of several machines, where this one does not know the others.
    """
    if config.engine == "torch" or virtual:
        return [sys.executable, "-m", _WORKER, str(folder)]
    nodes = -(-config.gpus // config.gpus_per_node)
    return [
        *(sys.executable, "-m", _TORCHRUN),
        *("--nproc-per-node", str(gpus_here(config, virtual=virtual))),
        *(_meeting(nodes) if nodes > 1 else _ALONE),
        *("--shutdown-timeout", "3", "-m", _WORKER, str(folder)),
    ]


def _meeting(nodes: int) -> list[str]:
    """Where the machines of a job meet, by the names that schedulers' scripts commonly set."""
    known = [os.environ.get(name) for name in _MEETING]
    if None in known:
        raise ValueError(f"a job of {nodes} machines: set {', '.join(_MEETING)} on each of them")
    address, port, number = map(str, known)
    return [
        *("--nnodes", str(nodes), "--node-rank", number),
        *("--master-addr", address, "--master-port", port),
    ]


def first_machine(config: TrainConfig) -> bool:
    """Whether rank 0, which writes the result, is on this machine."""
    if config.gpus <= config.gpus_per_node:
        return True
    return os.environ.get("NODE_RANK", "0") == "0"


def gpus_here(config: TrainConfig, *, virtual: bool) -> int:
    """GPUs that a run takes on this machine: rank N of it the N-th one that PyTorch sees."""
    alone = config.engine == "torch" or virtual
    return 1 if alone else min(config.gpus, config.gpus_per_node)


def environment_of(device: str, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The run's environment: on CPUs the ranks meet on the loopback and have a thread each."""
    found = dict(os.environ)
    if device == "cpu":
        found.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    else:
        found.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    return found | (extra or {})


def die_with_parent() -> None:
    """Let this process be killed together with its parent; Linux alone can do so."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def end_all(launcher: subprocess.Popen[bytes], folder: Path) -> None:
    """No process of the run is left: first asked to end, then killed.

    torchrun puts every rank into a session of its own, so ranks are known by what they wrote down.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, number)
        try:
            launcher.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        break
    launcher.wait()
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, signal.SIGKILL)
    ranks = _ranks(folder)
    for pid in ranks:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    patience = time.monotonic() + _GRACE_SECONDS
    while any(map(_runs, ranks)) and time.monotonic() < patience:
        time.sleep(_POLL_SECONDS)


def _ranks(folder: Path) -> list[int]:
    """Processes that belong to the run: a number alone may have been given away again."""
    found = []
    for path in folder.glob("pid-*"):
        with suppress(OSError, ValueError):
            pid = int(path.read_text(encoding="utf-8"))
            if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"
