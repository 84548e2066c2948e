"""Which linear layers of a transformers model are done in 8 bits, and by which library.

Both conversions take layers whose sides are multiples of 16. Accelerate's and torchtune's of
torchao leave the head out (accelerate 1.15.0 ``utils/ao.py`` ``convert_model_to_fp8_ao``: the first
and the last layer; the first keeps the same bytes either way); Accelerate's of Transformer Engine
takes it too (``utils/transformer_engine.py`` ``convert_model``). Stacked experts and routers are no
``torch.nn.Linear``.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.fp8 import Eight, casting
from vram_plan.estimator.ops.elementwise import cast
from vram_plan.estimator.ops.linear import LOW_BYTES
from vram_plan.estimator.tape import Param, Tape, Tensor

__all__ = ["casts", "eight_product", "gathered_itemsize"]

_MULTIPLE = 16
_TABLES = ("embed_tokens", "lm_head")


def casts(eight: Eight, weight: Param) -> bool:
    """Whether the product with a weight is done in 8 bits."""
    if weight.added or len(weight.shape) != 2:
        return False
    if not eight.engine and any(name in weight.name for name in _TABLES):
        return False
    return all(side % _MULTIPLE == 0 for side in weight.shape)


def gathered_itemsize(config: TrainConfig, weight: Param) -> int:
    """Bytes per element of what FSDP gathers of a weight.

    ``enable_fsdp_float8_all_gather``, which torchtune, torchtitan's recipes and Accelerate turn on
    for scales by tensor: shards are cast before they travel (pytorch/ao @ 36027d82
    ``torchao/float8/fsdp_utils.py`` ``fsdp_pre_all_gather``).
    """
    eight = casting(config)
    gathered = eight is not None and eight.gathered and casts(eight, weight)
    return 1 if gathered else weight.itemsize


def eight_product(
    t: Tape, eight: Eight, x: Tensor, weight: Param, offset: Param | None, *, compiled: bool
) -> Tensor:
    """``x @ W.T + b`` in 8 bits; what is wider is cast to 16 bits first, as autocast does."""
    from vram_plan.estimator.ops.float8 import engine_linear, float8_linear  # few ask for it

    x = cast(t, x, LOW_BYTES)
    if eight.engine:
        return engine_linear(t, x, weight, offset, eight)
    return float8_linear(t, x, weight, offset, eight, compiled=compiled)
