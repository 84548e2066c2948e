"""llm-analysis (cli99), ``llm_analysis/analysis.py``, `LLMAnalysis.training`: a lower bound.

``estimated_peak_memory_per_gpu`` = optimizer states + weights + max(activations, gradients) +
max(two layers' unsharded weights, the logits' gradient). Weights, activations and the embedding are
in 16 bits (``w16a16e16``), gradients in 4 bytes, Adam 12 bytes with its master weights; head and
embedding always share a table; the activations are those of all layers even with pipeline stages.
"""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.reports.peers.peer import Answer, Peer, refuse
from vram_plan.reports.peers.run import PeerInput

BYTES = 2
MASTER_BYTES = 4
MOMENT_BYTES = {"adam": 8, "adamw": 8, "adamw-fused": 8, "lion": 4, "sgd-momentum": 4, "sgd": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Parameters of a layer, and of what stands outside the layers."""

    attention: float
    mlp: int
    router: int
    norms: int
    embedding: int
    last_norm: int

    @classmethod
    def of(cls, run: PeerInput) -> _Parts:
        h, experts = run.hidden_size, run.num_experts
        kv_heads = max(run.num_kv_heads / run.tp, 1) * run.tp
        matrices = 3 if run.gated_mlp else 2
        return cls(
            attention=2 * h * h + 2 * h * (h * kv_heads / run.num_heads),
            mlp=matrices * h * run.intermediate_size * experts,
            router=h * experts if experts > 1 else 0,
            norms=2 * h,
            embedding=h * run.vocab_size,
            last_norm=h,
        )


def _answer(run: PeerInput) -> Answer:
    refuse(run.method != "full", "knows full training only")
    refuse(run.optimizer not in MOMENT_BYTES, f"no {run.optimizer}")
    refuse(run.precision in {"fp32", "tf32"}, "16 bits only")
    refuse(run.offload != "none", "no offload")
    refuse(run.cp > 1, "no context parallelism")
    refuse(run.checkpointing == "offload", "no offload of checkpoints")
    refuse(run.gpus % (run.tp * run.pp) > 0, "GPUs not divisible by tp · pp")
    parts = _Parts.of(run)
    weights = _weights(run, parts, run.shard_stage == 3)
    optimizer = _optimizer(run, parts)
    kept = max(_activations(run), _gradients(run, parts))
    logits = BYTES * run.vocab_size * run.tokens / run.tp
    found = weights + optimizer + kept + max(2 * BYTES * _layer(run, parts, 1, 1), logits)
    ignores = ("fp32 logits",) if run.loss == "hf" else ("fused loss",)
    return Answer(tensors_bytes=found, total_bytes=found, ignores=ignores)


def _ranks(run: PeerInput, sharded: bool) -> tuple[float, float]:
    """Over how many ranks a weight, and one of the experts, is spread."""
    data_parallel = run.gpus / (run.tp * run.pp)
    return (data_parallel, data_parallel / run.ep) if sharded else (1.0, 1.0)


def _layer(run: PeerInput, parts: _Parts, ranks: float, expert_ranks: float) -> float:
    """Parameters of a layer's weights on one GPU."""
    mlp = (parts.mlp / run.ep + parts.router) / run.tp / expert_ranks
    return parts.attention / run.tp / ranks + mlp + parts.norms / ranks


def _weights(run: PeerInput, parts: _Parts, sharded: bool) -> float:
    ranks, expert_ranks = _ranks(run, sharded)
    outside = (parts.embedding + parts.last_norm) / run.tp / ranks
    return BYTES * (_layer(run, parts, ranks, expert_ranks) * (run.num_layers // run.pp) + outside)


def _optimizer(run: PeerInput, parts: _Parts) -> float:
    ranks, expert_ranks = _ranks(run, run.shard_stage >= 1)
    mlp = parts.mlp / run.ep / run.tp / expert_ranks
    others = ((parts.attention + parts.router) / run.tp + parts.norms) / ranks
    outside = (parts.embedding + parts.last_norm) / run.tp / ranks
    count = (mlp + others) * (run.num_layers // run.pp) + outside
    return (MASTER_BYTES + MOMENT_BYTES[run.optimizer]) * count


def _gradients(run: PeerInput, parts: _Parts) -> float:
    ranks, expert_ranks = _ranks(run, run.shard_stage >= 2)
    mlp = parts.mlp / run.ep / run.tp / expert_ranks
    others = (parts.attention + parts.router + parts.norms) / run.tp / ranks
    outside = (parts.embedding + parts.last_norm) / run.tp / ranks
    return MASTER_BYTES * ((mlp + others) * (run.num_layers // run.pp) + outside)


def _activations(run: PeerInput) -> float:
    stream = run.tokens * run.hidden_size
    sequence = run.tp if run.sequence_parallel else 1
    ends = BYTES * (stream + run.vocab_size * run.tokens) / run.tp + 4 * stream / sequence
    if run.checkpointing == "full":
        return BYTES * stream / run.tp * run.num_layers + ends
    layer = _attention(run, sequence) + _feed_forward(run, sequence) + 2 * 4 * stream / sequence
    return layer * run.num_layers + ends


def _attention(run: PeerInput, sequence: int) -> float:
    """Input, four streams and the dropout's mask, and what attention itself keeps."""
    stream = run.tokens * run.hidden_size
    kept: float = 0.0
    if run.checkpointing == "none" and run.flash:
        kept = 2 * stream + 4 * run.num_heads * run.tokens
    elif run.checkpointing == "none":
        kept = 2 * run.num_heads * run.seq_len * run.tokens
    return BYTES * (stream / sequence + (4 * stream + kept) / run.tp) + stream / sequence


def _feed_forward(run: PeerInput, sequence: int) -> float:
    stream, chosen = run.tokens * run.hidden_size, run.experts_per_token
    inner = 2 * BYTES * run.intermediate_size * run.tokens * chosen / run.tp
    if run.num_experts == 1:
        return BYTES * stream / sequence + inner
    dispatch = stream * chosen + run.tokens * chosen + stream * chosen / sequence
    return BYTES * (2 * stream / sequence + dispatch) + inner


LLM_ANALYSIS = Peer(
    name="llm-analysis",
    version="d841e40",
    source="github:cli99/llm-analysis:llm_analysis/analysis.py",
    formula=_answer,
)
