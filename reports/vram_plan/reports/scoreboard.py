"""The plan and the published estimators on the same measured rows, each with its own error.

A peer is asked for what its interface offers, with the settings nearest to the run. It has no
answer where the run trains, shards or offloads something that it has no option for; where its
formula merely has no term (logits, attention kernels), it answers as its users see it answer.
PyTorch's allocated peak is compared with what a peer counts in tensors, reserved and device
readings with its total; a margin that a peer adds for safety is no part of either. Rows of quality
C and toy models under Megatron have no target for the plan either and are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vram_plan.reports.peers import PEERS, Answer, Peer
from vram_plan.reports.peers.from_row import peer_input
from vram_plan.reports.validate.judge import Comparison
from vram_plan.reports.validate.summary import Spread, spread, target

__all__ = ["OURS", "TENSORS", "Standing", "scoreboard"]

OURS = "vram-plan"
TENSORS = "allocated_peak_bytes"
COUNTERS = (TENSORS, "reserved_peak_bytes", "device_used_bytes")
"""What a row's figure is known to be; `memory_bytes` is of an unknown counter and left out."""
_NO_TARGET = ("", "Megatron, toy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one estimator did.

    Attributes:
        name: the estimator.
        version: the release or commit its formula was read from, empty for the plan.
        asked: figures it was asked for.
        errors: of those it could express; None when there were none.
        within_5: share of the expressed ones with at most 5 % error.
        within_10: the same with 10 %.
        ours: the plan's errors on the figures that it could express.
        reasons: why it could not, the most frequent first.
        ignored: what its formula has no term for, with the number of figures.
    """

    name: str
    version: str
    asked: int
    errors: Spread | None
    within_5: float
    within_10: float
    ours: Spread | None
    reasons: tuple[tuple[str, int], ...] = ()
    ignored: tuple[tuple[str, int], ...] = ()

    @property
    def expressed(self) -> int:
        """Figures it could express."""
        return self.errors.n if self.errors else 0


def scoreboard(
    comparisons: Iterable[Comparison],
    *,
    peers: Sequence[Peer] = PEERS,
    counters: Sequence[str] = COUNTERS,
) -> list[Standing]:
    """The plan first, then every peer, on the same figures.

    Args:
        comparisons: of a validation.
        peers: whom to ask.
        counters: the measured columns that count.
    """
    found = [one for one in comparisons if one.metric in counters and target(one) not in _NO_TARGET]
    own = [one.error for one in found]
    return [_standing(OURS, "", own, own), *(_of_peer(peer, found) for peer in peers)]


def _of_peer(peer: Peer, comparisons: Sequence[Comparison]) -> Standing:
    errors: list[float] = []
    ours: list[float] = []
    reasons: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for one in comparisons:
        answer = peer.ask(peer_input(one.row, one.plan.config, one.plan.parameters))
        said = _figure(answer, one.metric)
        if said is None:
            reasons[answer.reason or "does not know the card"] += 1
            continue
        errors.append(said / one.measured - 1)
        ours.append(one.error)
        ignored.update(answer.ignores)
    standing = _standing(peer.name, peer.version, errors, ours, asked=len(comparisons))
    return _with_reasons(standing, reasons, ignored)


def _figure(answer: Answer, metric: str) -> float | None:
    return answer.tensors_bytes if metric == TENSORS else answer.total_bytes


def _standing(
    name: str,
    version: str,
    errors: Sequence[float],
    ours: Sequence[float],
    asked: int | None = None,
) -> Standing:
    return Standing(
        name=name,
        version=version,
        asked=len(errors) if asked is None else asked,
        errors=spread(errors) if errors else None,
        within_5=_within(errors, 0.05),
        within_10=_within(errors, 0.10),
        ours=spread(ours) if ours else None,
    )


def _with_reasons(standing: Standing, reasons: Counter[str], ignored: Counter[str]) -> Standing:
    return replace(
        standing,
        reasons=tuple(reasons.most_common()),
        ignored=tuple(ignored.most_common()),
    )


def _within(errors: Sequence[float], bound: float) -> float:
    return sum(abs(error) <= bound for error in errors) / len(errors) if errors else 0.0
