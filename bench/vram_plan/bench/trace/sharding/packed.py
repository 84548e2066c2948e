"""4-bit weights under FSDP2: codes kept as words of the compute type, so that they can be sharded.

FSDP2 casts what it gathers to the compute type and bitsandbytes' codes must not be cast, so users
name that type as ``bnb_4bit_quant_storage``. The scales hang on the layer and stay whole
(bitsandbytes 0.50.2 nn/modules.py, ``fix_4bit_weight_quant_state_from_module``).
"""

from typing import Any

import torch

__all__ = ["as_words", "scales_follow"]


def as_words(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Hold every layer's codes as words of a type.

    Args:
        model: with bitsandbytes' 4-bit layers, or none.
        dtype: the type that FSDP2 gathers in.
    """
    for module in model.modules():
        layer: Any = module
        codes: Any = module._parameters.get("weight")
        if type(module).__name__ != "Linear4bit" or codes is None:
            continue
        words = torch.empty((codes.numel() // dtype.itemsize, 1), dtype=dtype)
        layer.quant_state, layer.quant_storage = codes.quant_state, dtype
        layer.weight = torch.nn.Parameter(words, requires_grad=False)


def scales_follow() -> tuple[Any, str, Any]:
    """A patch: a gathered weight gets its layer's scales, without a subclass around a fake."""
    from bitsandbytes.nn import modules

    def attach(layer: Any) -> None:
        layer.weight.quant_state = layer.quant_state

    return modules, "fix_4bit_weight_quant_state_from_module", attach
