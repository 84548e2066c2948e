"""How a frozen weight is held in fewer bits, and what undoing it takes for a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vram_plan.estimator.choices import BITSANDBYTES
from vram_plan.estimator.tape import ROUNDING_BYTES

if TYPE_CHECKING:
    from vram_plan.estimator.treatment import Treatment
    from vram_plan.profiles.model import ModelSpec

_KEEPS_WO = frozenset({"t5", "mt5", "umt5"})
_SUBCLASSES = {"falcon": "", "phimoe": ".router.weight"}
"""``model_type`` → endings of the layers that are a class of their own, a subclass of
``torch.nn.Linear`` (``FalconLinear``, ``PhimoeTopKRouter``)."""
BNB_BLOCK = 64
"""Weights per fp32 scale of NF4 and FP4 (bitsandbytes 0.50.2 ``nn/modules.py`` Params4bit)."""
NESTED_BLOCK = 256
"""Scales per fp32 scale of scales under double quantization (arXiv:2305.14314, section 3)."""
GPTQ_BITS = {"gptq4": 4, "gptq8": 8}
GPTQ_GROUP = 128
"""Inputs per scale and zero point (GPTQ's ``group_size`` in transformers 5.23.0 GPTQConfig)."""
SOURCES = {
    "nf4": "bitsandbytes 0.50.2 functional.py quantize_4bit",
    "fp4": "bitsandbytes 0.50.2 functional.py quantize_4bit",
    "int8": "bitsandbytes 0.50.2 nn/modules.py Int8Params",
    "gptq4": "GPTQModel nn_modules/qlinear: qweight, qzeros, scales, g_idx",
    "gptq8": "GPTQModel nn_modules/qlinear: qweight, qzeros, scales, g_idx",
}


def _rounded(nbytes: float) -> int:
    return -(-int(nbytes) // ROUNDING_BYTES) * ROUNDING_BYTES


def _four_bit(inputs: int, outputs: int, double: bool) -> int:
    """Codes of half a byte, an fp32 scale per 64 weights; the 16 values of the code book.

    With double quantization the scales are bytes with an fp32 scale per 256 of them, an offset
    and a code book of 256 values.
    """
    numel = inputs * outputs
    blocks = -(-numel // BNB_BLOCK)
    codes = _rounded((numel + 1) // 2) + _rounded(16 * 4)
    if not double:
        return codes + _rounded(4 * blocks)
    nested = _rounded(blocks) + _rounded(4 * -(-blocks // NESTED_BLOCK))
    return codes + nested + _rounded(4) + _rounded(256 * 4)


def _int8(inputs: int, outputs: int, double: bool) -> int:
    """One byte a weight and an fp32 scale per output (LLM.int8(), arXiv:2208.07339)."""
    return _rounded(inputs * outputs) + _rounded(4 * outputs)


def _gptq(bits: int, inputs: int, outputs: int, group: int) -> int:
    """``bits`` a weight; an fp16 scale and a zero point of ``bits`` per group; int32 g_idx."""
    groups = -(-inputs // group) if group > 0 else 1
    scales = _rounded(2 * groups * outputs) + _rounded(groups * outputs * bits // 8)
    return _rounded(inputs * outputs * bits // 8) + scales + _rounded(4 * inputs)


def code_bytes(kind: str, inputs: int, outputs: int, *, group: int = GPTQ_GROUP) -> float:
    """Bytes that FSDP divides where codes are parameters; scales are not among them.

    4-bit codes (8 for ``gptq8``); for GPTQ codes and zero points (``qweight`` and ``qzeros`` of
    ``PATCH_FOR_FSDP_TRITON_V2``, fms-acceleration ``fms_acceleration_peft/autogptq_utils.py``).
    """
    bits = GPTQ_BITS.get(kind, 4)
    numel, together = inputs * outputs, group if group > 0 else inputs
    return numel * bits / 8 + (numel / together * bits / 8 if kind in GPTQ_BITS else 0)


_BYTES: dict[str, Callable[[int, int, bool], int]] = {
    "nf4": _four_bit,
    "fp4": _four_bit,
    "int8": _int8,
}


def packed_bytes(
    kind: str, inputs: int, outputs: int, *, double: bool, group: int = GPTQ_GROUP
) -> int:
    """Bytes of one quantized weight with all its scales; ``group`` is GPTQ's, -1: all inputs."""
    if kind in GPTQ_BITS:
        return _gptq(GPTQ_BITS[kind], inputs, outputs, group)
    return _BYTES[kind](inputs, outputs, double)


def ends_in(spec: ModelSpec, how: Treatment, layer: int) -> bool:
    """Whether the model's last parameter is this block's: bitsandbytes leaves its module alone.

    So it is where the last norm has no weight and the head is the embedding's (OLMo). transformers
    5.23.0 ``quantizers/base.py`` ``get_keys_to_not_convert``.
    """
    bare = spec.tie_word_embeddings and not spec.norm_affine
    return bare and how.quantization in BITSANDBYTES and layer == spec.num_hidden_layers - 1


def packs(spec: ModelSpec, how: Treatment, layer: int, name: str) -> bool:
    """Whether a linear weight is quantized; ``layer`` is -1 outside the blocks.

    GPTQ takes the blocks' linear layers, bitsandbytes those outside too, such as the transform in
    BERT's head, but not the projection to the vocabulary (transformers 5.23.0
    ``quantizers/base.py`` ``get_keys_to_not_convert``), nor T5's ``wo``
    (``_keep_in_fp32_modules``), nor subclasses of ``torch.nn.Linear``.
    """
    if how.quantization == "none":
        return False
    if how.quantization not in BITSANDBYTES:
        return layer >= 0
    own = _SUBCLASSES.get(spec.model_type)
    if own is not None and name.endswith(own) and not how.packs_subclasses:
        return False
    if ends_in(spec, how, layer) and name == "mlp.down_proj.weight":
        return False
    return not (spec.model_type in _KEEPS_WO and name.endswith(".wo.weight"))
