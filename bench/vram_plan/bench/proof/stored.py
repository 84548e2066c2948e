"""Plans made anew against traces of before: a trace takes seconds, a plan a millisecond.

After an edit of the closed form alone the traces still hold; after an edit of the tracer they do
not, and the places that it touches have to be taken out of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from vram_plan.bench.proof.case import Result, configured, paired, traced_as
from vram_plan.bench.proof.sample import Candidate

__all__ = ["Stored", "replanned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A trace as a result keeps it.

    Attributes:
        peak_bytes: the step's peak, and ``peak_phase`` its phase.
        phase_peaks: phase → its largest number of live bytes.
        phase_components: phase → component → bytes at that peak.
    """

    peak_bytes: int
    peak_phase: str
    phase_peaks: dict[str, int]
    phase_components: dict[str, dict[str, int]]

    def components(self, phase: str | None = None) -> dict[str, int]:
        """Component → bytes at the peak of a phase, or of the step."""
        return self.phase_components[phase or self.peak_phase]


def replanned(results: Iterable[Result]) -> Iterator[Result]:
    """Results with today's plan; those whose step the tracer would run differently are left out.

    Left out are refused and failed places too: what the plan takes may have changed.
    """
    for result in results:
        if result.outcome != "ok" or not result.phase_components:
            continue
        candidate = Candidate(model=result.model, options=result.options)
        try:
            config = configured(candidate)
            known = traced_as(config, candidate.model) == result.traced_as
        except ValueError:
            continue
        if known:
            yield replace(result, **paired(config, _stored(result)))


def _stored(result: Result) -> Stored:
    return Stored(
        peak_bytes=result.traced,
        peak_phase=result.phase,
        phase_peaks=result.phase_peaks,
        phase_components=result.phase_components,
    )
