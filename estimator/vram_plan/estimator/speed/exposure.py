"""How much of the traffic is waited for: what finds no computation to hide behind.

A transfer that overlaps a phase hides behind the part of it that its window covers and that earlier
transfers have left. What is hidden is not free: collectives take multiprocessors and bandwidth from
the kernels beside them, so a share of it (``contention`` of the efficiency curves) is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vram_plan.estimator.speed.transfer import Transfer

__all__ = ["exposed"]


def exposed(
    transfers: Iterable[Transfer], phases: Mapping[str, float], contention: float
) -> dict[str, float]:
    """Seconds waited for, by part of the step.

    Args:
        transfers: of one optimizer step.
        phases: seconds that each phase computes in the step.
        contention: share of hidden seconds that computation loses.
    """
    parts: dict[str, float] = {}
    left = dict(phases)
    for transfer in transfers:
        hidden = 0.0
        if transfer.overlaps is not None:
            room = min(left.get(transfer.overlaps, 0.0), _window(transfer, phases))
            hidden = min(transfer.seconds, room)
            left[transfer.overlaps] = left.get(transfer.overlaps, 0.0) - hidden
        waited = transfer.seconds - hidden * (1.0 - contention)
        parts[transfer.part] = parts.get(transfer.part, 0.0) + waited
    return parts


def _window(transfer: Transfer, phases: Mapping[str, float]) -> float:
    return transfer.window * phases.get(transfer.overlaps or "", 0.0)
