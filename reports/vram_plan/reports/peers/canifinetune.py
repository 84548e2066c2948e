"""canifinetune (PyPI): full, LoRA and QLoRA on one GPU, ``canifinetune/estimator/formulas.py``.

- weights in their type; of a quantized base the linear layers in 0.5 or 1 byte and scales (0.0625,
  0.017 with double quantization, int8 0.15), embeddings, head and norms in 4 bytes, and 2·h·f·2
  bytes of one dequantized projection;
- adapters, their gradients in 4 bytes; AdamW three copies of the parameter's type (fused two),
  8 bits 2.5 bytes;
- a layer's activations T·(9·h + 4.5·f) in the base's type (f in 4 bytes on a quantized base; 2.8·f
  without a gate; times the experts of a token), 5·a·s²·b more with eager attention; with
  checkpointing T·2·h a layer and one whole layer;
- logits T·V·(type + 12), whatever the loss;
- 8 % of the card for context and fragmentation. Its 5 % of safety is no prediction and is left out.
"""

from __future__ import annotations

from vram_plan.reports.peers.peer import Answer, Peer, refuse, refuse_sharding
from vram_plan.reports.peers.run import PeerInput

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
QUANTIZED = {"nf4": (0.5, 0.0625), "fp4": (0.5, 0.0625), "int8": (1.0, 0.15)}
DOUBLE_QUANT_SCALES = 0.017
OVERHEAD_SHARE = 0.08
COPIES = {"adamw": 3, "adamw-fused": 2, "sgd": 0}
EIGHT_BITS = ("adamw-8bit", "paged-adamw-8bit")
SCOPES = (
    {"q", "k", "v", "o"},
    {"q", "k", "v", "o", "gate", "up", "down"},
    {"q", "v"},
)
FAMILIES = ("llama", "qwen", "mistral", "mixtral", "gemma", "phi", "gpt2")


def _answer(run: PeerInput) -> Answer:
    _check(run)
    found = _weights(run) + _trained(run) + _activations(run)
    found += run.tokens * run.vocab_size * (DTYPE_BYTES[run.weights_dtype] + 12)
    total = found + OVERHEAD_SHARE * run.gpu_memory_bytes if run.gpu_memory_bytes else None
    ignores = ("fused loss",) if run.loss != "hf" else ()
    return Answer(tensors_bytes=found, total_bytes=total, ignores=ignores)


def _check(run: PeerInput) -> None:
    lora = run.method == "lora"
    refuse(run.method != "full" and not lora, f"no {run.method}")
    refuse(run.optimizer not in COPIES and run.optimizer not in EIGHT_BITS, f"no {run.optimizer}")
    refuse(run.weights_dtype not in DTYPE_BYTES, f"no {run.weights_dtype} weights")
    refuse(run.quantization not in {"", *QUANTIZED}, f"no {run.quantization}")
    refuse(bool(run.quantization) and not lora, "no training of a quantized base")
    refuse(run.checkpointing not in {"none", "full"}, f"no {run.checkpointing} checkpointing")
    refuse(lora and set(run.lora_targets) not in SCOPES, "no scope of targets like these")
    known = not run.family or run.family.startswith(FAMILIES)
    refuse(lora and not (known and run.gated_mlp), "no target modules of this family")
    refuse_sharding(run)


def _weights(run: PeerInput) -> float:
    if not run.quantization:
        return run.parameters * DTYPE_BYTES[run.weights_dtype]
    h = run.hidden_size
    tables = run.vocab_size * h * (1 if run.tied_embeddings else 2)
    kept = min(run.parameters, tables + run.num_layers * 2 * h + h)
    element, scales = QUANTIZED[run.quantization]
    if run.double_quant:
        scales = DOUBLE_QUANT_SCALES
    dequantized = 2 * h * run.intermediate_size * 2
    return (run.parameters - kept) * (element + scales) + 4 * kept + dequantized


def _adapters(run: PeerInput) -> int:
    h, f = run.hidden_size, run.intermediate_size
    kv = h // run.num_heads * run.num_kv_heads
    widths = {"q": 2 * h, "o": 2 * h, "k": h + kv, "v": h + kv}
    widths |= dict.fromkeys(("gate", "up", "down"), run.num_experts * (h + f))
    return run.lora_rank * run.num_layers * sum(widths[name] for name in run.lora_targets)


def _trained(run: PeerInput) -> float:
    """Adapters, gradients and optimizer states."""
    full = run.method == "full"
    count = run.parameters if full else _adapters(run)
    element = DTYPE_BYTES[run.weights_dtype] if full else 4
    states = 2.5 if run.optimizer in EIGHT_BITS else element * COPIES[run.optimizer]
    return count * ((0 if full else 4) + element + states)


def _activations(run: PeerInput) -> float:
    element = DTYPE_BYTES[run.weights_dtype]
    inner = (4.5 if run.gated_mlp else 2.8) * run.experts_per_token * run.intermediate_size
    layer: float = run.tokens * (9 * run.hidden_size * element)
    layer += run.tokens * inner * (4 if run.quantization else element)
    if not run.flash:
        layer += 5 * run.num_heads * run.seq_len * run.tokens * element
    if run.checkpointing == "none":
        return layer * run.num_layers
    return run.tokens * 2 * run.hidden_size * element * run.num_layers + layer


CANIFINETUNE = Peer(
    name="canifinetune", version="0.4.1", source="pypi:canifinetune", formula=_answer
)
