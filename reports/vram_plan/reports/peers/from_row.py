"""From a measured row and its plan to what a peer is asked.

The peers get the same facts as the plan: the resolved configuration, not its prediction. A run that
shards within each node (FSDP's hybrid shard) is asked as one node, which is how a user of these
tools would enter it.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.profiles.measured_row import Row
from vram_plan.reports.peers.run import PeerInput

_STAGE = {"full-shard": 3, "hybrid-shard": 3, "grad-op": 2}
_TARGETS = {
    "all-linear": ("q", "k", "v", "o", "gate", "up", "down"),
    "attention": ("q", "k", "v", "o"),
    "qkv": ("q", "k", "v"),
    "mlp": ("gate", "up", "down"),
}
_OPTIMIZERS = {"adamw-for-loop": "adamw"}


def peer_input(row: Row, config: TrainConfig, parameters: int) -> PeerInput:
    """The run of a row in the peers' words.

    Args:
        row: the measurement, for what a plan does not keep.
        config: its resolved configuration.
        parameters: of the base model.
    """
    model = config.model
    experts = max(model.num_experts, 1)
    sparse = experts > 1 and model.moe_intermediate_size > 0
    hybrid = config.fsdp == "hybrid-shard"
    return PeerInput(
        parameters=parameters,
        num_layers=model.num_blocks,
        hidden_size=model.hidden_size,
        num_heads=model.num_attention_heads,
        num_kv_heads=model.num_key_value_heads,
        head_dim=model.head_dim,
        intermediate_size=model.moe_intermediate_size if sparse else model.intermediate_size,
        vocab_size=model.vocab_size,
        gated_mlp=model.is_gated_act,
        tied_embeddings=model.tie_word_embeddings,
        num_experts=experts,
        experts_per_token=max(model.num_experts_per_tok, 1),
        family=model.model_type,
        method=config.method,
        quantization="" if config.quantization == "none" else config.quantization,
        double_quant=config.double_quant,
        weights_dtype=config.weights_dtype,
        precision=config.precision,
        state_dtype=row.state_dtype or "fp32",
        optimizer=_OPTIMIZERS.get(config.optimizer, config.optimizer),
        lora_rank=config.lora_rank,
        lora_targets=_targets(row.lora_targets or ""),
        micro_batch=config.micro_batch,
        seq_len=config.seq_len,
        checkpointing=config.checkpointing,
        attention=config.attention,
        loss=config.loss,
        gpus=config.gpus_per_node if hybrid else config.gpus,
        gpus_per_node=config.gpus_per_node,
        shard_stage=_shard_stage(config),
        offload=config.offload,
        tp=config.tp,
        sequence_parallel=config.sequence_parallel,
        pp=config.pp,
        cp=config.cp,
        ep=config.ep,
        gpu_memory_bytes=config.gpu.memory_bytes if config.gpu else 0,
    )


def _shard_stage(config: TrainConfig) -> int:
    return config.zero or _STAGE.get(config.fsdp, 0)


def _targets(stated: str) -> tuple[str, ...]:
    """Projections by the words of the rows, without repetition."""
    found: list[str] = []
    for word in stated.split(","):
        found.extend(_TARGETS.get(word.strip(), (word.strip(),)))
    return tuple(dict.fromkeys(found))
