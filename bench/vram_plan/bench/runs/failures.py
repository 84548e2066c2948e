"""What an exception or the end of a process means: out of memory, and whose, or an error."""

from __future__ import annotations

import errno
import re
import signal
from dataclasses import dataclass

__all__ = ["Failure", "of_exception", "of_exit"]

_REQUESTED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|B|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
#: Messages of libraries that run out of device memory beside PyTorch's allocator:
#: NCCL (src/include/alloc.h), cuBLAS handles (aten/src/ATen/cuda/Exceptions.cpp), the CUDA runtime
#: and cuDNN; and of PyTorch's CPU allocator (c10/core/impl/alloc_cpu.cpp).
_OUT_OF_MEMORY = {
    "torch": ("CUDA out of memory", "HIP out of memory"),
    "nccl": ("Failed to CUDA malloc", "ncclUnhandledCudaError: Call to CUDA function failed"),
    "cublas": ("CUBLAS_STATUS_ALLOC_FAILED",),
    "cuda": ("CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED"),
    "host": ("DefaultCPUAllocator: can't allocate memory", "Cannot allocate memory"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a run ended that did not end well.

    Attributes:
        outcome: one of the measurement's outcomes.
        message: one line.
        whose: for out-of-memory runs, whose allocation failed: ``torch``, ``nccl``, ``host`` …
        requested_bytes: what was asked for, where it was said.
    """

    outcome: str
    message: str
    whose: str | None = None
    requested_bytes: int | None = None


def of_exception(kind: str, message: str) -> Failure:
    """From an exception's class name and message."""
    line = " ".join(f"{kind}: {message}".split())[:500]
    if kind == "MemoryError":
        return Failure(outcome="oom", message=line, whose="host")
    for whose, texts in _OUT_OF_MEMORY.items():
        if any(text in message for text in texts):
            return Failure(
                outcome="oom", message=line, whose=whose, requested_bytes=_requested(message)
            )
    return Failure(outcome="error", message=line)


def of_exit(code: int, log: str) -> Failure:
    """From the exit of a worker that left no result; negative codes are signals."""
    if code in (errno.ENOSPC, errno.EFBIG):
        return Failure(
            outcome="crash",
            message="the disk is full: the run could not write its result; set TMPDIR to another",
        )
    if -code == signal.SIGKILL:
        return Failure(
            outcome="killed",
            message="the worker was killed (signal 9): by the system when the host's memory ran "
            "out, or by hand",
        )
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "no output")
    return Failure(outcome="crash", message=f"the worker ended with {name}: {last.strip()[:300]}")


def _requested(message: str) -> int | None:
    match = _REQUESTED.search(message)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None
