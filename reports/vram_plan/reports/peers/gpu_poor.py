"""gpu_poor (RahulSChand): a web page for one GPU, ``src/App.js``.

Parameters 2·V·h + 4·L·h² + 3·L·f·h. With len = s, everything in 16 bits:

- weights 2 bytes; bitsandbytes int8 and 4-bit halve and quarter them and add 6 % of the 16-bit
  size; QLoRA is a quarter less 1/32 byte a parameter plus the 6 %;
- full training with Adam 3 × the weights, with SGD 1 ×; LoRA L·8·h·2·4·(3 for Adam, 1)·2 whatever
  the rank, on int8 and 4-bit half of that plus an extra; QLoRA L·8·h·0.5·4·(3 or 1) plus an extra;
- the extra: factor·(15·h + 6·f)·L·50·√(max(1, s/50))·b, factor 0.75 for QLoRA, 0.75·1.25 for int8,
  1 for 4-bit;
- activations b·L·(8·s·h·2 + 2·s²·a·2 + 4·s²·a + 2·s·h·2 + 6·s·f·2 + 8·s + 6·s·h·2), × 0.15 with
  checkpointing;
- 650 MiB of overhead.
"""

from __future__ import annotations

from math import sqrt

from vram_plan.reports.peers.peer import MIB, Answer, Peer, refuse, refuse_sharding
from vram_plan.reports.peers.run import PeerInput

OVERHEAD_BYTES = 650 * MIB
ADAM = ("adam", "adamw", "adamw-fused")
EXTRA = {"qlora": 0.75, "int8": 0.75 * 1.25}


def _answer(run: PeerInput) -> Answer:
    refuse(run.method not in {"full", "lora"}, f"no {run.method}")
    refuse(run.optimizer not in (*ADAM, "sgd"), f"no {run.optimizer}")
    refuse(run.precision in {"fp32", "tf32"}, "computes in 16 bits only")
    refuse(run.num_experts > 1, "counts one expert")
    refuse(run.quantization not in {"", "nf4", "fp4", "int8"}, f"no {run.quantization}")
    refuse(run.method == "full" and bool(run.quantization), "no training of a quantized base")
    refuse(run.checkpointing not in {"none", "full"}, f"no {run.checkpointing} checkpointing")
    refuse_sharding(run)
    kind = {"": "", "int8": "int8"}.get(run.quantization, "qlora")
    found = _weights(run, kind) + _states(run, kind) + _activations(run)
    ignores = ("logits", *(("flash attention",) if run.flash else ()))
    return Answer(tensors_bytes=found, total_bytes=found + OVERHEAD_BYTES, ignores=ignores)


def _parameters(run: PeerInput) -> int:
    h, layers = run.hidden_size, run.num_layers
    return 2 * run.vocab_size * h + 4 * layers * h * h + 3 * layers * run.intermediate_size * h


def _weights(run: PeerInput, kind: str) -> float:
    parameters = _parameters(run)
    size = 2 * parameters
    if kind == "int8":
        return size / 2 + 0.06 * size
    if kind == "qlora":
        return size / 4 - 2 * parameters / 64 + 0.06 * size
    return size


def _states(run: PeerInput, kind: str) -> float:
    copies = 3 if run.optimizer in ADAM else 1
    if run.method == "full":
        return 2 * _parameters(run) * copies
    adapters = run.num_layers * 8 * run.hidden_size * 4 * copies
    if kind == "qlora":
        return adapters * 0.5 + _extra(run, kind)
    if kind == "int8":
        return adapters * 2 + _extra(run, kind)
    return adapters * 2 * 2


def _extra(run: PeerInput, kind: str) -> float:
    common = (15 * run.hidden_size + 6 * run.intermediate_size) * run.num_layers
    return EXTRA[kind] * common * 50 * sqrt(max(1.0, run.seq_len / 50)) * run.micro_batch


def _activations(run: PeerInput) -> float:
    s, h, heads = run.seq_len, run.hidden_size, run.num_heads
    attention = 16 * s * h + 8 * s * s * heads
    feed_forward = 4 * s * h + 12 * s * run.intermediate_size
    norms = 8 * s + 12 * s * h
    total = (attention + feed_forward + norms) * run.num_layers * run.micro_batch
    return total * (0.15 if run.checkpointing == "full" else 1.0)


GPU_POOR = Peer(
    name="gpu_poor",
    version="ad2fc0e",
    source="github:RahulSChand/gpu_poor:src/App.js",
    formula=_answer,
)
