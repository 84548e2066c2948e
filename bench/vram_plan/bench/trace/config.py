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
    "checkpointing": ("none", "full", "selective", "offload"),
    "offload": ("none", "activations"),
    "attention": ("eager", "sdpa", "flash"),
    "loss": ("hf", "fused-ce", "chunked", "liger"),
    "optimizer": OPTIMIZERS,
    "engine": ("torch", "ddp", "fsdp1", "fsdp2"),
    "fsdp": ("full-shard", "grad-op", "hybrid-shard"),
    "compute_dtype": (None, "bf16", "fp16", "fp32"),
    "device": ("fake", "cpu", "cuda"),
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
        checkpointing: ``full`` is ``model.activation_checkpointing_enable()``; ``selective`` keeps
            the results of matrix products and attention; ``offload`` keeps checkpoints on the host.
        offload: ``activations`` sends every saved tensor to the host (``save_on_cpu``).
        attention: transformers' ``attn_implementation``; ``flash`` is the flash_attn package.
        loss: ``hf`` is the model's own.
        optimizer: see ``OPTIMIZERS``.
        grad_accum: micro-batches in a step.
        clip: the gradient norm's bound, or None not to clip.
        engine: what shares the work among ranks; ``torch`` is one process, or ``tp`` of them.
        ranks: processes in the job, one a GPU; the traced one is rank 0.
        fsdp: what FSDP splits: ``full-shard``, ``grad-op`` (weights stay gathered between forward
            and backward) or ``hybrid-shard`` (whole copies on every node).
        ranks_per_node: with ``hybrid-shard``: the ranks that share one copy.
        compute_dtype: FSDP's mixed precision: the type that weights are gathered and gradients
            reduced in; None: the weights' own.
        tp: ranks that share every layer (tensor parallelism by transformers' plans).
        steps: steps run; the last one is measured.
        device: ``fake`` (nothing is computed), ``cpu`` (real tensors) or ``cuda`` (a real GPU).
        rules: whose behaviour the fake device imposes.
        history: keep the events of the loading and of the earlier steps too.
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
    offload: str = "none"
    attention: str = "sdpa"
    loss: str = "hf"
    optimizer: str = "adamw"
    grad_accum: int = 1
    clip: float | None = 1.0
    engine: str = "torch"
    ranks: int = 1
    fsdp: str = "full-shard"
    ranks_per_node: int = 8
    compute_dtype: str | None = None
    tp: int = 1
    steps: int = 2
    device: str = "fake"
    rules: str = "cuda"
    history: bool = False

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                shown = ", ".join(str(choice) for choice in allowed)
                raise ValueError(f"{name} {value!r} is not one of: {shown}")
        for name in ("batch", "seq", "grad_accum", "steps", "ranks", "ranks_per_node", "tp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self._check_ranks()
        to_host = "offload" if self.checkpointing == "offload" else self.offload
        if to_host != "none" and "cpu" in (self.device, self.rules):
            raise ValueError(f"{to_host} to the host from the CPU moves nothing: choose rules cuda")

    def _check_ranks(self) -> None:
        """Refuse ranks that the engine cannot use, and options that it would ignore."""
        engine, ranks, sharded = self.engine, self.ranks, self.engine.startswith("fsdp")
        if self.tp > 1 and engine != "torch":
            raise ValueError(f"tp {self.tp} with engine {engine}: trace either; choose tp 1")
        if engine == "torch" and ranks not in (1, self.tp):
            raise ValueError(f"ranks {ranks} with engine torch: choose engine ddp, fsdp1 or fsdp2")
        if self.fsdp != "full-shard" and not sharded:
            raise ValueError(f"fsdp {self.fsdp} with engine {engine}: choose engine fsdp2")
        if self.compute_dtype is not None and not sharded:
            raise ValueError(
                f"compute_dtype {self.compute_dtype} with engine {engine}: it is FSDP's; "
                "use autocast"
            )
        if sharded and self.quantization == "int8":
            raise ValueError(
                f"quantization int8 with engine {engine}: FSDP cannot shard integer weights; "
                "choose nf4 or engine ddp"
            )
        if self.fsdp == "hybrid-shard":
            self._check_hybrid()

    def _check_hybrid(self) -> None:
        """Hybrid sharding divides the ranks into nodes."""
        if self.engine == "fsdp1":
            raise ValueError("fsdp hybrid-shard with engine fsdp1: choose engine fsdp2")
        if self.ranks > self.ranks_per_node and self.ranks % self.ranks_per_node:
            raise ValueError(
                f"fsdp hybrid-shard: {self.ranks} ranks are not divisible by "
                f"{self.ranks_per_node} ranks_per_node"
            )
