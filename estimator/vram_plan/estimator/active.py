"""How many parameters one token passes in a model with experts."""

from __future__ import annotations

from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Shape, build_chain
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.model import ModelSpec

ROUTED = "experts"
"""The module that holds the routed experts, in every class of transformers 5.23.0."""


def active_parameters(spec: ModelSpec) -> int:
    """Parameters that take part for one token, embedding and head included.

    All but those of the routed experts that the router leaves out: ``k / E`` of the experts'
    weights count. Models without experts: all parameters (arXiv:2401.04088, section 2, calls this
    the active parameter count).
    """
    links = build_chain(spec, compose(spec), Treatment(), Shape(batch=1, seq=1))
    inventory = take_inventory(links)
    total = inventory.numel()
    routed = sum(w.numel * w.count for w in inventory.weights if is_routed(w.name))
    if not routed:
        return total
    return total - routed + routed * spec.num_experts_per_tok // spec.num_experts


def is_routed(name: str) -> bool:
    """Whether a weight belongs to the routed experts (not to the shared ones)."""
    return ROUTED in name.split(".")
