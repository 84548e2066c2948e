"""The sequences of a file as what a step is fed."""

from collections.abc import Sequence
from itertools import cycle

import torch

from vram_plan.bench.runs.examples import IGNORED, Sequences
from vram_plan.bench.trace.config import TraceConfig

__all__ = ["Batch", "batches_of"]

Batch = dict[str, torch.Tensor]


def batches_of(
    sequences: Sequences, config: TraceConfig, rank: int, ranks: int, device: torch.device
) -> list[Batch]:
    """A rank's micro-batches of a file, in its order; the last ones begin again at the front."""
    rows = sequences.rows
    count = -(-len(rows) // (config.batch * ranks))
    supply = cycle(range(len(rows)))
    made = []
    for _ in range(count):
        for owner in range(ranks):
            chosen = [rows[next(supply)] for _ in range(config.batch)]
            if owner == rank:
                made.append(_batch(chosen, device, padded=sequences.padded))
    return made


def _batch(rows: Sequence[Sequence[int]], device: torch.device, *, padded: bool) -> Batch:
    labels = torch.tensor(rows, dtype=torch.long, device=device)
    if not padded:
        return {"input_ids": labels, "labels": labels}
    real = labels != IGNORED
    return {
        "input_ids": labels.clamp(min=0),
        "labels": labels,
        "attention_mask": real.to(torch.long),
    }
