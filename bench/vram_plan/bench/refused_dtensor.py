"""What real jobs fail at, too: optimizers and methods over weights that are DTensors (FSDP2)."""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.optimizers import is_hidden
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.sharding.fsdp_states import shard_ranks

__all__ = ["refuse_sharded"]

_WITHOUT_DTENSOR = frozenset(
    {
        "adafactor",
        "adamw-8bit",
        "paged-adamw",
        "paged-adamw-8bit",
        "lion",
        "lion-8bit",
    }
)
"""Optimizers that fail on FSDP2's sharded weights: bitsandbytes 0.50.2 has no sharding strategy,
transformers 5.23.0's Adafactor mixes its plain tensors with DTensor's."""


def refuse_sharded(config: TrainConfig) -> None:
    """Raise for what does not take weights split by rows.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    if config.engine != "fsdp2":
        return
    if config.optimizer in _WITHOUT_DTENSOR:
        raise ValueError(
            f"dry-run --optimizer {config.optimizer} with --engine fsdp2: it does not take "
            "sharded weights; choose adamw"
        )
    if config.method == "adalora":
        raise ValueError(
            "dry-run --method adalora with --engine fsdp2: PEFT's regularizer does not take "
            "sharded weights; choose --method lora"
        )
    if config.optimizer == "muon":
        _refuse_muon(config)


def _refuse_muon(config: TrainConfig) -> None:
    """Muon's products of a matrix that has fewer rows than there are ranks are whole.

    DTensor splits no dimension that is shorter than the mesh in a product, and does not add a
    whole update in place to a split weight (torch 2.13.0 ``torch/distributed/tensor/_ops/utils.py``
    ``is_tensor_shardable``, ``expand_to_full_mesh_op_strategy``).
    """
    ranks = shard_ranks(config)
    weights = run_passes(config, keeps_gradients=True).inventory.select(trainable=True)
    short = next((w for w in weights if is_hidden(w) and w.shape[0] < ranks), None)
    if short is not None:
        raise ValueError(
            f"dry-run --optimizer muon with --engine fsdp2: {short.name} has {short.shape[0]} "
            f"rows for {ranks} ranks, and DTensor does not add Muon's update to it; choose adamw"
        )
