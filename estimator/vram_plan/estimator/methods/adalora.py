"""AdaLoRA (arXiv:2303.10512) as PEFT 0.21.2 runs it: a singular value beside every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.lora import FOUR_BIT, LinearPairs, quantized_as
from vram_plan.estimator.ops.adapters import (
    add_in_place,
    clone,
    divide,
    product,
    weight_cast,
    weight_copy,
    weights_product,
)
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, scale

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Tensor

LOW_BYTES = 2
MASKED = frozenset(
    {"albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "roberta", "xlm-roberta"}
)


@dataclass(frozen=True, slots=True)
class AdaLora(LinearPairs):
    """B · diag(E) · A beside every target; ``rank`` is the initial rank, which memory follows.

    The target is a module within PEFT's layer, so the pair has a path of its own (``svd``).

    ``peft/tuners/adalora/layer.py`` ``SVDLinear.forward``: PEFT masks ranks instead of removing
    them, so the tensors keep the size of ``init_r`` (default 12; the target rank does not matter).
    Left out: the rank allocator's sensitivities, three tensors of the adapters' size, which exist
    only where a training loop calls ``update_and_allocate``.
    """

    def regularizes(self, f: Forward, name: str) -> bool:
        """``peft/tuners/adalora/model.py`` ``forward`` adds how far A and B are from orthogonal.

        That part of the loss was made last, so it goes back first. PEFT has no task for masked
        language models; ``PeftModel.forward`` then calls the base model past it.
        """
        if f.spec.model_type in MASKED and not f.spec.num_labels:
            return False
        return name.endswith(("lora_A", "lora_B"))

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``result += (x @ (A · E).T @ B.T) · scaling / ranknum``."""
        result, flat = base(x), x.flat
        if not self.matches(f, name):
            return result
        kind, itemsize = quantized_as(f, name), result.itemsize
        if kind in FOUR_BIT:
            result = clone(f.t, result)
        if not (kind and f.how.autocast):
            wide = FP32_BYTES if kind in {"int8", "gptq4", "gptq8"} else f.how.adapter_bytes
            x = cast(f.t, x, wide)
        output = self._triple(f, name, x, shape)
        if kind in FOUR_BIT or kind == "int8":
            if not f.how.autocast:
                output = cast(f.t, output, itemsize)
            output = self._scaled(f, name, output)
            return add(f.t, result, output) if kind == "int8" else add_in_place(f.t, result, output)
        output = self._scaled(f, name, output.moved())
        if kind and not f.how.autocast:
            output = cast(f.t, output, itemsize)
        return add_in_place(f.t, result, output, viewed=not (kind or flat) and _viewed(f, name))

    @staticmethod
    def _scaled(f: Forward, name: str, output: Tensor) -> Tensor:
        """``· scaling / (ranknum + 1e-5)``.

        ``ranknum`` is meant to be fixed, but casting the adapters of a 16-bit model to fp32 makes
        a new parameter of it, one that learns (``cast_adapter_dtype`` of
        ``peft/tuners/tuners_utils.py``); the layer's output is kept for its gradient. Adapters of
        a 4-bit layer have its compute dtype before that cast, those of an 8-bit one are fp32
        (``_get_base_layer_device_and_dtype``).
        """
        kind, held = quantized_as(f, name), f.params[f"{name}.weight"].itemsize
        if kind:
            held = f.how.matmul_bytes if kind in FOUR_BIT else FP32_BYTES
        recast = held < f.how.adapter_bytes
        ranknum = f.added_param(f"{name}.svd.ranknum", (1,), trainable=recast)
        divisor = weight_copy(f.t, ranknum, adds=True)
        scaled = scale(f.t, output)
        del output  # no variable of `SVDLinear` holds it, one of the quantized layers does
        return divide(f.t, scaled, divisor)

    def _triple(self, f: Forward, name: str, x: Tensor, shape: tuple[int, int]) -> Tensor:
        (inputs, outputs), t, how = shape, f.t, f.how
        a = f.added_param(f"{name}.svd.lora_A", (self.rank, inputs))
        e = f.added_param(f"{name}.svd.lora_E", (self.rank, 1))
        b = f.added_param(f"{name}.svd.lora_B", (outputs, self.rank))
        down = weights_product(t, a, e)
        if not how.autocast:
            return f.product(product(t, x, down, self.rank), b, None, outputs)
        x, down = cast(t, x, LOW_BYTES), cast(t, down, LOW_BYTES)
        up = weight_cast(t, b, LOW_BYTES)
        return product(t, product(t, x, down, self.rank), up, outputs)


def _viewed(f: Forward, name: str) -> bool:
    """Whether a layer's output is a view of a product of matrices.

    With a bias it is (torch 2.13.0 ``aten/src/ATen/native/Linear.cpp`` ``_flatten_nd_linear``;
    ``Conv1D`` says so itself), without one it is not; ``FalconLinear`` adds its bias to it.
    """
    return f"{name}.bias" in f.params and f.spec.model_type != "falcon"
