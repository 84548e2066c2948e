"""A search as CSV: a row for every plan of the ranking and of the front.

``ties`` counts the plans that come to the same as the one of the row.
"""

from __future__ import annotations

import csv
import sys

from vram_plan.app.search_json import plan_document
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.wish import Found, Wish

_OPTIONS = ("model", "gpu", "gpus", "engine", "zero", "fsdp", "tp", "pp", "cp", "ep", "method")
_MORE = ("quantization", "offload", "checkpointing", "micro_batch", "grad_accum", "seq_len")
_FIGURES = (
    "required_bytes",
    "headroom_bytes",
    "tokens_per_second",
    "usd_per_hour",
    "usd_per_million_tokens",
    "hours",
    "usd",
    "kwh",
    "usd_power",
    "command",
)


def show(space: Space, wish: Wish, found: Found) -> None:
    """Print the rows."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    options = (*_OPTIONS, *_MORE)
    writer.writerow(("list", "rank", *options, *_FIGURES, "ties"))
    for name, plans in (("best", found.plans), ("pareto", found.front)):
        for rank, plan in enumerate(plans, 1):
            row = plan_document(space, wish, plan)
            chosen = (row["config"][option] for option in options)
            figures = (row[figure] for figure in _FIGURES)
            writer.writerow((name, rank, *chosen, *figures, len(plan.ties)))
