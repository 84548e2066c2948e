"""The library versions of a row, and the training loop that ran it."""

from __future__ import annotations

from functools import lru_cache

from vram_plan.profiles.measured_row import Row
from vram_plan.profiles.stack import Stack, parse_stack
from vram_plan.reports.validate.source_facts import (
    CASES,
    OWN_WORKSPACES,
    REQUIRED,
    SWIFT_EXPERTS,
    WORKSPACES,
)

_PLUGINS = "framework configuration accelerated-peft"
"""Notes of runs whose adapters came from fms-acceleration's plugins instead of TRL."""


def stack_of_row(row: Row) -> Stack:
    """Versions as stated; libraries and loops that change no memory are left out."""
    parts = [part for part in (row.stack or "").split(";") if part]
    named = {part.partition("=")[0] for part in parts}
    required = _required((row.source or "").partition(":")[2])
    required = f"{required};{_experts(row)}"
    parts += [one for one in required.split(";") if one and one.partition("=")[0] not in named]
    loop = "fms-acceleration" if _PLUGINS in (row.notes or "") else row.trainer
    if loop is not None:
        parts.append(f"loop={loop}")
    return _parsed(";".join(part for part in parts if _is_known(part)))


def _experts(row: Row) -> str:
    """A loop's own defaults, or what the numbers of ranks say by themselves.

    Expert ranks that have no room beside the tensor ranks take some of them:
    ``--expert-tensor-parallel-size`` is then below ``--tensor-model-parallel-size``.
    """
    tensor, expert = row.tensor_parallel or 1, row.expert_parallel or 1
    if row.trainer == "ms-swift" and row.engine == "megatron" and row.num_experts:
        return SWIFT_EXPERTS
    stage = (row.gpus or 1) // (row.pipeline_parallel or 1)
    if (stage // tensor) % expert == 0 or stage % expert:
        return ""
    return f"expert-tensor-parallel-size={min(tensor, stage // expert)}"


def _required(source: str) -> str:
    """What a row's file, or the folder it lies in, says beside its figures."""
    case = source.rpartition("/")[0].rpartition("/")[2]
    found = [REQUIRED.get(source, ""), CASES.get(case, "")]
    if source.startswith(WORKSPACES) and case not in OWN_WORKSPACES:
        found.append("cublas-workspace-config=:4096:8")
    return ";".join(found)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Stack:
    return parse_stack(text)


@lru_cache(maxsize=1024)
def _is_known(part: str) -> bool:
    try:
        parse_stack(part)
    except ValueError:
        return False
    return True
