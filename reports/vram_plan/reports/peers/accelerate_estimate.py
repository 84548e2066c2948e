"""Accelerate's ``estimate-memory``: bytes per parameter, nothing that depends on the data.

``src/accelerate/commands/estimate.py``, `estimate_training_usage`: with B bytes of fp32 weights the
column "Training using Adam" is the largest of weights, gradients, moments and step: 4·B in fp32,
2·B in float16. The model is built with ``AutoModel``, which leaves out the head.
"""

from __future__ import annotations

from vram_plan.reports.peers.peer import Answer, Peer, refuse, refuse_sharding
from vram_plan.reports.peers.run import PeerInput

FP32_BYTES = 4


def _answer(run: PeerInput) -> Answer:
    refuse(run.method != "full", "knows full training only")
    refuse(bool(run.quantization), "no training of a quantized base")
    refuse(run.optimizer not in {"adam", "adamw", "adamw-fused"}, "knows Adam only")
    refuse_sharding(run)
    head = 0 if run.tied_embeddings else run.vocab_size * run.hidden_size
    weights = FP32_BYTES * (run.parameters - head)
    times = 4 if run.precision in {"fp32", "tf32"} else 2
    found = times * weights
    return Answer(tensors_bytes=found, total_bytes=found, ignores=("activations", "logits"))


ACCELERATE = Peer(
    name="accelerate estimate-memory",
    version="1.15.0",
    source="github:huggingface/accelerate:src/accelerate/commands/estimate.py",
    formula=_answer,
)
