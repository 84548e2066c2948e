"""DeepSpeed's pipeline engine: results of the last stage that wait in its other buffer.

Every micro-batch has a buffer, two in turn on the last stage (``TrainSchedule.num_pipe_buffers``).
What a stage has made is put into the micro-batch's buffer and taken out after its backward pass,
but the last stage returns before that (``_exec_backward_pass``): its logits stay until the next but
one micro-batch takes their place. deepspeed 0.19.8 ``deepspeed/runtime/pipe/engine.py``.
"""

from __future__ import annotations

from vram_plan.estimator.blocks.megatron import padded_rows
from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.base import PASS_INSTANTS

__all__ = ["waiting_logits"]

SOURCE = "deepspeed 0.19.8 deepspeed/runtime/pipe/engine.py _exec_backward_pass"


def waiting_logits(config: TrainConfig, links: tuple[Link, ...]) -> tuple[Entry, ...]:
    """The logits of the micro-batch before, on the stage with the head; none elsewhere."""
    last = any(link.segment.kind == "head" for link in links)
    if config.engine != "megatron-deepspeed" or not last or config.grad_accum == 1:
        return ()
    tokens = config.micro_batch * -(-config.seq_len // config.cp)
    rows = padded_rows(config.model, config.tp)
    return (
        Entry(
            component="logits",
            name="logits of the micro-batch before, in the engine's other buffer",
            bytes=tokens * rows * config.compute_bytes,
            formula=f"{tokens:,} tokens · {rows:,} entries · {config.compute_bytes} bytes",
            source=SOURCE,
            alive=PASS_INSTANTS,
        ),
    )
