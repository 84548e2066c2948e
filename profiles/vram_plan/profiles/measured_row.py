"""One published run: every column of the measured rows, typed.

The columns and their words are those of ``data/measured/SCHEMA.md``; where the rows were published
is in each row, and how far to trust a source in ``data/measured/SOURCES.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = [
    "ARCHITECTURE",
    "COLUMNS",
    "INTEGERS",
    "MEMORY_COLUMNS",
    "NUMBERS",
    "SWITCHES",
    "WORDS",
    "Row",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A run somebody published; None means "not stated". Bytes are integers, times seconds."""

    id: str
    group: str
    source: str | None = None
    model: str | None = None
    params: int | None = None
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    mlp: str | None = None
    vocab_size: int | None = None
    tied_embeddings: bool | None = None
    num_experts: int | None = None
    experts_per_token: int | None = None
    moe_intermediate_size: int | None = None
    shared_intermediate_size: int | None = None
    method: str | None = None
    objective: str | None = None
    trainable_params: int | None = None
    lora_rank: int | None = None
    lora_targets: str | None = None
    modules_to_save: str | None = None
    adapter_dtype: str | None = None
    quantization: str | None = None
    double_quant: bool | None = None
    weights_dtype: str | None = None
    precision: str | None = None
    autocast: bool | None = None
    optimizer: str | None = None
    master_dtype: str | None = None
    grad_dtype: str | None = None
    state_dtype: str | None = None
    engine: str | None = None
    trainer: str | None = None
    zero_stage: int | None = None
    sharding: str | None = None
    offload: str | None = None
    gpus: int | None = None
    gpus_per_node: int | None = None
    gpu: str | None = None
    tensor_parallel: int | None = None
    sequence_parallel: bool | None = None
    pipeline_parallel: int | None = None
    virtual_pipeline: int | None = None
    context_parallel: int | None = None
    expert_parallel: int | None = None
    data_parallel: int | None = None
    micro_batch: int | None = None
    seq_len: int | None = None
    lengths: str | None = None
    grad_accum: int | None = None
    global_batch: int | None = None
    checkpointing: str | None = None
    attention: str | None = None
    loss: str | None = None
    fused_kernels: str | None = None
    compile: bool | None = None
    stack: str | None = None
    outcome: str
    allocated_peak_bytes: int | None = None
    allocated_final_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    device_used_bytes: int | None = None
    memory_bytes: int | None = None
    memory_kind: str | None = None
    memory_resolution_bytes: int | None = None
    memory_unit: str | None = None
    memory_rank: str | None = None
    tokens_per_second_per_gpu: float | None = None
    step_seconds: float | None = None
    samples_per_second: float | None = None
    tflops_per_gpu: float | None = None
    mfu: float | None = None
    flops_convention: str | None = None
    quality: str
    speed_quality: str | None = None
    notes: str | None = None

    @property
    def family(self) -> str:
        """The family of sources, ``fms-a100-main`` of the group ``fms-a100-main/Mistral-7B``."""
        return self.group.partition("/")[0]

    @property
    def has_memory(self) -> bool:
        """Whether it has a memory figure of any counter."""
        return any(getattr(self, name) is not None for name in MEMORY_COLUMNS)


COLUMNS = tuple(field.name for field in fields(Row))
"""In the order of the file."""
MEMORY_COLUMNS = (
    "allocated_peak_bytes",
    "allocated_final_bytes",
    "reserved_peak_bytes",
    "device_used_bytes",
    "memory_bytes",
)


def _columns(kind: str) -> frozenset[str]:
    return frozenset(field.name for field in fields(Row) if str(field.type).startswith(kind))


INTEGERS, NUMBERS, SWITCHES = _columns("int"), _columns("float"), _columns("bool")
"""Columns of whole numbers, of decimals, and of ``yes`` or ``no``."""
_DTYPES = ("fp32", "bf16", "fp16", "fp8")
WORDS: dict[str, tuple[str, ...]] = {
    "mlp": ("gated", "plain"),
    "weights_dtype": _DTYPES,
    "precision": ("fp32", "tf32", "bf16", "fp16", "fp8", "mxfp8", "nvfp4"),
    "zero_stage": ("0", "1", "2", "3"),
    "sharding": ("full-shard", "hybrid-shard", "grad-op", "no-shard"),
    "offload": (
        "none",
        "optimizer",
        "optimizer+params",
        "activations",
        "params",
        "optimizer+params+activations",
    ),
    "lengths": ("fixed", "longest", "limit", "packed-limit"),
    "checkpointing": ("none", "full", "selective", "offload"),
    "attention": ("flash", "sdpa", "eager", "xformers"),
    "loss": ("hf", "fused-ce", "liger", "cut-ce", "chunked"),
    "outcome": ("ok", "oom", "failed"),
    "memory_unit": ("B", "MiB", "GiB", "GB-1e9", "GB?", "MB?"),
    "memory_rank": ("only", "rank0", "last", "max", "mean"),
    "flops_convention": ("model", "hardware", "noncausal"),
    "quality": ("A", "B", "C"),
    "speed_quality": ("A", "B", "C"),
}
"""Columns whose words the schema lists in full; the others are open, as sources are."""
ARCHITECTURE = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
    "num_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
    "shared_intermediate_size": "shared_expert_intermediate_size",
}
"""Column of the architecture → field of ``ModelSpec``."""
