"""What this machine can run, and the command that mends what it cannot."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from vram_plan.bench.environment import LIBRARIES, version_of
from vram_plan.bench.runs.nvml import NoNvmlError, every_gpu

__all__ = ["Ability", "Report", "examine"]

_INSTALL = "pip install 'vram-plan[bench]'"
#: What each command runs on top of the bare installation.
_NEEDS = {
    "dry-run": ("torch", "transformers"),
    "dry-run --method lora": ("torch", "transformers", "peft"),
    "dry-run --quantization nf4": ("torch", "transformers", "peft", "bitsandbytes"),
    "dry-run --zero": ("torch", "transformers", "deepspeed"),
    "bench run --device cpu": ("torch", "transformers", "peft"),
    "bench run --device cpu --zero": ("torch", "transformers", "peft", "deepspeed"),
    "bench run --loop trainer": ("torch", "transformers", "peft", "accelerate"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """One command: whether it runs here, else what is missing and the way out."""

    command: str
    works: bool
    missing: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The machine.

    Attributes:
        versions: library → version, None where it is not installed.
        host: processors and memory in bytes.
        gpus: what NVML and PyTorch say; empty without one.
        gpu_reason: why there is none.
        abilities: every command.
    """

    versions: dict[str, str | None]
    host: dict[str, int | None]
    gpus: tuple[dict[str, Any], ...]
    gpu_reason: str | None
    abilities: tuple[Ability, ...]

    def to_document(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schema": "vram-plan/doctor/1",
            "versions": self.versions,
            "host": self.host,
            "gpus": list(self.gpus),
            "gpu_reason": self.gpu_reason,
            "abilities": [
                {"command": a.command, "works": a.works, "missing": a.missing, "mend": a.mend}
                for a in self.abilities
            ],
        }


def examine() -> Report:
    """Look at libraries, host and GPUs."""
    versions = {name: version_of(name) for name in (*LIBRARIES, "nvidia-ml-py")}
    gpus, reason = _gpus()
    abilities = [Ability(command="plan, models, gpus, validate", works=True)]
    for command, needed in _NEEDS.items():
        missing = ", ".join(name for name in needed if versions[name] is None)
        mend = _INSTALL if missing else ""
        abilities.append(Ability(command=command, works=not missing, missing=missing, mend=mend))
    abilities.append(_on_gpu(versions, reason))
    return Report(
        versions=versions,
        host={"processors": os.cpu_count(), "memory_bytes": _host_bytes()},
        gpus=gpus,
        gpu_reason=reason,
        abilities=tuple(abilities),
    )


def _on_gpu(versions: dict[str, str | None], reason: str | None) -> Ability:
    command = "bench run --device cuda"
    torch = versions["torch"]
    if torch is None:
        return Ability(command=command, works=False, missing="torch", mend=_INSTALL)
    if reason is not None:
        return Ability(
            command=command, works=False, missing=reason, mend="run it on a machine with a GPU"
        )
    if not _sees_cuda():
        return Ability(
            command=command,
            works=False,
            missing=f"torch {torch} sees no CUDA device (a CPU build, or a driver too old)",
            mend="install the CUDA build for your driver: https://pytorch.org/get-started",
        )
    return Ability(command=command, works=True)


def _gpus() -> tuple[tuple[dict[str, Any], ...], str | None]:
    try:
        gpus = every_gpu()
    except NoNvmlError as error:
        return (), str(error)
    facts = tuple(gpu.facts for gpu in gpus)
    for gpu in gpus:
        gpu.close()
    return facts, None


def _sees_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _host_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
