"""The DeepSpeed JSON that says a configuration: the other direction of ``ds_config``.

Names: DeepSpeed 0.19.8 ``deepspeed/runtime/config.py``, ``zero/config.py`` and
``zero/offload_config.py``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vram_plan.estimator.config import TrainConfig, ZeroSizes

__all__ = ["deepspeed_json"]

_SIZES = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "overlap_comm",
    "contiguous_gradients",
    "sub_group_size",
)
_STAGE3_SIZES = (
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)
_SWAPPERS = {
    "buffer_count": "param_buffer_count",
    "buffer_size": "param_buffer_size",
    "max_in_cpu": "max_in_cpu",
}
"""Keys of ``offload_param`` that are written where they are not DeepSpeed's own."""
_WIDE = 4
NVME_PATH = "/local_nvme"
"""Where DeepSpeed swaps to, for a person to change."""


def deepspeed_json(config: TrainConfig) -> dict[str, Any]:
    """What a person would write for a configuration."""
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.grad_accum,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero(config),
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
    }
    width = config.zero_sizes.grad_accum_bytes
    if width:
        kind = "fp32" if width == _WIDE else config.precision
        found["data_types"] = {"grad_accum_dtype": kind}
    return found


def _zero(config: TrainConfig) -> dict[str, Any]:
    sizes = asdict(config.zero_sizes)
    names = _SIZES + (_STAGE3_SIZES if config.zero == 3 else ())
    section: dict[str, Any] = {"stage": config.zero} | {name: sizes[name] for name in names}
    if config.offload in {"optimizer", "optimizer+params"}:
        section["offload_optimizer"] = _states(config)
    if config.offload == "optimizer+params":
        section["offload_param"] = _weights(config)
    return section


def _device(config: TrainConfig, device: str) -> dict[str, Any]:
    found = {"device": device, "pin_memory": config.zero_sizes.pin_memory}
    return found | ({"nvme_path": NVME_PATH} if device == "nvme" else {})


def _states(config: TrainConfig) -> dict[str, Any]:
    found = _device(config, config.offload_device)
    count = config.zero_sizes.optimizer_buffer_count
    if count != ZeroSizes().optimizer_buffer_count:
        found["buffer_count"] = count
    return found


def _weights(config: TrainConfig) -> dict[str, Any]:
    sizes, usual = config.zero_sizes, ZeroSizes()
    found = _device(config, sizes.offload_param_device or config.offload_device)
    for key, name in _SWAPPERS.items():
        if getattr(sizes, name) != getattr(usual, name):
            found[key] = getattr(sizes, name)
    return found
