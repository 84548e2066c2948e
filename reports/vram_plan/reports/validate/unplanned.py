"""What a row says of its run that no option of a plan stands for."""

from __future__ import annotations

import re

from vram_plan.profiles.measured_row import Row

__all__ = ["refuse_unplanned", "refuse_unstated_memory"]

PLANNED_RECOMPUTATION = frozenset({"core_attn"})
"""What ``--checkpointing selective`` recomputes with Megatron's modules: ``--recompute-modules``'
default (NVIDIA/Megatron-LM ``megatron/core/transformer/transformer_config.py``)."""
_RECOMPUTED = re.compile(r"recomputed modules: ([a-z_+ ]+)")
_LATENT = "multi-latent attention"
COMPILED_LOSSES = frozenset({"e7c0cae"})
"""Commits of torchtitan under which compiling means the loss too, whose logits are then never
written in fp32: pull request 755 turned that off in December 2024, and 1033 of April 2025 made the
loss's builder compile it again (``torchtitan/components/loss.py`` ``build_cross_entropy_loss``);
readings with this commit are of June 2025."""
_TITAN = re.compile(r"torchtitan=(\w+)")


_UNSTATED = re.compile(
    "recompute not printed|recompute, offload and kernels are in the linked recipe"
)
"""How tables of speeds that leave recomputation out are noted."""


def refuse_unstated_memory(row: Row) -> None:
    """Refuse to plan the memory of a run whose table does not say what it recomputes.

    Raises:
        ValueError: saying so.
    """
    if row.checkpointing is None and _UNSTATED.search(row.notes or ""):
        raise ValueError("what is recomputed is not stated, and decides about memory")


def refuse_unplanned(row: Row) -> None:
    """Refuse a compiled loss, and parts that Megatron's composition does not have here.

    Raises:
        ValueError: naming them.
    """
    _refuse_compiled_loss(row)
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


def _refuse_compiled_loss(row: Row) -> None:
    """The plan compiles blocks, as torchtitan did first."""
    commit = _TITAN.search(row.stack or "")
    if row.compile and commit is not None and commit[1] in COMPILED_LOSSES:
        raise ValueError("a compiled loss cannot be planned")
