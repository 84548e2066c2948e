"""Weight-decomposed low-rank adaptation (DoRA, arXiv:2402.09353) as PEFT 0.21.2 runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.choices import BITSANDBYTES
from vram_plan.estimator.methods.experts import Factors, targeted
from vram_plan.estimator.methods.lora import FOUR_BIT, Lora, quantized_as
from vram_plan.estimator.ops.adapters import clone, weight_quotient
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, mul, scale, shift
from vram_plan.estimator.tape import Tape, Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Param


@dataclass(frozen=True, slots=True)
class Dora(Lora):
    """LoRA whose sum with the weight is normalised and scaled by one magnitude per output.

    ``peft/tuners/lora/dora.py`` ``DoraLinearLayer.forward``. Every call writes out B·A from an
    identity matrix and a copy of the weight in the adapter's dtype; they live while it runs.
    """

    def check(self, config: TrainConfig) -> None:
        """PEFT decomposes no stacked expert weights."""
        if targeted(config.model.model_type, self.targets):
            raise ValueError(
                f"--method dora: PEFT cannot decompose the experts of {config.model.name}; choose "
                "--lora-targets attention or --method lora"
            )

    def weight(self, f: Forward, name: str, weight: Param, factors: Factors | None = None) -> Param:
        """No pairs in stacked weights."""
        return weight

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``result + (m − 1) · result + m · B(A(x)) · scaling`` with m = magnitude / norm."""
        result = base(x)
        if not self.matches(f, name):
            return result
        itemsize, kind = result.itemsize, quantized_as(f, name)
        if kind in FOUR_BIT:
            result = clone(f.t, result)
        if not (kind and f.how.autocast):
            x = cast(f.t, x, f.how.adapter_bytes)
        result = add(f.t, result, self.decomposed(f, name, x, shape, result))
        if kind in BITSANDBYTES and f.how.autocast:  # ``bnb.py`` casts nothing then
            return result
        return cast(f.t, result, itemsize)

    def decomposed(
        self, f: Forward, name: str, x: Tensor, shape: tuple[int, int], result: Tensor
    ) -> Tensor:
        """What is added to the result of the base layer."""
        written, norm = self._weight_norm(f, name, shape, x.itemsize)
        magnitude = f.added_param(f"{name}.lora_magnitude_vector.weight", (shape[1],))
        ratio = weight_quotient(f.t, magnitude, norm)
        update = self._pair(f, name, x, shape)
        bias = f.params.get(f"{name}.bias")
        if bias is not None:  # the result without the bias: one more tensor, as wide as the wider
            result = add(f.t, result, Tensor(bias.numel, bias.itemsize, None))
        kept = mul(f.t, shift(f.t, ratio), result)
        total = add(f.t, kept, scale(f.t, mul(f.t, ratio, update)))
        del written
        return total

    def _pair(self, f: Forward, name: str, x: Tensor, shape: tuple[int, int]) -> Tensor:
        inputs, outputs = shape
        down = f.added_linear(f"{name}.lora_A", x, (inputs, self.rank))
        return f.added_linear(f"{name}.lora_B", down, (self.rank, outputs))

    def _weight_norm(
        self, f: Forward, name: str, shape: tuple[int, int], itemsize: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """‖W + B·A·scaling‖ by output, and what the local variables hold beside it.

        B·A is made from an identity matrix, which autograd keeps for A's gradient although the
        norm is detached; the weight is dequantized and cast.
        """
        (inputs, outputs), t = shape, f.t
        low = self._cast_pair(f, name, shape)
        with t.scope("temporaries"), t.no_grad():
            eye = t.new(inputs * inputs, f.how.adapter_bytes)
            seen = cast(t, eye, 2) if low else eye
            down = f.added_linear(f"{name}.lora_A", seen, (inputs, self.rank))
            product = f.added_linear(f"{name}.lora_B", down, (self.rank, outputs))
            # Autograd has what B·A was made from; not so in a checkpoint, nor where it goes away.
            saved = () if t.forgets or t.pages_out else (seen, down)
            del eye, seen, down
            product = cast(t, product, itemsize)
            dense = self._dense_weight(f, name, shape, itemsize)
            scaled = t.new(product.numel, itemsize)
            total = t.new(product.numel, itemsize)
            del scaled
            norm = t.new(outputs, itemsize)
            if t.work is not None:
                t.work.in_place(total.numel * itemsize)  # the norm reads all of it
            del total
        return (*saved, product, dense), norm

    def _cast_pair(self, f: Forward, name: str, shape: tuple[int, int]) -> bool:
        """Under autocast A and B are cast at their first use, here, and stay."""
        if not f.how.autocast:
            return False
        f.low(f.added_param(f"{name}.lora_A.weight", (self.rank, shape[0])))
        f.low(f.added_param(f"{name}.lora_B.weight", (shape[1], self.rank)))
        return True

    @staticmethod
    def _dense_weight(f: Forward, name: str, shape: tuple[int, int], itemsize: int) -> Tensor:
        weight, t = f.params[f"{name}.weight"], f.t
        numel = shape[0] * shape[1]
        if weight.packed and f.how.quantization == "int8":
            return cast(t, _eight_bits(t, numel), itemsize)
        if weight.packed:
            return cast(t, t.new(numel, f.how.matmul_bytes), itemsize)
        return t.new(numel if weight.itemsize != itemsize else 0, itemsize)


def _eight_bits(t: Tape, numel: int) -> Tensor:
    """Codes times scales, times 1 / 127, in fp32.

    bitsandbytes 0.50.2 ``_ops.py`` int8_vectorwise_dequant.
    """
    scaled = t.new(numel, FP32_BYTES)
    made = t.new(numel, FP32_BYTES)
    del scaled
    return made
