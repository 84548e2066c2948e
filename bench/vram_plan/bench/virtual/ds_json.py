"""The configuration as DeepSpeed's JSON says it (deepspeed/runtime/config.py, 0.19.8)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vram_plan.estimator.config import TrainConfig

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
_WIDE = 4


def deepspeed_json(config: TrainConfig) -> dict[str, Any]:
    """What the user would write for a configuration."""
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.grad_accum,
        "gradient_clipping": 1.0,
        # Stand-ins for DeepSpeed's own compiled optimizers are none of its own.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(config),
    }
    if config.precision == "bf16":
        found["bf16"] = {"enabled": True}
    if config.precision == "fp16":
        # Pinned, since nothing computes the overflow that a dynamic scale would wait for.
        found["fp16"] = {"enabled": True, "loss_scale": 1.0}
    width = config.zero_sizes.grad_accum_bytes
    if width:
        kind = "fp32" if width == _WIDE else config.precision
        found["data_types"] = {"grad_accum_dtype": kind}
    return found


def _zero(config: TrainConfig) -> dict[str, Any]:
    sizes = asdict(config.zero_sizes)
    names = _SIZES + (_STAGE3_SIZES if config.zero == 3 else ())
    section: dict[str, Any] = {"stage": config.zero} | {name: sizes[name] for name in names}
    host = {"device": "cpu", "pin_memory": config.zero_sizes.pin_memory}
    if config.offload in {"optimizer", "optimizer+params"}:
        section["offload_optimizer"] = host
    if config.offload == "optimizer+params":
        section["offload_param"] = host
    return section
