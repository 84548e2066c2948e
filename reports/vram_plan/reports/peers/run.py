"""What a peer is asked: one training run, in the words most of them share."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PeerInput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInput:
    """A run as a peer's user would describe it; facts of the run, no figure of ours.

    Attributes:
        parameters: weights of the model, adapters not counted.
        family: ``model_type`` of its configuration, empty when unknown.
        num_layers: transformer blocks.
        hidden_size: width of the residual stream.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of a head.
        intermediate_size: inner width of the feed-forward part (of one expert).
        vocab_size: rows of the token embedding.
        gated_mlp: three matrices in the feed-forward part instead of two.
        tied_embeddings: the head uses the table of the embedding.
        num_experts: routed experts, 1 for a dense model.
        experts_per_token: experts a token passes.
        method: ``full``, ``lora``, or the name of another method of the row.
        quantization: of the frozen base: ``nf4``, ``int8``, …, empty for none.
        double_quant: the scales of NF4 are quantized too.
        weights_dtype: data type the weights are kept in.
        precision: data type of the computation.
        state_dtype: data type of the optimizer's moments.
        optimizer: the measured rows' name, ``adamw`` and so on.
        lora_rank: rank of the adapters.
        lora_targets: projections that have adapters, without ``_proj``.
        micro_batch: sequences in one forward pass.
        seq_len: tokens in a sequence.
        checkpointing: what the backward pass recomputes.
        attention: ``flash``, ``sdpa``, ``eager`` or ``xformers``.
        loss: ``hf``, ``fused-ce``, ``liger``, ``cut-ce`` or ``chunked``.
        gpus: of the whole job.
        gpus_per_node: in one machine.
        shard_stage: 0–3, what ZeRO calls it: 1 optimizer states, 2 and gradients, 3 and weights
            over the data-parallel ranks (FSDP's full-shard is 3, grad-op is 2).
        offload: ``none``, ``optimizer``, ``optimizer+params``, …
        tp: tensor-parallel degree.
        sequence_parallel: norms and dropouts are split over the tensor-parallel ranks.
        pp: pipeline-parallel degree.
        cp: context-parallel degree.
        ep: expert-parallel degree.
        gpu_memory_bytes: what the card is sold with, 0 when unknown.
    """

    parameters: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    gated_mlp: bool = True
    tied_embeddings: bool = False
    num_experts: int = 1
    experts_per_token: int = 1
    family: str = ""
    method: str = "full"
    quantization: str = ""
    double_quant: bool = False
    weights_dtype: str = "bf16"
    precision: str = "bf16"
    state_dtype: str = "fp32"
    optimizer: str = "adamw"
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    micro_batch: int = 1
    seq_len: int = 2048
    checkpointing: str = "none"
    attention: str = "flash"
    loss: str = "hf"
    gpus: int = 1
    gpus_per_node: int = 8
    shard_stage: int = 0
    offload: str = "none"
    tp: int = 1
    sequence_parallel: bool = False
    pp: int = 1
    cp: int = 1
    ep: int = 1
    gpu_memory_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse a run that cannot be one."""
        positive = ("parameters", "num_layers", "hidden_size", "num_heads", "micro_batch")
        for name in (*positive, "seq_len", "gpus", "tp", "pp", "cp", "ep", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.shard_stage not in {0, 1, 2, 3}:
            raise ValueError(f"shard_stage must be 0, 1, 2 or 3, got {self.shard_stage}")
        if self.method == "lora" and self.lora_rank < 1:
            raise ValueError("lora_rank must be at least 1 with the method lora")

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.micro_batch * self.seq_len

    @property
    def flash(self) -> bool:
        """The attention probabilities are never stored (flash, memory-efficient, SDPA)."""
        return self.attention != "eager"
