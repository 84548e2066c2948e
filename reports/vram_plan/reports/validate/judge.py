"""Which figure of a plan a row's counter is compared with, and of which rank.

PyTorch's counters are those of one process. A device reading is NVML's: it holds the context and
the communication buffers too. Where a source took the first reading off (its notes say so), that
was the empty card, so what remains is what the process took, which is what the plan predicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vram_plan.estimator.memory import Memory
from vram_plan.estimator.planner import Plan
from vram_plan.profiles.measured_row import MEMORY_COLUMNS, Row


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure of one row beside its prediction: bytes of a counter, or a speed.

    Attributes:
        row: the measurement.
        plan: the plan of the rank that was read.
        metric: the measured column.
        measured: what was read.
        said: what is predicted of a speed; None for counters.
    """

    row: Row
    plan: Plan
    metric: str
    measured: float
    said: float | None = None

    @cached_property
    def predicted(self) -> float:
        """What is predicted; worked out when asked for, as a replay of the allocator takes time."""
        return predicted_bytes(self.plan, self.metric) if self.said is None else self.said

    @property
    def quality(self) -> str:
        """How far the figure is to be trusted."""
        return self.row.quality if self.said is None else self.row.speed_quality or self.row.quality

    @property
    def error(self) -> float:
        """Share by which the plan says too much: predicted / measured − 1."""
        return self.predicted / self.measured - 1


def stage_of(row: Row) -> int | None:
    """The pipeline stage that was read: -1 the last, 0 the first, None the fullest one."""
    if (row.pipeline_parallel or 1) == 1:
        return None
    return {"last": -1, "rank0": 0}.get(row.memory_rank or "")


def compare(row: Row, plan: Plan) -> list[Comparison]:
    """A comparison for each counter the row has; none for a run that failed."""
    if row.outcome != "ok":
        return []  # the last reading before a failure is no peak
    found = []
    for metric in MEMORY_COLUMNS:
        measured = getattr(row, metric)
        if measured is not None:
            found.append(
                Comparison(
                    row=row,
                    plan=plan,
                    metric=metric,
                    measured=measured,
                )
            )
    return found


def predicted_bytes(plan: Plan, metric: str) -> int:
    """What the plan says of a counter."""
    memory = plan.memory
    if metric == "allocated_peak_bytes":
        return memory.allocated_bytes
    if metric == "allocated_final_bytes":
        return _between_steps(memory)
    if metric == "device_used_bytes":
        return plan.device.bytes if plan.device else memory.needed_bytes
    if memory.reserved_bytes is None and plan.device is not None:
        return plan.device.reserved
    # reserved_peak_bytes, and memory_bytes of unknown kind
    return memory.reserved_bytes or memory.allocated_bytes


def _between_steps(memory: Memory) -> int:
    """What outlives a step: entries that are alive in all of it."""
    return sum(
        entry.bytes
        for entry in memory.ledger.entries
        if entry.place == "device" and not entry.alive
    )
