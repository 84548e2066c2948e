"""Methods that combine others: the mix-and-match adapter and UniPELT.

Both are those of the ``adapters`` library (``MAMConfig`` and ``UniPELTConfig`` of
adapter-hub/adapters ``src/adapters/configuration/adapter_config.py``), with the casts of PEFT's
tuners: inputs to the adapter's dtype, results back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods import targets
from vram_plan.estimator.methods.bottleneck import bottleneck, joined_residual, module_name
from vram_plan.estimator.methods.lora import FOUR_BIT, quantized_as
from vram_plan.estimator.methods.prefix import Prefix, prefix_problem
from vram_plan.estimator.ops.activations import activation
from vram_plan.estimator.ops.adapters import clone
from vram_plan.estimator.ops.elementwise import (
    add,
    cast,
    mul,
    narrow,
    reduce_last,
    scale,
)

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Tensor

_ENTERED = "attention.entered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mam(Prefix):
    """Prefixes in attention and a scaled adapter parallel to the feed-forward part.

    arXiv:2110.04366, ``MAMConfig``: the prefix comes out of an encoder (``projection``), the
    adapter reads what the feed-forward part reads: ``out + 4 · up(relu(down(entered)))``.

    Attributes:
        size: width of the adapter's bottleneck.
    """

    size: int

    def check(self, config: TrainConfig) -> None:
        """Blocks with one attention each, whose prefixes are defined."""
        model, method = config.model, config.method
        reason = prefix_problem(model)
        if model.is_encoder_decoder:
            reason = "its encoder and cross-attention would need prefixes of their own"
        if reason:
            raise ValueError(
                f"--method {method}: {model.name}: {reason}; choose --method lora or "
                "adapter-pfeiffer"
            )

    def input_width(self, f: Forward, width: int) -> int:
        """The library looks up vectors as wide as the blocks (``PrefixTuning.wte``)."""
        return f.spec.hidden_size

    @property
    def parallel(self) -> bool:
        """The adapter reads what the feed-forward part reads."""
        return True

    def sublayer(self, f: Forward, where: str, x: Tensor, entered: Tensor) -> Tensor:
        """Add the parallel adapter to the feed-forward part."""
        if where != "mlp":
            return x
        wide = cast(f.t, entered, f.how.adapter_bytes)
        up = bottleneck(f, module_name(f, where), wide, self.size, "relu")
        del wide
        return cast(f.t, add(f.t, up, x), x.itemsize)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniPelt(Mam):
    """LoRA on queries and values, prefixes, and Pfeiffer's adapter, each behind a gate.

    arXiv:2110.07577, ``UniPELTConfig``: a gate is the mean over a sequence of
    ``sigmoid(linear(x))``, with one output (two for a prefix: keys and values). Which layers
    project queries and values is PEFT's table (`targets.QUERY_VALUE`); where q, k and v are one
    layer, that layer gets one pair and one gate.

    Attributes:
        rank: rank of the LoRA pairs.
    """

    rank: int

    def check(self, config: TrainConfig) -> None:
        """Also: the query and value layers are known."""
        Mam.check(self, config)
        kind = config.model.model_type
        if kind not in targets.QUERY_VALUE:
            raise ValueError(
                f"--method {config.method}: the query and value layers of {kind!r} models are not "
                "in PEFT's table; choose --method mam"
            )

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``base(x) + B(A(x)) · gate(x)`` where queries and values are projected."""
        f.prefix = name
        result = base(x)
        if not targets.matches(name, targets.QUERY_VALUE[f.spec.model_type]):
            return result
        f.cache[_ENTERED] = x
        itemsize = result.itemsize
        if quantized_as(f, name) in FOUR_BIT:
            result = clone(f.t, result)
        x = cast(f.t, x, f.how.adapter_bytes)
        down = f.added_linear(f"{name}.lora_A", x, (shape[0], self.rank))
        up = f.added_linear(f"{name}.lora_B", down, (self.rank, shape[1]))
        del down
        up = scale(f.t, mul(f.t, up, gate(f, f"{name}.gate", x, shape[0])))
        return cast(f.t, add(f.t, result, up), itemsize)

    def keys_values(self, f: Forward, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Prefixes, multiplied by their gates."""
        result = Prefix.keys_values(self, f, k, v)
        f.cache.pop(_ENTERED, None)
        return result

    def prefix(self, f: Forward) -> tuple[Tensor, Tensor]:
        """The layer's keys and values times one gate each."""
        keys, values = Prefix.prefix(self, f)
        entered = cast(f.t, f.cache.pop(_ENTERED), f.how.adapter_bytes)
        both = gate(f, "prefix_gates", entered, f.spec.hidden_size, outputs=2)
        first, second = (narrow(f.t, both, both.numel // 2) for _ in range(2))
        return mul(f.t, keys, first), mul(f.t, values, second)

    def sublayer(self, f: Forward, where: str, x: Tensor, entered: Tensor) -> Tensor:
        """Add Pfeiffer's adapter, gated, to the feed-forward part."""
        if where != "mlp":
            return x
        name, itemsize = module_name(f, where), x.itemsize
        wide = cast(f.t, joined_residual(f, x), f.how.adapter_bytes)
        up = bottleneck(f, name, wide, self.size, "relu")
        up = mul(f.t, up, gate(f, f"{name}.gate", wide, f.spec.hidden_size))
        del wide
        return cast(f.t, add(f.t, up, x), itemsize)


def gate(f: Forward, name: str, x: Tensor, width: int, *, outputs: int = 1) -> Tensor:
    """``mean(sigmoid(linear(x)), dim=1)``: ``outputs`` numbers for every sequence."""
    scores = activation(f.t, f.added_linear(name, x, (width, outputs), bias=True), "sigmoid")
    return reduce_last(f.t, scores, f.seq)
