"""What a plan says about memory: the ledger's totals, and what the device adds to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from vram_plan.estimator.ledger import OUTSIDE_THE_STEP, Ledger
from vram_plan.estimator.overhead import slack_bytes


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes per GPU on the fullest rank; host and NVMe per node.

    Attributes:
        ledger: every entry.
        instants: bytes allocated in every instant.
        overhead_bytes: what a process takes on the device beside the ledger's entries.
        workspace_bytes: the part of it that PyTorch's allocator hands out (cuBLAS workspaces,
            where no GPU is named and the ledger does not list them).
        reserve: replays the run through the model of PyTorch's allocator, given the allocated
            bytes; None where the run's timeline is not known.
    """

    ledger: Ledger
    instants: dict[str, int]
    overhead_bytes: int
    workspace_bytes: int = 0
    reserve: Callable[[int], int] | None = field(default=None, compare=False, repr=False)

    @property
    def peak_instant(self) -> str:
        """The instant of the step with the most bytes."""
        step = {k: v for k, v in self.instants.items() if k not in OUTSIDE_THE_STEP}
        return max(step, key=lambda instant: step[instant])

    @property
    def allocated_bytes(self) -> int:
        """Predicts ``torch.cuda.max_memory_allocated``."""
        return self.instants[self.peak_instant]

    @cached_property
    def reserved_bytes(self) -> int | None:
        """Predicts ``torch.cuda.max_memory_reserved``; None where it is not modelled.

        It takes tenths of a second, so it is worked out when it is asked for.
        """
        return None if self.reserve is None else self.reserve(self.allocated_bytes)

    @property
    def device_bytes(self) -> int | None:
        """Predicts what NVML reads: reserved, the CUDA context and communication buffers."""
        if self.reserved_bytes is None:
            return None
        return self.reserved_bytes + self.overhead_bytes - self.workspace_bytes

    @property
    def components(self) -> dict[str, int]:
        """Bytes by component at the peak; they sum to ``allocated_bytes``."""
        return self.ledger.components(self.peak_instant)

    @property
    def largest_bytes(self) -> int:
        """The largest instant, initialisation and saving included."""
        return max(self.instants.values())

    @property
    def needed_bytes(self) -> int:
        """What the run certainly needs: the largest instant and the overhead, no fragmentation."""
        return self.largest_bytes + self.overhead_bytes

    @property
    def slack_bytes(self) -> int:
        """An upper bound of what the allocator cannot hand out (fragmentation)."""
        return slack_bytes(self.components)

    @property
    def required_bytes(self) -> int:
        """What the run cannot do without, with fragmentation at its upper bound."""
        return self.needed_bytes + self.slack_bytes

    @property
    def model_states_bytes(self) -> int:
        """Weights, master weights, gradients and optimizer states on the device."""
        return self.ledger.model_states

    @property
    def host_bytes(self) -> int:
        """Host memory per node."""
        return self.ledger.elsewhere("host")

    @property
    def nvme_bytes(self) -> int:
        """NVMe per node."""
        return self.ledger.elsewhere("nvme")
