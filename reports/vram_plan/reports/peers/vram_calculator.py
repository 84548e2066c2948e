"""furiousteabag's vram-calculator (vram.asmirnov.xyz), ``app/_lib/index.ts``.

1,000 MiB for CUDA; parameters 6 bytes in mixed precision, 4 in full; gradients 4, moments 4 each;
FSDP divides these by the GPUs. Outputs 4·b·s·V·2. Activations of a layer, B bytes an element:
attention 5 widths of the stream in B (GQA narrows keys and values), two B·a·s² tensors, one byte
of mask for each of them and of the block's output; feed-forward B·T·(h + 2·f) + T·h; norms 2·B·T·h.
There is no option for checkpointing, flash attention, adapters or quantization.
"""

from __future__ import annotations

from vram_plan.reports.peers.peer import MIB, Answer, Peer, refuse
from vram_plan.reports.peers.run import PeerInput

CUDA_BYTES = 1000 * MIB
MOMENTS = {"adam": 2, "adamw": 2, "adamw-fused": 2, "sgd-momentum": 1, "sgd": 0}


def _answer(run: PeerInput) -> Answer:
    refuse(run.method != "full", "knows full training only")
    refuse(run.optimizer not in MOMENTS, f"no {run.optimizer}")
    refuse(run.offload != "none", "no offload")
    refuse(run.num_experts > 1, "counts one expert")
    refuse(run.shard_stage in {1, 2}, "shards all states or none")
    refuse(max(run.tp, run.pp, run.cp, run.ep) > 1, "no model parallelism")
    full = run.precision in {"fp32", "tf32"}
    per_parameter = (4 if full else 6) + 4 + 4 * MOMENTS[run.optimizer]
    states = per_parameter * run.parameters / (run.gpus if run.shard_stage == 3 else 1)
    outputs = 8 * run.tokens * run.vocab_size
    found = states + outputs + _activations(run, 4 if full else 2)
    flags = {"checkpointing": run.checkpointing != "none", "flash attention": run.flash}
    ignores = tuple(name for name, on in flags.items() if on)
    return Answer(tensors_bytes=found, total_bytes=found + CUDA_BYTES, ignores=ignores)


def _activations(run: PeerInput, element: int) -> float:
    tokens, h = run.tokens, run.hidden_size
    kv = run.hidden_size / run.num_heads * run.num_kv_heads
    scores = run.num_heads * run.seq_len * tokens
    attention = element * tokens * (3 * h + 2 * kv) + (2 * element + 1) * scores + tokens * h
    feed_forward = element * tokens * (h + 2 * run.intermediate_size) + tokens * h
    return (attention + feed_forward + 2 * element * tokens * h) * run.num_layers


VRAM_CALCULATOR = Peer(
    name="vram-calculator",
    version="ea7ab04",
    source="github:furiousteabag/vram-calculator:app/_lib/index.ts",
    formula=_answer,
)
