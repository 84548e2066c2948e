"""Training with matrix products in 8 bits: recipes, what each library keeps, who can run them.

The products' factors are cast; what passes between layers, norms, attention and the loss stay in 16
bits. Two libraries do it:

* **Transformer Engine** (NVIDIA/TransformerEngine @ d0067d0d ``transformer_engine/pytorch``) in
  Megatron-LM and its kin, and in Accelerate. Before and beside Blackwell's data-centre chips fp8
  products take both factors by rows, so whatever a product reads the other way round is written
  again transposed (``utils.py`` ``is_non_tn_fp8_gemm_supported``; ``csrc/quantizer.cpp``
  ``create_tensor``); scales by block differ along the two directions, so they always are
  (``tensor/storage/mxfp8_tensor_storage.py``, ``float8_blockwise_tensor_storage.py``).
* **torchao** (pytorch/ao @ 36027d82 ``torchao/float8``) in torchtune, torchtitan and Accelerate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig
from vram_plan.profiles.gpus import GpuSpec

__all__ = ["Eight", "casting", "gpu_refusal", "reads_both_ways", "refused_fp8", "settle_fp8"]

_BLOCK = 32
"""Elements that share a scale of one byte (OCP's MX formats)."""
_TILE = 128
"""Elements that share an fp32 scale of block scaling."""
_LEAST = {
    "te-delayed": (8, 9),
    "te-current": (8, 9),
    "te-blockwise": (9, 0),
    "te-mxfp8": (10, 0),
    "ao-tensorwise": (8, 9),
    "ao-rowwise": (9, 0),
}
"""Compute capability from which a recipe runs (``quantization.py`` ``_compute_*_support``;
``torchao/float8/README.md``)."""
_BOTH_WAYS = ((10, 0), (12, 0))
"""Capabilities, the second excluded, whose fp8 products read a factor either way; 13.0 and later
do too."""
_MULTIPLE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Eight:
    """How products are done in 8 bits.

    Attributes:
        recipe: one of ``choices.FP8_RECIPES``.
        transposes: what is read the other way round is stored again.
        primary: weights of linear layers are held in 8 bits alone (beside fp32 masters).
        cached: 8-bit copies of weights outlive a micro-batch.
        gathered: FSDP 2 gathers weights of linear layers in 8 bits.
    """

    recipe: str
    transposes: bool = True
    primary: bool = False
    cached: bool = False
    gathered: bool = False

    @property
    def engine(self) -> bool:
        """Whether Transformer Engine's modules stand in for linear layers."""
        return self.recipe.startswith("te-")

    @property
    def by_block(self) -> bool:
        """Whether scales are those of blocks, different along rows and columns."""
        return self.recipe in {"te-mxfp8", "te-blockwise"}

    @property
    def fuses_norm(self) -> bool:
        """Whether the norm's kernel writes 8 bits at once: scales are known before it starts.

        ``csrc/extensions/normalization.cpp``: fully fused for delayed scaling alone without cuDNN's
        kernels, which are off unless ``NVTE_NORM_FWD_USE_CUDNN`` is set.
        """
        return self.recipe == "te-delayed"

    @property
    def keeps_original(self) -> bool:
        """Whether attention's projection keeps its 16-bit input, which attention keeps anyway.

        Megatron-LM @ d98e8a64 ``megatron/core/transformer/attention.py``
        ``set_save_original_input``: every recipe but delayed scaling.
        """
        return self.engine and self.recipe != "te-delayed"

    def stored(self, numel: int) -> int:
        """Bytes of ``numel`` elements in one layout, scales included."""
        if self.recipe == "te-mxfp8":
            return numel + -(-numel // _BLOCK)
        if self.recipe == "te-blockwise":
            return numel + 4 * -(-numel // _TILE)
        return numel

    def weight_bytes(self, numel: int) -> int:
        """Bytes of a weight in 8 bits: once, or in both layouts.

        Blocks of ``te-blockwise`` weights are squares of 128, so their scales are negligible.
        """
        one = numel if self.recipe == "te-blockwise" else self.stored(numel)
        return one * (2 if self.transposes else 1)


def casting(config: TrainConfig) -> Eight | None:
    """What ``--precision fp8`` does to products; None for other precisions."""
    if config.precision != "fp8":
        return None
    recipe = config.fp8_recipe
    megatron = config.engine == "megatron"
    by_block = recipe in {"te-mxfp8", "te-blockwise"}
    return Eight(
        recipe=recipe,
        transposes=recipe.startswith("te-") and (by_block or not reads_both_ways(config.gpu)),
        primary=config.weights_dtype == "fp8",
        cached=megatron and not config.fsdp,
        gathered=config.engine == "fsdp2" and recipe == "ao-tensorwise",
    )


def _capability(gpu: GpuSpec) -> tuple[int, int]:
    """Compute capability; (0, 0) for other makers' cards."""
    major, _, minor = gpu.compute_capability.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def reads_both_ways(gpu: GpuSpec | None) -> bool:
    """Whether fp8 products take a factor by rows or by columns; not where no card is named."""
    if gpu is None:
        return False
    least, end = _BOTH_WAYS
    return least <= _capability(gpu) < end or _capability(gpu) >= (13, 0)


def settle_fp8(values: dict[str, Any], notes: list[str]) -> str:
    """Fill in the recipe of 8-bit products; the dtype of what is not cast.

    Recipes unless said otherwise: Megatron-LM's ``--fp8-recipe`` is ``delayed``
    (``megatron/core/transformer/transformer_config.py``), torchao's is ``tensorwise``
    (``Float8LinearConfig``, which Accelerate and torchtune take as it is).
    """
    precision: str = values["precision"]
    if precision != "fp8":
        return precision
    known = choices.FP8_ENGINES.get(values["engine"], ())
    if "fp8_recipe" not in values and known:
        values["fp8_recipe"] = known[0]
        notes.append(f"--fp8-recipe {known[0]}: linear layers of the blocks compute in 8 bits")
    recipe = values.get("fp8_recipe", "none")
    if recipe.startswith("te-") and values.get("gpu") is None and recipe != "te-mxfp8":
        notes.append("fp8 tensors are counted in both layouts, as cards before Blackwell need them")
    return "bf16"


def gpu_refusal(config: TrainConfig, gpu: GpuSpec) -> str:
    """Why a card cannot run the recipe; empty where it can."""
    if config.precision != "fp8":
        return ""
    if gpu.vendor != "NVIDIA":
        return f"{gpu.name} is no card of NVIDIA's, for which alone these recipes are planned"
    least = _LEAST.get(config.fp8_recipe, (8, 9))
    own = _capability(gpu)
    if own < least:
        return (
            f"{gpu.name} has compute capability {gpu.compute_capability}, {config.fp8_recipe} "
            f"needs {least[0]}.{least[1]}"
        )
    if config.fp8_recipe == "te-mxfp8" and own >= (12, 0):
        return f"Transformer Engine has no te-mxfp8 for compute capability {gpu.compute_capability}"
    return ""


def refused_fp8(config: TrainConfig, given: dict[str, Any]) -> Iterator[str]:
    """Why ``--precision fp8`` cannot be run, or planned, with the other options."""
    if config.precision != "fp8":
        if config.fp8_recipe != "none":
            yield f"--fp8-recipe {config.fp8_recipe} needs --precision fp8"
        if config.weights_dtype == "fp8":
            yield "--weights-dtype fp8 needs --precision fp8 with --engine megatron"
        return
    yield from _unplanned(config)
    known = choices.FP8_ENGINES.get(config.engine, ())
    if known and config.fp8_recipe not in known:
        yield (
            f"--fp8-recipe {config.fp8_recipe} with --engine {config.engine}: choose from "
            f"{', '.join(known)}"
        )
    refusal = gpu_refusal(config, config.gpu) if config.gpu else ""
    if refusal:
        yield f"--precision fp8: {refusal}; choose --precision bf16"


def _unplanned(config: TrainConfig) -> Iterator[str]:
    if not config.training:
        yield "--precision fp8 is for training; with --task inference choose bf16 or --kv-dtype fp8"
    if config.engine not in choices.FP8_ENGINES:
        engines = ", ".join(choices.FP8_ENGINES)
        yield (
            f"--precision fp8 with --engine {config.engine}: planned for {engines}; choose one or "
            "--precision bf16"
        )
    if config.method != "full":
        yield (
            f"--precision fp8 with --method {config.method}: 8-bit products are planned for "
            "--method full; choose --precision bf16"
        )
    if config.weights_dtype == "fp16":
        yield "--weights-dtype fp16 with --precision fp8: choose bf16 or fp32"
    if config.weights_dtype == "fp8" and config.engine != "megatron":
        yield "--weights-dtype fp8 is Megatron-LM's --fp8-param-gather: choose --engine megatron"
    yield from _shapes(config)


def _by_engine(config: TrainConfig) -> bool:
    return config.fp8_recipe.startswith("te-")


def _shapes(config: TrainConfig) -> Iterator[str]:
    model = config.model
    if config.engine == "megatron" and (model.num_experts or model.is_encoder_decoder):
        yield f"--precision fp8 with --engine megatron: for dense decoders, not {model.name}"
    if config.engine != "megatron" and model.model_type in choices.CONV1D:
        yield f"--precision fp8: {model.model_type}'s Conv1D is no torch.nn.Linear; choose bf16"
    if config.engine != "megatron" and model.tie_word_embeddings and _by_engine(config):
        yield (
            f"--fp8-recipe {config.fp8_recipe} with --engine {config.engine}: Accelerate's "
            f"conversion unties the head of {model.name}; choose ao-tensorwise"
        )
    tokens = config.micro_batch * config.seq_len // config.cp
    if tokens % _MULTIPLE:
        yield (
            f"--precision fp8: the {tokens} tokens of a micro-batch are no multiple of "
            f"{_MULTIPLE}, which its products need; change --seq-len or --micro-batch"
        )
