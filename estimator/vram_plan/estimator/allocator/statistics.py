"""The allocator's counters, under the names of ``torch.cuda.memory_stats``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Statistics"]


@dataclass(slots=True)
class Statistics:
    """Current values and peaks, both pools together.

    Attributes:
        allocated: bytes of the blocks in use.
        reserved: bytes taken from the driver.
        requested: bytes the program asked for.
        inactive_split: free bytes in segments that are partly in use (never in expandable ones).
        allocations: blocks in use.
        segments: segments taken from the driver (``cudaMalloc``; expandable ones do not count).
        inactive_splits: number of blocks behind ``inactive_split``.
        num_alloc_retries: requests that first had to give every cached segment back.
        num_ooms: requests that failed all the same.
        num_device_alloc: calls that took memory from the driver.
        num_device_free: calls that gave memory back.
    """

    allocated: int = 0
    reserved: int = 0
    requested: int = 0
    inactive_split: int = 0
    allocations: int = 0
    segments: int = 0
    inactive_splits: int = 0
    allocated_peak: int = 0
    reserved_peak: int = 0
    requested_peak: int = 0
    inactive_split_peak: int = 0
    num_alloc_retries: int = 0
    num_ooms: int = 0
    num_device_alloc: int = 0
    num_device_free: int = 0

    def take(self, size: int, requested: int) -> None:
        """A block is handed out."""
        self.allocations += 1
        allocated = self.allocated = self.allocated + size
        if allocated > self.allocated_peak:
            self.allocated_peak = allocated
        self.requested += requested
        if self.requested > self.requested_peak:
            self.requested_peak = self.requested

    def reserve(self, size: int) -> None:
        """Memory comes from the driver."""
        self.num_device_alloc += 1
        self.reserved += size
        if self.reserved > self.reserved_peak:
            self.reserved_peak = self.reserved

    def give_back(self, size: int) -> None:
        """Memory goes back to the driver."""
        self.num_device_free += 1
        self.reserved -= size

    def split_change(self, blocks: int, nbytes: int) -> None:
        """Free blocks of partly used segments come or go."""
        self.inactive_splits += blocks
        self.inactive_split += nbytes
        if self.inactive_split > self.inactive_split_peak:
            self.inactive_split_peak = self.inactive_split

    def reset_peaks(self) -> None:
        """``torch.cuda.reset_peak_memory_stats``."""
        self.allocated_peak = self.allocated
        self.reserved_peak = self.reserved
        self.requested_peak = self.requested
        self.inactive_split_peak = self.inactive_split

    def as_torch(self) -> dict[str, int]:
        """The same figures under torch's names."""
        return {
            "allocated_bytes.all.current": self.allocated,
            "allocated_bytes.all.peak": self.allocated_peak,
            "active_bytes.all.current": self.allocated,
            "active_bytes.all.peak": self.allocated_peak,
            "reserved_bytes.all.current": self.reserved,
            "reserved_bytes.all.peak": self.reserved_peak,
            "requested_bytes.all.current": self.requested,
            "requested_bytes.all.peak": self.requested_peak,
            "inactive_split_bytes.all.current": self.inactive_split,
            "inactive_split_bytes.all.peak": self.inactive_split_peak,
            "allocation.all.current": self.allocations,
            "segment.all.current": self.segments,
            "inactive_split.all.current": self.inactive_splits,
            "num_alloc_retries": self.num_alloc_retries,
            "num_ooms": self.num_ooms,
            "num_device_alloc": self.num_device_alloc,
            "num_device_free": self.num_device_free,
        }
