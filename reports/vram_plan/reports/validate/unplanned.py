"""What a row's notes say of its run that no option of a plan stands for."""

from __future__ import annotations

import re

from vram_plan.profiles.measured_row import Row

__all__ = ["refuse_unplanned"]

PLANNED_RECOMPUTATION = frozenset({"core_attn"})
"""What ``--checkpointing selective`` recomputes with Megatron's modules: ``--recompute-modules``'
default (NVIDIA/Megatron-LM ``megatron/core/transformer/transformer_config.py``)."""
_RECOMPUTED = re.compile(r"recomputed modules: ([a-z_+ ]+)")
_LATENT = "multi-latent attention"


def refuse_unplanned(row: Row) -> None:
    """Refuse rows whose notes name parts that Megatron's composition does not have here.

    Raises:
        ValueError: naming them.
    """
    notes = row.notes or ""
    said = _RECOMPUTED.search(notes)
    others = set(re.split(r"[+ ]", said[1].strip())) - PLANNED_RECOMPUTATION if said else set()
    if others and row.checkpointing == "selective":
        raise ValueError(
            f"recomputation of {', '.join(sorted(others))} cannot be planned: --checkpointing "
            "selective recomputes core attention alone"
        )
    if _LATENT in notes and (row.engine or "").startswith("megatron"):
        raise ValueError("Megatron's multi-latent attention cannot be planned")
