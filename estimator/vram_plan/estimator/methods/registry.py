"""Which method object an option stands for."""

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.methods.base import Method
from vram_plan.estimator.methods.whole import BitFit, Freeze, Full


def make_method(config: TrainConfig) -> Method:
    """The method of a configuration."""
    name = config.method
    if name == "full":
        return Full()
    if name == "freeze":
        return Freeze(config.freeze_layers)
    if name == "bitfit":
        return BitFit()
    from vram_plan.estimator.methods.lora import Lora

    return Lora(config.lora_rank, config.lora_targets)
