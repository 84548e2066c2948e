"""Low-rank pairs beside linear layers (LoRA, arXiv:2106.09685) as PEFT 0.21.2 runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.whole import Frozen
from vram_plan.estimator.ops.elementwise import add, cast, scale

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Tensor

ATTENTION_PARTS = ("attn", "attention")


@dataclass(frozen=True, slots=True)
class Lora(Frozen):
    """LoRA on the linear layers that ``targets`` names.

    Attributes:
        rank: columns of A and rows of B.
        targets: ``all-linear``, ``attention`` or module names separated by commas.
    """

    rank: int
    targets: str

    def matches(self, name: str) -> bool:
        """Whether the linear layer ``name`` gets a pair (PEFT ``target_modules`` suffix match)."""
        if self.targets == "all-linear":
            return True
        if self.targets == "attention":
            return any(part in name for part in ATTENTION_PARTS)
        last = name.rpartition(".")[2]
        return any(target in (last, name) for target in self.targets.split(","))

    def linear(
        self, f: Forward, name: str, x: Tensor, shape: tuple[int, int], base: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``result + B(A(x.to(A.dtype))) · scaling``, cast back to the result's dtype.

        ``peft/tuners/lora/layer.py`` ``Linear.forward``.
        """
        result = base(x)
        if not self.matches(name):
            return result
        itemsize = result.itemsize
        x = cast(f.t, x, f.how.adapter_bytes)
        result = add(f.t, result, self.update(f, name, x, shape))
        return cast(f.t, result, itemsize)

    def update(self, f: Forward, name: str, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """``B(A(x)) · scaling``."""
        inputs, outputs = shape
        down = f.added_linear(f"{name}.lora_A", x, (inputs, self.rank))
        return scale(f.t, f.added_linear(f"{name}.lora_B", down, (self.rank, outputs)))
