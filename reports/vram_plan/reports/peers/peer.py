"""A peer: a published estimator, what it was read from, and what it can say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vram_plan.reports.peers.run import PeerInput

__all__ = ["MIB", "Answer", "InexpressibleError", "Peer", "refuse", "refuse_sharding"]

MIB = 2**20


class InexpressibleError(ValueError):
    """The peer has no option for something that decides what is in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a peer says of a run.

    Attributes:
        tensors_bytes: per GPU without what it adds for context, fragmentation and safety, to be
            compared with PyTorch's allocated bytes; None when it cannot express the run.
        total_bytes: per GPU with context and fragmentation, without an unused safety margin, to be
            compared with what is reserved or what the device reports.
        reason: why it cannot express the run.
        ignores: what of the run its formula has no term for.
    """

    tensors_bytes: float | None = None
    total_bytes: float | None = None
    reason: str = ""
    ignores: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One estimator.

    Attributes:
        name: what its users call it.
        version: the release or commit the formula was read from.
        source: repository and path, or the package.
        formula: its arithmetic; raises `InexpressibleError`.
    """

    name: str
    version: str
    source: str
    formula: Callable[[PeerInput], Answer]

    def ask(self, run: PeerInput) -> Answer:
        """Its answer, or the reason why it has none."""
        try:
            return self.formula(run)
        except InexpressibleError as cannot:
            return Answer(reason=str(cannot))


def refuse(condition: bool, reason: str) -> None:
    """Say that the peer has no option for this.

    Raises:
        InexpressibleError: when the condition holds.
    """
    if condition:
        raise InexpressibleError(reason)


def refuse_sharding(run: PeerInput) -> None:
    """Of a tool that knows one GPU: replicas are the same per GPU, shards are not."""
    refuse(run.shard_stage > 0, "no sharding of states")
    refuse(run.offload != "none", "no offload")
    refuse(max(run.tp, run.pp, run.cp, run.ep) > 1, "no model parallelism")
