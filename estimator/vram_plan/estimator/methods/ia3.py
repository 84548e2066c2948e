"""(IA)³ (arXiv:2205.05638) as PEFT 0.21.2 runs it: one learned factor per channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods import targets
from vram_plan.estimator.methods.lora import BITSANDBYTES, FOUR_BIT
from vram_plan.estimator.methods.whole import Frozen
from vram_plan.estimator.ops.adapters import clone, weight_copy
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, mul
from vram_plan.estimator.quantization import packs

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Tensor


@dataclass(frozen=True, slots=True)
class Ia3(Frozen):
    """Keys and values are scaled, and the input of the last feed-forward projection.

    Which modules those are depends on the architecture: `targets.IA3`.
    """

    def check(self, config: TrainConfig) -> None:
        """PEFT has a table of the modules; it asks for names where a model is not in it."""
        kind = config.model.model_type
        if kind not in targets.IA3:
            raise ValueError(
                f"--method ia3: PEFT has no default modules for {kind!r} models; "
                "choose --method lora"
            )
        self._check_types(config)

    @staticmethod
    def _check_types(config: TrainConfig) -> None:
        """Beside 16-bit queries, keys or values in fp32 are refused by every attention kernel.

        ``peft/tuners/ia3/bnb.py`` casts a layer's input to fp32 and its result back to that. Where
        one projection makes all three they agree, but BLOOM adds their product to a bias in the
        type of its activations (``alibi.baddbmm``, transformers 5.23.0 ``modeling_bloom.py``).
        """
        names, _ = targets.IA3[config.model.model_type]
        fused = names.split(",")[0] in {"query_key_value", "c_attn"}
        agrees = fused and config.model.model_type != "bloom"
        gathers_low = config.engine in {"fsdp1", "fsdp2", "deepspeed"}  # norms and tables too
        prepared = config.kbit_preparation and not gathers_low
        wide = config.autocast or prepared or config.precision == "fp32"
        if config.quantization in BITSANDBYTES and not (agrees or wide):
            way_out = "choose --quantization none" if gathers_low else "leave --kbit-preparation on"
            raise ValueError(
                f"--method ia3 with --quantization {config.quantization} and {config.precision} "
                "activations: PEFT's keys or values become fp32 and what they meet does not; "
                f"{way_out}"
            )

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``base(x · l)`` in the feed-forward part, ``base(x) · l`` elsewhere."""
        names, feedforward = targets.IA3[f.spec.model_type]
        if not targets.matches(name, names):
            return base(x)
        inner = targets.is_feedforward(name, feedforward)
        # A path beside the target, which PEFT puts within a layer of its own.
        factor = f.added_param(f"{name}_ia3.ia3_l", (1, shape[0]) if inner else (shape[1], 1))
        weights = weight_copy(f.t, factor)
        if f.how.quantization in BITSANDBYTES and packs(f.spec, f.how, f.layer, f"{name}.weight"):
            return self._beside_packed(f, x, weights, base, inner=inner)
        if not inner:
            result = base(x)
            return cast(f.t, mul(f.t, result, weights), result.itemsize)
        itemsize = x.itemsize
        return base(cast(f.t, mul(f.t, cast(f.t, x, factor.itemsize), weights), itemsize))

    @staticmethod
    def _beside_packed(
        f: Forward, x: Tensor, weights: Tensor, base: Callable[[Tensor], Tensor], *, inner: bool
    ) -> Tensor:
        """``peft/tuners/ia3/bnb.py``: in fp32 unless autocast is on; 4-bit results are cloned."""
        converts = not f.how.autocast
        if converts:
            x = cast(f.t, x, FP32_BYTES)
        result = base(mul(f.t, x, weights) if inner else x)
        itemsize = result.itemsize
        if not inner:
            result = mul(f.t, result, weights)
        if f.how.quantization in FOUR_BIT:
            result = clone(f.t, result)
        return cast(f.t, result, itemsize) if converts else result
