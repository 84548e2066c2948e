"""What to trace: one training step's configuration, free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["METHODS", "OPTIMIZERS", "TraceConfig"]

METHODS = (
    "full",
    "freeze",
    "bitfit",
    "lora",
    "rslora",
    "dora",
    "adalora",
    "ia3",
    "prompt",
    "prefix",
    "p-tuning",
)
OPTIMIZERS = (
    "adamw",
    "adamw-fused",
    "adamw-for-loop",
    "adamw-8bit",
    "paged-adamw",
    "paged-adamw-8bit",
    "adafactor",
    "lion",
    "lion-8bit",
    "sgd",
    "sgd-momentum",
    "rmsprop",
    "muon",
)
_CHOICES = {
    "method": METHODS,
    "dtype": ("bf16", "fp16", "fp32"),
    "autocast": (None, "bf16", "fp16"),
    "adapter_dtype": ("bf16", "fp16", "fp32"),
    "quantization": ("none", "nf4", "fp4", "int8"),
    "checkpointing": ("none", "full"),
    "attention": ("eager", "sdpa", "flash"),
    "loss": ("hf", "fused-ce", "chunked", "liger"),
    "optimizer": OPTIMIZERS,
    "device": ("fake", "cpu"),
    "rules": ("cuda", "cpu"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceConfig:
    """One training step on one device.

    Attributes:
        config: a transformers configuration object, or a mapping holding ``model_type`` and the
            fields to change from that type's defaults.
        batch: sequences in a micro-batch.
        seq: tokens in a sequence (for encoder-decoders: of the encoder).
        target_seq: tokens of the decoder; ``seq`` when None.
        task: ``causal-lm``, ``masked-lm`` or ``seq2seq-lm``; None lets the model type decide.
        method: what is trained.
        lora: further fields of PEFT's configuration (``r``, ``target_modules``, ``lora_dropout``,
            ``num_virtual_tokens``, …).
        freeze_layers: with ``freeze``: the first so many blocks and the embeddings are frozen.
        dtype: the weights' type.
        autocast: the compute type of ``torch.autocast``, or None.
        adapter_dtype: the type of what PEFT adds (fp32 is PEFT's default).
        quantization: bitsandbytes' layers for the base's linear layers.
        double_quant: bitsandbytes' nested quantization of the 4-bit scales.
        kbit_preparation: PEFT's ``prepare_model_for_kbit_training`` (fp32 norms, embeddings, head).
        checkpointing: ``full`` is ``model.gradient_checkpointing_enable()``.
        attention: transformers' ``attn_implementation``; ``flash`` is the flash_attn package.
        loss: ``hf`` is the model's own.
        optimizer: see ``OPTIMIZERS``.
        grad_accum: micro-batches in a step.
        clip: the gradient norm's bound, or None not to clip.
        steps: steps run; the last one is measured.
        device: ``fake`` (nothing is computed) or ``cpu`` (real tensors).
        rules: whose behaviour the fake device imposes.
    """

    config: Any
    batch: int = 1
    seq: int = 128
    target_seq: int | None = None
    task: str | None = None
    method: str = "full"
    lora: Mapping[str, Any] = field(default_factory=dict)
    freeze_layers: int = 0
    dtype: str = "bf16"
    autocast: str | None = None
    adapter_dtype: str = "fp32"
    quantization: str = "none"
    double_quant: bool = True
    kbit_preparation: bool = False
    checkpointing: str = "none"
    attention: str = "sdpa"
    loss: str = "hf"
    optimizer: str = "adamw"
    grad_accum: int = 1
    clip: float | None = 1.0
    steps: int = 2
    device: str = "fake"
    rules: str = "cuda"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                shown = ", ".join(str(choice) for choice in allowed)
                raise ValueError(f"{name} {value!r} is not one of: {shown}")
        for name in ("batch", "seq", "grad_accum", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
