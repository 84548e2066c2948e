"""Seconds of clipping and of the optimizer step: bytes that pass through the device's memory.

Passes are counted from the libraries' code, in elements read and written per parameter; each
formula names its file. All of them are far from the compute peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.profiles.efficiency import Curves
    from vram_plan.profiles.gpus import GpuSpec

__all__ = ["moved_bytes", "optimizer_seconds", "updated_itemsize"]

_FP32 = 4
_MASTER_ENGINES = frozenset(
    {"deepspeed", "megatron", "megatron-deepspeed", "nanotron", "internevo", "colossalai"}
)
"""Engines that hold fp32 master weights beside 16-bit ones."""


@dataclass(frozen=True, slots=True)
class _Passes:
    """Elements of the weights' dtype, and fp32 elements or bytes, that pass per parameter."""

    elements: float
    nbytes: float = 0.0


_PASSES = {
    # torch 2.13.0 torch/optim/adam.py _multi_tensor_adam: decay 2, lerp 3, mul 2, addcmul 3,
    # sqrt 2, div 2, add 2, addcdiv 4 elements read or written
    "adamw": _Passes(20),
    "adamw-for-loop": _Passes(20),
    # _fused_adam: weight, gradient and moments read, weight and moments written
    "adamw-fused": _Passes(7),
    # bitsandbytes 0.50.2 csrc/kernels.cu kOptimizerStatic8bit2StateBlockwise
    "adamw-8bit": _Passes(3, 4.0),
    "paged-adamw-8bit": _Passes(3, 4.0),
    "paged-adamw": _Passes(3, 16.0),
    # transformers 5.23.0 optimization.py Adafactor.step: fp32 copies, square, rows and columns,
    # update, its norm and scale
    "adafactor": _Passes(4, 48.0),
    "lion": _Passes(3, 8.0),
    "sgd": _Passes(3),
    "sgd-momentum": _Passes(6),
    "rmsprop": _Passes(14),
    "muon": _Passes(12),
    "one-bit-adam": _Passes(7),
}
_KERNELS = {"adamw-for-loop": 14, "adafactor": 20, "muon": 30, "adamw-8bit": 2, "lion": 2}
"""Kernels for every tensor, where an optimizer goes through them one by one: the operators in the
same functions (``_single_tensor_adam``, ``Adafactor.step``, five Newton-Schulz iterations)."""
_CLIPPING = 3
"""torch 2.13.0 torch/nn/utils/clip_grad.py: the norm reads, the scaling reads and writes."""
_MIXED = 24.0
"""Bytes beside the step on fp32 master weights: gradients read in 16 bits and written in fp32
(6), read for the norm (4), read and written unscaled (8), masters copied to 16 bits (6):
DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py step; Megatron-LM core/optimizer/optimizer.py."""


def moved_bytes(config: TrainConfig) -> float:
    """Bytes that the optimizer step moves for each trainable parameter of this rank."""
    passes = _PASSES.get(config.optimizer, _PASSES["adamw"])
    if config.engine in _MASTER_ENGINES:
        fused = _PASSES["adamw-fused"] if config.optimizer == "adamw" else passes
        return fused.elements * _FP32 + fused.nbytes + _MIXED
    return (passes.elements + _CLIPPING) * updated_itemsize(config) + passes.nbytes


def updated_itemsize(config: TrainConfig) -> int:
    """Bytes of an element that the optimizer updates where it holds no fp32 masters."""
    if config.method != "full" and config.is_lora:
        return {"fp32": _FP32}.get(config.adapter_dtype, 2)
    return config.weights_bytes


def optimizer_seconds(
    config: TrainConfig,
    parameters: float,
    gpu: GpuSpec,
    curves: Curves,
    *,
    tensors: float = 0.0,
) -> float:
    """Seconds of clipping and stepping this rank's share: the slower of device and host.

    ``parameters`` that learn are spread over ``tensors``. Zero where the optimizer runs on the
    host: that is a part of its own.
    """
    if config.offload.startswith("optimizer"):
        return 0.0
    rate = gpu.memory_bandwidth_bytes_per_s * curves.optimizer
    host = tensors * _KERNELS.get(config.optimizer, 0) * curves.launch_seconds
    return max(parameters * moved_bytes(config) / rate, host)
