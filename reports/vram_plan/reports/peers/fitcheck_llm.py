"""fitcheck-llm (PyPI): dense gated decoders on one GPU, ``fitcheck/estimator.py`` and ``memory/``.

- weights in the compute type; of an NF4 or int8 base 0.5 or 1 byte and 4/64 of scales (a quarter
  of it with double quantization), embeddings, head and norms in 4 bytes;
- adapters and their gradients in 4 bytes; AdamW 8 bytes (4 with bf16 moments), 8 bits 2; full
  training in 16 bits adds master weights of 4;
- a layer's activations T·(12·h + 3·q + kv + 3·f) in the compute type (fp32 on int8), eager
  attention 2.9 kept or, recomputed, 7.4 (9 on a quantized base) probability matrices;
- logits 3.5 (4 on a quantized base) × 4·T·V; with checkpointing the layers' inputs (4 bytes on NF4,
  two of them on int8) and the larger of one layer and the logits, else all of both;
- 500 MiB and 5 % of weights and activations. Its measured profiles of a Tesla T4 are left out.

A model whose parameters differ by more than 2 % from those of a gated decoder without biases is
refused.
"""

from __future__ import annotations

from vram_plan.reports.peers.peer import MIB, Answer, Peer, refuse, refuse_sharding
from vram_plan.reports.peers.run import PeerInput

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MOMENTS = {"adamw": 8, "adamw-fused": 8, "adamw-8bit": 2, "sgd": 0, "sgd-momentum": 4}
QUANTIZED = {"nf4": 0.5, "int8": 1.0}
SCALES, DOUBLE_QUANT = 4 / 64, 0.25390625
TARGETS = frozenset({"q", "k", "v", "o", "gate", "up", "down"})
CONTEXT_BYTES, FRAGMENTATION = 500 * MIB, 0.05
COUNT_TOLERANCE = 0.02


def _answer(run: PeerInput) -> Answer:
    _check(run)
    weights, activations = _weights(run), _activations(run)
    found = weights + _trained(run) + activations
    total = found + CONTEXT_BYTES + FRAGMENTATION * (weights + activations)
    ignores = ("fused loss",) if run.loss != "hf" else ()
    return Answer(tensors_bytes=found, total_bytes=total, ignores=ignores)


def _check(run: PeerInput) -> None:
    lora = run.method == "lora"
    refuse(run.method != "full" and not lora, f"no {run.method}")
    refuse(run.optimizer not in MOMENTS, f"no {run.optimizer}")
    refuse(run.precision not in DTYPE_BYTES, f"no {run.precision}")
    refuse(run.quantization not in {"", *QUANTIZED}, f"no {run.quantization}")
    refuse(bool(run.quantization) and not lora, "no training of a quantized base")
    refuse(run.checkpointing not in {"none", "full"}, f"no {run.checkpointing} checkpointing")
    refuse(lora and not set(run.lora_targets) <= TARGETS, "no targets like these")
    refuse(run.num_experts > 1, "refuses mixtures of experts")
    off = abs(run.parameters - _dense_parameters(run)) / run.parameters
    refuse(off > COUNT_TOLERANCE, "refuses what is not a gated decoder without biases")
    refuse_sharding(run)


def _widths(run: PeerInput) -> tuple[int, int]:
    return run.num_heads * run.head_dim, run.num_kv_heads * run.head_dim


def _dense_parameters(run: PeerInput) -> int:
    h, (q, kv) = run.hidden_size, _widths(run)
    layer = 2 * h * q + 2 * h * kv + 3 * h * run.intermediate_size + 2 * h
    return run.num_layers * layer + h + _tables(run)


def _tables(run: PeerInput) -> int:
    return run.vocab_size * run.hidden_size * (1 if run.tied_embeddings else 2)


def _weights(run: PeerInput) -> float:
    if not run.quantization:
        return run.parameters * DTYPE_BYTES[run.precision]
    kept = _tables(run) + (2 * run.num_layers + 1) * run.hidden_size
    scales = SCALES * (DOUBLE_QUANT if run.double_quant else 1)
    return (run.parameters - kept) * (QUANTIZED[run.quantization] + scales) + 4 * kept


def _adapters(run: PeerInput) -> int:
    h, f, (q, kv) = run.hidden_size, run.intermediate_size, _widths(run)
    widths = {"q": h + q, "o": h + q, "k": h + kv, "v": h + kv}
    widths |= dict.fromkeys(("gate", "up", "down"), h + f)
    return run.lora_rank * run.num_layers * sum(widths[name] for name in run.lora_targets)


def _trained(run: PeerInput) -> float:
    """Adapters, gradients and optimizer states."""
    states = MOMENTS[run.optimizer]
    if run.optimizer in {"adamw", "adamw-fused"} and run.state_dtype == "bf16":
        states = 4
    if run.method != "full":
        return _adapters(run) * (4 + 4 + states)
    master = 0 if run.precision == "fp32" else 4
    return run.parameters * (DTYPE_BYTES[run.precision] + states + master)


def _activations(run: PeerInput) -> float:
    h, (q, kv) = run.hidden_size, _widths(run)
    element = 4 if run.quantization == "int8" else DTYPE_BYTES[run.precision]
    layer: float = element * run.tokens * (12 * h + 3 * q + kv + 3 * run.intermediate_size)
    scores = 0 if run.flash else element * run.num_heads * run.seq_len * run.tokens
    logits = (4 if run.quantization else 3.5) * 4 * run.tokens * run.vocab_size
    if run.checkpointing == "none":
        return (layer + 2.9 * scores) * run.num_layers + logits
    layer += (9 if run.quantization else 7.4) * scores
    stored = {"nf4": 4, "int8": 2 * element}.get(run.quantization, element)
    return stored * run.num_layers * run.tokens * h + max(logits, layer)


FITCHECK = Peer(name="fitcheck-llm", version="0.3.1", source="pypi:fitcheck-llm", formula=_answer)
