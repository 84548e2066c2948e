"""EleutherAI's cookbook, ``calc/calc_transformer_mem.py``: Megatron-DeepSpeed's states and buffers.

P is computed: 2·V·h + s·h + 8·h·L + 2·h + 2·(1 + k/a)·L·h² + m·L·h·f, with m feed-forward matrices.
Per GPU of N, with t tensor- and p pipeline-parallel:

- weights 2·P/(t·p), at stage 3 also /N; gradients 4·P, from stage 2 on /N (not by t·p);
  optimizer 12·P (8·P for momentum alone and Muon), from stage 1 on /N (not by t·p);
- from stage 1 on several GPUs 5e8 elements of a bucket, at stage 3 1e9 live parameters more;
- activations T·h·L·34, without recomputation T·h·L·(34 + 5·a·s/h), in 16 bits.

fp32 runs keep weights in 4 bytes; the gradients stay 4·P and the rest as above.
"""

from __future__ import annotations

from vram_plan.reports.peers.peer import Answer, Peer, refuse
from vram_plan.reports.peers.run import PeerInput

STATES = {"adamw": 12, "adam": 12, "adamw-fused": 12, "muon": 8, "sgd-momentum": 8}
BUCKET_ELEMENTS = 500_000_000
LIVE_PARAMETERS = 1_000_000_000


def _answer(run: PeerInput) -> Answer:
    refuse(run.method != "full", "knows full training only")
    refuse(run.optimizer not in STATES, f"no {run.optimizer}")
    refuse(run.offload != "none", "no offload")
    refuse(run.cp > 1, "no context parallelism")
    found = _weights(run) + _states(run) + _communication(run) + _activations(run)
    ignores = ("logits", *(("flash attention",) if run.flash and _stores_all(run) else ()))
    return Answer(tensors_bytes=found, total_bytes=found, ignores=ignores)


def _stores_all(run: PeerInput) -> bool:
    return run.checkpointing in {"none", "offload"}


def _element(run: PeerInput) -> int:
    return 4 if run.precision in {"fp32", "tf32"} else 2


def _parameters(run: PeerInput) -> float:
    """Experts held by one rank included."""
    h, layers = run.hidden_size, run.num_layers
    ratio = run.num_kv_heads / run.num_heads
    matrices = 3 if run.gated_mlp else 2
    rest = 2 * run.vocab_size * h + h * run.seq_len + 8 * h * layers + 2 * h
    rest += int(2 * (1 + ratio) * layers * h * h)
    mlp = matrices * layers * h * run.intermediate_size
    return rest + mlp * (run.num_experts / run.ep if run.num_experts > 1 else 1)


def _weights(run: PeerInput) -> float:
    held = _parameters(run) * _element(run) / (run.tp * run.pp)
    return held / run.gpus if run.shard_stage == 3 else held


def _states(run: PeerInput) -> float:
    parameters = _parameters(run)
    gradients = 4 * parameters / (run.gpus if run.shard_stage >= 2 else 1)
    optimizer = STATES[run.optimizer] * parameters / (run.gpus if run.shard_stage >= 1 else 1)
    return gradients + optimizer


def _communication(run: PeerInput) -> int:
    if run.gpus == 1 or run.shard_stage == 0:
        return 0
    live = LIVE_PARAMETERS if run.shard_stage == 3 else 0
    return (BUCKET_ELEMENTS + live) * _element(run)


def _activations(run: PeerInput) -> float:
    per_element = 34.0
    if _stores_all(run):
        per_element += 5 * run.num_heads * run.seq_len / run.hidden_size
    return run.tokens * run.hidden_size * run.num_layers * per_element


ELEUTHER = Peer(
    name="EleutherAI cookbook",
    version="827ee3b",
    source="github:EleutherAI/cookbook:calc/calc_transformer_mem.py",
    formula=_answer,
)
