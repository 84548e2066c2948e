"""What virtual ranks saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vram_plan.bench.measurement import Instant
from vram_plan.bench.trace.timeline import Trace

__all__ = ["RankTrace", "ZeroTrace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTrace:
    """One rank's measured step.

    Attributes:
        rank: which one.
        trace: its live bytes on the device.
        host: component → bytes it keeps on the host.
        layers: blocks of the model.
        seconds: ``imports`` and ``trace``.
        versions: library → version.
    """

    rank: int
    trace: Trace
    host: Mapping[str, int]
    layers: int
    seconds: Mapping[str, float]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroTrace:
    """The step of a DeepSpeed job: the fullest of the ranks that were traced.

    Attributes:
        ranks: of the job.
        seen: the ranks traced, the fullest first.
        local_ranks: ranks of one node, which share its host memory.
        notes: what a reader must know.
        extended_from: None: fake tensors take no memory, so every layer is run.
    """

    ranks: int
    seen: tuple[RankTrace, ...]
    local_ranks: int = 1
    notes: tuple[str, ...] = ()
    extended_from: tuple[int, ...] | None = None
    _instants: dict[str, Instant] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.seen:
            raise ValueError("a trace of virtual ranks needs at least one rank")

    @property
    def trace(self) -> Trace:
        """The fullest rank's events."""
        return self.seen[0].trace

    @property
    def peak_bytes(self) -> int:
        """Most live bytes of the step, on the fullest rank."""
        return max(self.phase_peaks.values())

    @property
    def peak_phase(self) -> str:
        """The phase of the peak."""
        return max(self.phase_peaks, key=lambda phase: self.phase_peaks[phase])

    @property
    def phase_peaks(self) -> dict[str, int]:
        """Phase → its most live bytes, each on its fullest rank."""
        peaks: dict[str, int] = {}
        for one in self.seen:
            for phase, nbytes in one.trace.phase_peaks.items():
                peaks[phase] = max(peaks.get(phase, 0), nbytes)
        return peaks

    @property
    def instants(self) -> tuple[Instant, ...]:
        """The fullest moment of every instant, each on its fullest rank."""
        if not self._instants:
            for one in self.seen:
                for instant in one.trace.instants:
                    known = self._instants.get(instant.name)
                    if known is None or instant.bytes > known.bytes:
                        self._instants[instant.name] = instant
        return tuple(self._instants.values())

    def components(self, phase: str | None = None) -> dict[str, int]:
        """Component → bytes at the peak of a phase, or of the step."""
        wanted = phase or self.peak_phase
        fullest = max(self.seen, key=lambda one: one.trace.phase_peaks.get(wanted, 0))
        return fullest.trace.components(wanted)

    @property
    def host_components(self) -> dict[str, int]:
        """Component → bytes on one node's host."""
        return {name: nbytes * self.local_ranks for name, nbytes in self.seen[0].host.items()}

    @property
    def host_bytes(self) -> int:
        """Bytes on one node's host."""
        return sum(self.host_components.values())

    @property
    def layers(self) -> int:
        """Blocks of the model, all of them run."""
        return self.seen[0].layers

    @property
    def parameters(self) -> int:
        """Of the whole model, as counted."""
        return self.trace.parameters

    @property
    def trainable_parameters(self) -> int:
        """Those that get gradients."""
        return self.trace.trainable_parameters

    @property
    def seconds(self) -> dict[str, float]:
        """``imports`` and ``trace`` of the slowest rank."""
        names = self.seen[0].seconds
        return {name: max(one.seconds[name] for one in self.seen) for name in names}

    @property
    def versions(self) -> dict[str, str]:
        """Library → version."""
        return dict(self.seen[0].versions)
