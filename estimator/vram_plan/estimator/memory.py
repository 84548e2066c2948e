"""What a plan says about memory: the ledger's totals, and what the device adds to them."""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.ledger import OUTSIDE_THE_STEP, Ledger
from vram_plan.estimator.overhead import slack_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes per GPU on the fullest rank; host and NVMe per node.

    Attributes:
        ledger: every entry.
        instants: bytes allocated in every instant.
        overhead_bytes: what a process takes on the device outside PyTorch's allocator.
    """

    ledger: Ledger
    instants: dict[str, int]
    overhead_bytes: int

    @property
    def peak_instant(self) -> str:
        """The instant of the step with the most bytes."""
        step = {k: v for k, v in self.instants.items() if k not in OUTSIDE_THE_STEP}
        return max(step, key=lambda instant: step[instant])

    @property
    def allocated_bytes(self) -> int:
        """Predicts ``torch.cuda.max_memory_allocated``."""
        return self.instants[self.peak_instant]

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
