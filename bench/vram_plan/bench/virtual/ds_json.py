"""DeepSpeed's JSON for a virtual rank: that of the configuration, without what needs more ranks."""

from __future__ import annotations

from typing import Any

from vram_plan.estimator import ds_json
from vram_plan.estimator.config import TrainConfig

__all__ = ["deepspeed_json"]


def deepspeed_json(config: TrainConfig) -> dict[str, Any]:
    """What the user would write for a configuration, as the stand-ins here need it."""
    found = ds_json.deepspeed_json(config)
    # Stand-ins for DeepSpeed's own compiled optimizers are none of its own.
    found["zero_force_ds_cpu_optimizer"] = False
    if config.precision == "fp16":
        # Pinned, since nothing computes the overflow that a dynamic scale would wait for.
        found["fp16"]["loss_scale"] = 1.0
    host = {"device": "cpu", "pin_memory": config.zero_sizes.pin_memory}
    section = found["zero_optimization"]
    section |= {key: host for key in ("offload_optimizer", "offload_param") if key in section}
    return found
