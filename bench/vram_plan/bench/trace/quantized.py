"""bitsandbytes' layers on fake tensors: their weights, and what their operators do inside.

bitsandbytes gives its operators fake kernels that make the result only. What a kernel allocates
on the way is told here, as its CUDA backend does it (bitsandbytes 0.50.2, backends/cuda/ops.py,
backends/default/ops.py), so that it is recorded like everything else.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.roles import made_for

__all__ = [
    "composites",
    "cpu_composites",
    "cuda_layers",
    "dora_on_quantized",
    "quantization_state",
    "quantize_layers",
    "quantized_parameter",
]

_BLOCK = 64
_NESTED_BLOCK = 256
#: Multiprocessors and compute capability by which the kernel of a 4-bit product is chosen.
_A100 = (108, 8, 0)
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: 1 / 127, as bitsandbytes' backends/default and PEFT's integrations.py write it.
_INT8_STEP = 7.874015718698502e-3
Make = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]


def quantize_layers(model: Any, config: TraceConfig, compute: torch.dtype) -> Any:
    """Swap the linear layers as transformers does when it loads a quantized model."""
    import peft
    import transformers
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    four_bit = config.quantization in ("nf4", "fp4")
    settings_kind: Any = transformers.BitsAndBytesConfig
    settings = settings_kind(
        load_in_8bit=not four_bit,
        load_in_4bit=four_bit,
        bnb_4bit_quant_type=config.quantization if four_bit else "fp4",
        bnb_4bit_use_double_quant=config.double_quant,
        bnb_4bit_compute_dtype=compute,
    )
    # as the quantizers do: quantizers/base.py, get_modules_to_not_convert
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    model = replace_with_bnb_linear(
        model, modules_to_not_convert=kept, quantization_config=settings
    )
    for module in model.modules():
        # Layers are made in torch's default type; the checkpoint's values bring the model's.
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(_TYPES[config.dtype])
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = four_bit, not four_bit
    model.config.quantization_config = settings
    model.config._is_quantized = True
    if config.kbit_preparation:
        for parameter in model.parameters():
            if type(parameter).__name__ == "Int8Params":
                parameter.data = parameter.data.to(torch.int8)  # loaded ones are quantized
        prepare: Any = peft.prepare_model_for_kbit_training
        prepare(model, use_gradient_checkpointing=False)
    return model


def quantized_parameter(old: Any, make: Make) -> Any:
    """The weight a bitsandbytes layer holds once it is on the device; None for other weights."""
    kind = type(old).__name__
    if kind == "Params4bit":
        return _four_bit(old, make)
    if kind == "Int8Params":
        new: Any = torch.nn.Parameter(make(tuple(old.shape), torch.int8), requires_grad=False)
        new.CB, new.SCB = new.data, make((old.shape[0],), torch.float32)
        new.has_fp16_weights = False
        return new
    return None


def _four_bit(old: Any, make: Make) -> Any:
    """``quantize_4bit`` of functional.py: packed values, scales, and the scales' own scales."""
    from bitsandbytes import functional as bnb

    quant_state: Any = bnb.QuantState
    blocks = -(-old.numel() // _BLOCK)
    options: dict[str, Any] = {"absmax": make((blocks,), torch.float32)}
    if old.compress_statistics:
        nested = quant_state(
            absmax=make((-(-blocks // _NESTED_BLOCK),), torch.float32),
            code=make((256,), torch.float32),
            blocksize=_NESTED_BLOCK,
            dtype=torch.float32,
        )
        options = {
            "absmax": make((blocks,), torch.uint8),
            "offset": make((), torch.float32),
            "state2": nested,
        }
    packed = make(((old.numel() + 1) // 2, 1), torch.uint8)
    new: Any = torch.nn.Parameter(packed, requires_grad=False)
    new.quant_state = quant_state(
        shape=old.shape,
        code=make((16,), torch.float32),
        blocksize=_BLOCK,
        quant_type=old.quant_type,
        dtype=old.dtype,
        **options,
    )
    for name in ("compress_statistics", "quant_type", "quant_storage", "blocksize"):
        setattr(new, name, getattr(old, name))
    new.bnb_quantized = True
    return new


def quantization_state(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The scales and tables beside the quantized weights."""
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for field in ("absmax", "code", "offset"):
                tensor = getattr(part, field, None)
                if tensor is not None:
                    yield f"{name}.{field}", tensor
        scales = getattr(parameter, "SCB", None)
        if scales is not None:
            yield f"{name}.SCB", scales


@cache
def _dispatch() -> Any:
    """The operators for CUDA, which a CPU build of torch does not import by itself."""
    with mock.patch.object(torch._C, "_cuda_getCurrentRawStream", None, create=True):
        from bitsandbytes.backends.cuda import ops
    return ops


def _is_fused(a: torch.Tensor, shape: Sequence[int]) -> bool:
    """Whether the CUDA backend takes its fused kernel on an A100 (the kernel of ``gemm_4bit``)."""
    ops, inputs = _dispatch(), a.shape[-1]
    rows = a.numel() // inputs
    if rows > ops._gemm_4bit_custom_max_m or inputs % _BLOCK:
        return False
    with mock.patch.object(ops, "_gpu_dispatch_props", return_value=_A100):
        chosen = ops._gemm_4bit_use_custom_cuda.__wrapped__(0, a.dtype, rows, shape[0], inputs)
    return bool(chosen)


def _gemm_4bit_cuda(
    a: torch.Tensor, b: torch.Tensor, shape: Sequence[int], *rest: Any, **named: Any
) -> torch.Tensor:
    """A fused kernel for few rows, else the same as everywhere."""
    if _is_fused(a, shape):
        return torch.empty((*a.shape[:-1], shape[0]), dtype=a.dtype, device=a.device)
    return _gemm_4bit(a, b, shape, *rest, **named)


def _gemm_4bit(
    a: torch.Tensor, b: torch.Tensor, shape: Sequence[int], *rest: Any, **named: Any
) -> torch.Tensor:
    """Dequantize the weight as a whole, then ``linear`` (``_dequant_linear_fallback``)."""
    nested = named.get("absmax_8bit")
    with made_for("temporaries"):
        if nested is not None:
            # ``_dequant_linear_fallback`` holds the scales without their offset to its end
            scales = torch.empty_like(nested, dtype=torch.float32)
            absmax = scales + named["absmax_offset"]
        else:
            absmax = rest[0]
        weight = torch.empty(tuple(shape), dtype=a.dtype, device=absmax.device)
    return functional.linear(a, weight, named.get("bias"))


def _int8_vectorwise_quant(
    a: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows to int8; with a threshold, a search for outlier columns that finds none."""
    row_stats = torch.empty((a.numel() // a.shape[-1],), dtype=torch.float32)
    rows = torch.empty(a.shape, dtype=torch.int8)
    if threshold == 0.0:
        return rows, row_stats, None
    outliers = a.abs() >= threshold
    outliers.any()
    return rows, row_stats, torch.empty((0,), dtype=torch.int64)


def _int8_scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """An int32 product, then fp16, then the wanted type."""
    product = torch.empty((*a.shape[:-1], b.shape[0]), dtype=torch.int32)
    out = torch.empty_like(product, dtype=torch.float16)
    if bias is not None and bias.dtype is not torch.float16:
        out.add_(bias)
    return out.to(dtype or torch.float16)


def _int8_mixed_scaled_mm(a: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, with no outlier columns in the activations."""
    ca, cb, sca, scb, *more = rest
    bias = more[1] if len(more) > 1 else None
    return _int8_scaled_mm(ca, cb, sca, scb, bias, a.dtype), torch.empty((0,), dtype=a.dtype)


def cpu_composites() -> dict[Any, Callable[..., Any]]:
    """The same for the CPU's backend; its int8 layers use torch's operators."""
    import bitsandbytes as bnb

    assert bnb.functional is not None  # its import defines the operators
    return {torch.ops.bitsandbytes.gemm_4bit.default: _gemm_4bit}


def composites() -> dict[Any, Callable[..., Any]]:
    """Operator → the same in operators that allocate what it does."""
    import bitsandbytes as bnb

    ops = torch.ops.bitsandbytes
    assert bnb.functional is not None  # its import defines the operators
    return {
        ops.gemm_4bit.default: _gemm_4bit_cuda,
        ops.int8_vectorwise_quant.default: _int8_vectorwise_quant,
        ops.int8_scaled_mm.default: _int8_scaled_mm,
        ops.int8_mixed_scaled_mm.default: _int8_mixed_scaled_mm,
    }


@contextmanager
def cuda_layers() -> Iterator[None]:
    """On CUDA int8 layers use ``MatMul8bitLt``; on the CPU another function (_functions.py)."""
    import bitsandbytes as bnb
    from bitsandbytes.autograd import _functions

    apply: Any = _functions.MatMul8bitLt.apply

    def matmul(a: torch.Tensor, b: torch.Tensor, *, bias: Any = None, state: Any = None) -> Any:
        return apply(a, b, None, bias, state)

    with mock.patch.object(bnb, "matmul", matmul):
        yield


def _dequantized(module: Any) -> Any:
    """PEFT's ``dequantize_module_weight`` for weights that stand for bitsandbytes' classes."""
    import bitsandbytes as bnb

    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        with made_for("temporaries"):
            return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    if type(weight).__name__ == "Int8Params" and weight.device.type == "meta":
        return weight.to(torch.float32)  # not quantized yet; PEFT wants to know shape and type
    if weight.dtype is torch.int8:
        scales = weight.SCB if getattr(weight, "SCB", None) is not None else module.state.SCB
        with made_for("temporaries"):
            return weight.data * scales.view(-1, 1) * _INT8_STEP
    return weight


def _for_norm(function: Any) -> Any:
    """What DoRA makes for the norm of a changed weight is as passing as a weight written out."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with made_for("temporaries"):
            return function(*args, **kwargs)

    return call


@contextmanager
def dora_on_quantized() -> Iterator[None]:
    """DoRA looks into quantized weights, while PEFT wraps them and in every forward."""
    from peft.tuners.lora import dora

    kind = dora.DoraLinearLayer
    with (
        mock.patch.object(dora, "dequantize_module_weight", _dequantized),
        mock.patch.object(dora, "deepcopy", lambda module: module),
        mock.patch.object(kind, "get_lora_weight", _for_norm(kind.get_lora_weight)),
        mock.patch.object(kind, "get_weight_norm", _for_norm(kind.get_weight_norm)),
    ):
        yield
