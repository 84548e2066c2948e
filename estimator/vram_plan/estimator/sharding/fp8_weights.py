"""What Transformer Engine keeps in 8 bits beside the weights, and to make them.

Megatron-LM says which micro-batch is the first of a step (``megatron/core/extensions/
transformer_engine.py`` @ d98e8a64, ``is_first_microbatch``), so every linear layer casts its weight
once a step into a workspace of its own, which stays (NVIDIA/TransformerEngine @ d0067d0d
``transformer_engine/pytorch/module/base.py`` ``quantize_weight``): 8 bits, and the transpose that
the input's gradient reads where products take their factors by rows. Weights that are held in 8
bits already (``--fp8-param-gather``) have the transpose alone beside them.

Delayed scaling has scales and histories of the largest values: three tensors going forward and two
going back for a product (``module/base.py`` ``set_meta_tensor``, ``quantization.py``
``DelayedScalingRecipeState``).
"""

from __future__ import annotations

from vram_plan.estimator.fp8 import casting
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.tape import ROUNDING_BYTES

__all__ = ["cached_copies", "engine_state"]

SOURCE = "TransformerEngine transformer_engine/pytorch/module/base.py quantize_weight"
_SCALES = 512
"""A scale is a tensor of its own."""
_FP32 = 4
_TENSORS = (3, 2)
"""Quantized tensors of a product: input, weight and output; gradients of output and input."""
_LONG_HISTORY = 1024
"""``amax_history_len`` of Transformer Engine and of Accelerate (``utils/dataclasses.py``)."""
_HISTORY = {"megatron": 1}
"""The same of engines that have another: ``--fp8-amax-history-len``."""


def cached_copies(rank: Rank) -> list[Entry]:
    """What stays beside the weights of linear layers; nothing for other precisions."""
    eight = casting(rank.config)
    if eight is None or not eight.cached:
        return []
    held = [w for w in rank.passes.inventory.weights if is_cast(w)]
    numel = sum(w.numel * w.count for w in held)
    total = sum(eight.weight_bytes(w.numel) * w.count for w in held)
    if eight.primary:
        total -= numel
    total += _SCALES * sum(w.count for w in held)
    each = total / numel if numel else 0.0
    layouts = "and their transposes" if eight.transposes else "which products read either way"
    return [
        Entry(
            component="buffers",
            name="weights in 8 bits",
            bytes=round(total * rank.passes.inventory.scale),
            formula=f"{numel:,} parameters of linear layers · {each:.3f} bytes: copies {layouts}",
            source=SOURCE,
        )
    ]


def engine_state(rank: Rank, workspace: int) -> list[Entry]:
    """Histories of delayed scaling, and Transformer Engine's own cuBLAS ``workspace`` (bytes)."""
    config = rank.config
    eight = casting(config)
    if eight is None or not eight.engine:
        return []
    found = []
    if workspace:
        found.append(
            Entry(
                component="buffers",
                name="cuBLAS workspace of Transformer Engine",
                bytes=workspace,
                formula=f"{workspace:,} bytes",
                source="TransformerEngine transformer_engine/pytorch/cpp_extensions/gemm.py",
            )
        )
    if config.fp8_recipe == "te-delayed":
        length = _HISTORY.get(config.engine, _LONG_HISTORY)
        products = sum(w.count for w in rank.passes.inventory.weights if is_cast(w))
        tensors = (_FP32 * tensors for each in _TENSORS for tensors in (each, each * length))
        one = sum(-(-nbytes // ROUNDING_BYTES) * ROUNDING_BYTES for nbytes in tensors)
        found.append(
            Entry(
                component="buffers",
                name="scales and histories of delayed scaling",
                bytes=products * one,
                formula=f"{products} products · {one:,} bytes, histories of {length}",
                source="TransformerEngine transformer_engine/pytorch/quantization.py",
            )
        )
    return found


def is_cast(weight: Weight) -> bool:
    """Whether it is the matrix of a linear layer in a block; head and tables stay in 16 bits."""
    return weight.layered and len(weight.shape) == 2
