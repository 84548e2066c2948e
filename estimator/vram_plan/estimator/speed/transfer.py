"""One kind of traffic of an optimizer step, and what to say where it is not modelled."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CPU_OPTIMIZER", "OFFLOAD", "NotModelled", "Transfer"]

PHASES = frozenset({"forward", "backward", "step"})
OFFLOAD = "offload transfer"
CPU_OPTIMIZER = "CPU optimizer"


class NotModelled(ValueError):  # noqa: N818  # it is no mistake of the user's
    """The message says in one line what is not known; the result is then None, never 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What a rank sends, or waits for, in one optimizer step.

    Attributes:
        name: what it is, for a reader.
        part: the part of the step that it counts to.
        bytes: sent by the rank in all.
        seconds: of all of them one after another, nothing hidden.
        overlaps: the phase it hides behind (``forward``, ``backward``, ``step``); None: exposed.
        count: collectives (or copies) in the step.
        window: share of that phase it can hide behind: DDP reduces during the last micro-batch's
            backward pass only.
    """

    name: str
    part: str
    bytes: float
    seconds: float
    overlaps: str | None = None
    count: int = 1
    window: float = 1.0

    def __post_init__(self) -> None:
        if self.bytes < 0 or self.seconds < 0 or self.count < 0:
            raise ValueError(f"{self.name}: bytes, seconds and count must not be negative")
        if self.overlaps is not None and self.overlaps not in PHASES:
            raise ValueError(f"{self.name}: overlaps must be one of {', '.join(sorted(PHASES))}")
        if not 0 < self.window <= 1:
            raise ValueError(f"{self.name}: window must be in (0, 1], got {self.window}")
