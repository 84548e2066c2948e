"""Other kernels of fused attention, as shares of what FlashAttention-2 reaches.

The efficiency curves are those of FlashAttention-2, which is measured on an A100 (arXiv:2307.08691
section 4.1) as about twice as fast as the first FlashAttention in both directions, and as 1.3 to
1.5 times as fast forward and about twice as fast backward as the same algorithm in Triton
(Dao-AILab/flash-attention @ v1.0.9 ``flash_attn/flash_attn_triton.py``; llm-foundry's
``attn_impl: triton``). No row had a part in these figures.

Which kernel runs is the stack's to say: ``flash-attn=1.0.9``, ``flash-attn=triton``; PyTorch's own
kernel is the first one's before 2.2 (pytorch/pytorch release notes of 2.2.0). Transformer Engine,
which Megatron-LM runs where the stack names it or a NeMo container, takes cuDNN's on Hopper:
1.59 times as fast there and back at a head of 128 under a causal mask (NVIDIA/TransformerEngine @
0f60e599 ``docs/examples/attention/attention.ipynb``, 2,048 and 8,192 tokens on an H100).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from vram_plan.profiles.efficiency import Curves

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.profiles.gpus import GpuSpec
    from vram_plan.profiles.stack import Stack

__all__ = ["TRITON", "for_kernels"]

TRITON = "triton"
"""What ``flash-attn`` is in the stack where the kernels are those in Triton."""
_SECOND = (1.0, 1.0)
_FIRST = (1 / 2, 1 / 2)
_TRITON = (1 / 1.4, 1 / 2)
"""Shares of FlashAttention-2's rate, forward and backward; 1.4 is the middle of 1.3 and 1.5."""
_CUDNN = (1.59, 1.59)
_TRANSFORMER_ENGINE = ("transformer-engine", "nemo-container")


def for_kernels(curves: Curves, config: TrainConfig, gpu: GpuSpec) -> Curves:
    """The curves of a card with attention as fast as the kernels that the stack names."""
    if not config.stack.given:
        return curves
    hopper = gpu.architecture == "Hopper"
    if config.engine == "megatron" and hopper and config.attention == "flash":
        forward, backward = _in_megatron(config.stack)
    else:
        forward, backward = _shares(config.attention, config.stack)
    return _paced(curves, forward, backward)


@lru_cache(maxsize=256)
def _in_megatron(stack: Stack) -> tuple[float, float]:
    engine = any(stack.version(name) for name in _TRANSFORMER_ENGINE)
    return _CUDNN if engine else _shares("flash", stack)


@lru_cache(maxsize=256)
def _shares(attention: str, stack: Stack) -> tuple[float, float]:
    if attention == "sdpa" and not stack.since("torch", "2.2"):
        return _FIRST
    if attention != "flash":
        return _SECOND
    if stack.version("flash-attn") == TRITON:
        return _TRITON
    return _SECOND if stack.since("flash-attn", "2") else _FIRST


@lru_cache(maxsize=256)
def _paced(curves: Curves, forward: float, backward: float) -> Curves:
    if (forward, backward) == _SECOND:
        return curves
    return replace(
        curves,
        attention_forward=curves.attention_forward * forward,
        attention_backward=curves.attention_backward * backward,
    )
