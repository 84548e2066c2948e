"""A mixture of low-rank experts beside linear layers (LoRAMoE, arXiv:2312.09979)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.lora import FOUR_BIT, LinearPairs, quantized_as
from vram_plan.estimator.ops.adapters import clone
from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, mul, narrow, scale

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Tensor

EXPERTS = 8
"""``lora_nums`` of the authors' ``run_loramoe.sh`` (github.com/Ablustrund/LoRAMoE)."""


@dataclass(frozen=True, slots=True)
class MoeLora(LinearPairs):
    """A router and `EXPERTS` pairs of rank ``rank`` beside every target; every expert runs.

    ``Linear.forward`` of the authors' ``peft/tuners/lora.py``: the router's softmax is fp32, cast
    to the result's dtype; each expert's output is multiplied by its column, scaled and added in
    turn. The input is cast to the adapters' dtype and the result back, as PEFT does. Left out:
    the balancing loss, which needs task labels (``blc_weight`` is 0 in the script).
    """

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``result + Σ w_i · B_i(A_i(x)) · scaling``."""
        result = base(x)
        if not self.matches(f, name):
            return result
        itemsize = result.itemsize
        if quantized_as(f, name) in FOUR_BIT:
            result = clone(f.t, result)
        x = cast(f.t, x, f.how.adapter_bytes)
        inputs, outputs = shape
        logits = f.added_linear(f"{name}.lora_route", x, (inputs, EXPERTS))
        routes = softmax(f.t, logits, FP32_BYTES, half_to_float=f.how.half)
        del logits
        routes = cast(f.t, routes, itemsize)
        for i in range(EXPERTS):
            share = narrow(f.t, routes, routes.numel // EXPERTS)
            down = f.added_linear(f"{name}.lora_A{i}", x, (inputs, self.rank))
            up = f.added_linear(f"{name}.lora_B{i}", down, (self.rank, outputs))
            del down
            update = scale(f.t, mul(f.t, share, up))
            del share, up
            result = add(f.t, result, update)
            del update
        return cast(f.t, result, itemsize)
