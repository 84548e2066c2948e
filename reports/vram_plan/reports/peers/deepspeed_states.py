"""DeepSpeed's estimators of the model states under ZeRO 2 and 3.

`estimate_zero2_model_states_mem_needs` (``deepspeed/runtime/zero/stage_1_and_2.py``) and
`estimate_zero3_model_states_mem_needs` (``stage3.py``), P parameters over N GPUs, L those of the
largest module that holds parameters itself:

- stage 2: 2·P + 18·P/N; with the optimizer on the host 2·P;
- stage 3: 4·L + 18·P/N; with the optimizer on the host 4·L + 2·P/N; with the weights too 4·L.

Every parameter counts as trained (microsoft/DeepSpeed#5304).
"""

from __future__ import annotations

from vram_plan.reports.peers.peer import Answer, Peer, refuse
from vram_plan.reports.peers.run import PeerInput


def _answer(run: PeerInput) -> Answer:
    refuse(run.shard_stage < 2, "there is no estimator below stage 2")
    refuse(run.method != "full", "counts every parameter as trained")
    refuse(max(run.tp, run.pp, run.cp, run.ep) > 1, "no model parallelism")
    refuse(run.offload not in {"none", "optimizer", "optimizer+params"}, f"no {run.offload}")
    found = _stage2(run) if run.shard_stage == 2 else _stage3(run)
    ignores = ("activations", "logits", "buckets")
    return Answer(tensors_bytes=found, total_bytes=found, ignores=ignores)


def _stage2(run: PeerInput) -> int:
    if run.offload != "none":
        return 2 * run.parameters
    return 2 * run.parameters + int(18 * run.parameters / run.gpus)


def _stage3(run: PeerInput) -> int:
    largest = 4 * largest_layer(run)
    if run.offload == "optimizer+params":
        return largest
    if run.offload == "optimizer":
        return largest + int(2 * run.parameters / run.gpus)
    return largest + int(18 * run.parameters / run.gpus)


def largest_layer(run: PeerInput) -> int:
    """The module with the most parameters of its own: the embedding or a feed-forward matrix."""
    return run.hidden_size * max(run.vocab_size, run.intermediate_size)


DEEPSPEED = Peer(
    name="DeepSpeed estimate_zero2/3",
    version="0.19.8",
    source="github:deepspeedai/DeepSpeed:deepspeed/runtime/zero",
    formula=_answer,
)
