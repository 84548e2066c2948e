"""Low-rank pairs beside linear layers (LoRA, arXiv:2106.09685) as PEFT 0.21.2 runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.experts import (
    Factors,
    factors_of,
    is_translated,
    pair_params,
    paired,
    targeted,
)
from vram_plan.estimator.methods.targets import ATTENTION, matches
from vram_plan.estimator.methods.whole import Frozen
from vram_plan.estimator.ops.adapters import clone
from vram_plan.estimator.ops.elementwise import add, cast, scale
from vram_plan.estimator.ops.fused_lora import Pair, fused_lora

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Param, Tensor

FOUR_BIT = frozenset({"nf4", "fp4"})
BITSANDBYTES = FOUR_BIT | {"int8"}


def quantized_as(f: Forward, name: str) -> str:
    """How the base weight of linear layer ``name`` is held; empty when it is not quantized."""
    weight = f.params.get(f"{name}.weight")
    return f.how.quantization if weight is not None and weight.packed else ""


@dataclass(frozen=True, slots=True)
class Lora(Frozen):
    """LoRA on the linear layers that ``targets`` names; rsLoRA differs in a factor alone.

    Attributes:
        rank: columns of A and rows of B.
        targets: ``all-linear``, ``attention`` or module names separated by commas.
    """

    rank: int
    targets: str

    def check(self, config: TrainConfig) -> None:
        """Fused expert weights are targeted as a whole."""
        targeted(config.model.model_type, self.targets)

    def matches(self, f: Forward, name: str) -> bool:
        """Whether the linear layer ``name`` gets a pair."""
        if not matches(name, self.targets):
            return False
        return self.targets == ATTENTION or not is_translated(f.spec.model_type, name)

    def weight(self, f: Forward, name: str, weight: Param, factors: Factors | None = None) -> Param:
        """Pairs inside the stacked weights of experts and the router's, where PEFT targets them."""
        if self.is_paired(f, name):
            made = factors or factors_of(f, name, (weight.shape, weight.itemsize), self.rank)
            return paired(f, weight, made)
        return weight

    def wraps(self, f: Forward, stacks: Mapping[str, tuple[int, ...]]) -> Mapping[str, Factors]:
        """A wrapper for each weight around the one of the weight before it.

        Each makes its factors as it is entered (``peft/tuners/lora/layer.py`` ``ParamWrapper``
        ``_activate_lora``). ``register_parametrization`` tries the sum (torch 2.13.0): the
        outermost's is of note, as what is run next begins within the inner ones.
        """
        mine = {name: shape for name, shape in stacks.items() if self.is_paired(f, name)}
        itemsize = f.how.held_bytes("expert")
        for shape in [*mine.values()][-1:]:
            f.t.new(prod(shape), itemsize)
        for name, shape in mine.items():
            pair_params(f, name, shape, self.rank)
        return {
            name: factors_of(f, name, (shape, itemsize), self.rank)
            for name, shape in reversed(mine.items())
        }

    def is_paired(self, f: Forward, name: str) -> bool:
        """Whether a stacked weight, or a router's, gets a pair."""
        ends = targeted(f.spec.model_type, self.targets)
        return any(f".{name}".endswith(f".{end}") for end in ends)

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``result + B(A(x.to(A.dtype))) · scaling``, cast back to the result's dtype.

        ``peft/tuners/lora/layer.py`` ``Linear.forward`` (GPTQ's is the same).
        """
        if "lora" in f.how.fused and self.matches(f, name):
            return self.fused(f, name, x, shape)
        result = base(x)
        if not self.matches(f, name):
            return result
        kind = quantized_as(f, name)
        if kind in BITSANDBYTES:
            return self.beside_packed(f, name, x, shape, result.moved(), kind)
        itemsize = result.itemsize
        x = f.dropout(cast(f.t, x, f.how.adapter_bytes), f.how.lora_dropout)
        result = add(f.t, result, self.update(f, name, x, shape))
        return cast(f.t, result, itemsize)

    def beside_packed(
        self, f: Forward, name: str, x: Tensor, shape: tuple[int, int], result: Tensor, kind: str
    ) -> Tensor:
        """The same beside a bitsandbytes layer: the update is cast before it is added.

        ``peft/tuners/lora/bnb.py``: 4-bit results are cloned first; under autocast nothing is
        cast.
        """
        if kind in FOUR_BIT:
            result = clone(f.t, result)
        converts = not f.how.autocast
        if converts:
            x = cast(f.t, x, f.how.adapter_bytes)
        x = f.dropout(x, f.how.lora_dropout)
        output = self.update(f, name, x, shape)
        if converts:
            output = cast(f.t, output, result.itemsize)
        return add(f.t, result, output)

    def fused(self, f: Forward, name: str, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """The quantized weight and its pair in one autograd function."""
        inputs, outputs = shape
        weight = f.param(f"{name}.weight", (outputs, inputs), "linear")
        down = f.added_param(f"{name}.lora_A.weight", (self.rank, inputs))
        up = f.added_param(f"{name}.lora_B.weight", (outputs, self.rank))
        pair = Pair(down=down, up=up, dropout=f.how.lora_dropout)
        return fused_lora(f.t, x, weight, pair, outputs)

    def update(self, f: Forward, name: str, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """``B(A(x)) · scaling``."""
        inputs, outputs = shape
        down = f.added_linear(f"{name}.lora_A", x, (inputs, self.rank))
        return scale(f.t, f.added_linear(f"{name}.lora_B", down, (self.rank, outputs)))


@dataclass(frozen=True, slots=True)
class LinearPairs(Lora):
    """Relatives of LoRA that know linear layers alone, no stacked experts."""

    def check(self, config: TrainConfig) -> None:
        """Every name is a linear layer's."""

    def matches(self, f: Forward, name: str) -> bool:
        """Names are not translated to stacked experts (PEFT does that for LoRA alone)."""
        return matches(name, self.targets)

    def is_paired(self, f: Forward, name: str) -> bool:
        """No pairs in stacked weights."""
        return False
