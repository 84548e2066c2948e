"""Pipeline stages: which segments a stage holds and how many micro-batches wait in it.

Narayanan et al., arXiv:2104.04473, sections 2.2 and 3.5: GPipe keeps every micro-batch of a step
until the backward passes begin; 1F1B keeps at most as many as there are stages from this one on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.rank import Passes
from vram_plan.estimator.sharding.base import PASS_INSTANTS, Rank
from vram_plan.estimator.sharding.pipe_buffers import waiting_logits
from vram_plan.estimator.step import gradient_bytes, pass_entries

SOURCE = "arXiv:2104.04473 section 2.2; Megatron-LM megatron/core/pipeline_parallel/schedules.py"


def stages(config: TrainConfig, passes: Passes) -> tuple[Rank, ...]:
    """The distinct stages of a pipeline, first to last."""
    parts = split(passes.links, config.pp)
    whole = passes.inventory
    found: list[Rank] = []
    for index, links in enumerate(parts):
        if 1 < index < len(parts) - 1 and _alike(links, parts[index - 1]):
            continue
        inventory = replace(take_inventory(links), scale=whole.scale)
        stage = replace(
            passes,
            links=links,
            opened=sum(link.opened for link in links),
            inventory=inventory,
            entries=tuple(pass_entries(links)),
            gradients=gradient_bytes(links),
        )
        found.append(Rank(config=config, passes=stage, waiting=_waiting(config, links, index)))
    return tuple(found)


def in_flight(config: TrainConfig, stage: int) -> float:
    """Micro-batches whose activations a stage holds at its fullest.

    1F1B: min(stages left, micro-batches), arXiv:2104.04473 section 2.2.1. Interleaved: the warm-up
    of ``get_pp_rank_microbatches`` (2 · (p − rank − 1) + (v − 1) · p chunks, and the one that runs)
    over v chunks, so 1 + (p − 1) / (p · v) times 1F1B's p on the first stage (arXiv:2205.05198
    section 4.2.3).
    """
    waves, depth = config.grad_accum, config.pp
    if config.pp_schedule == "naive":
        return 1.0
    if config.pp_schedule == "gpipe":
        return float(waves)
    if config.pp_schedule == "interleaved" and config.virtual_pipeline > 1:
        pieces = config.virtual_pipeline
        chunks = 2 * (depth - stage - 1) + (pieces - 1) * depth + 1
        return min(chunks, waves * pieces) / pieces
    return float(min(depth - stage, waves))


def _waiting(config: TrainConfig, links: tuple[Link, ...], index: int) -> tuple[Entry, ...]:
    """Activations of the micro-batches in flight besides the one that runs."""
    others = in_flight(config, index) - 1
    # Chunks in flight are not the one with the head: that one goes back right away.
    headless = config.pp_schedule != "gpipe"
    saved = sum(
        sum(link.cost.saved.values()) * link.count
        for link in links
        if not (headless and link.segment.kind == "head")
    )
    return (
        Entry(
            component="activations",
            name="activations of other micro-batches in the pipeline",
            bytes=ceil(max(others, 0.0) * saved),
            formula=f"{others:g} micro-batches · {saved:,} bytes kept by stage {index}",
            source=SOURCE,
            alive=PASS_INSTANTS,
        ),
        *waiting_logits(config, links),
    )


def split(links: tuple[Link, ...], depth: int) -> list[tuple[Link, ...]]:
    """Blocks divided evenly, the rest to the first stages; what is not a block goes along.

    An embedding goes with the block after it, a norm or a head with the block before it.
    """
    blocks = sum(link.count for link in links if link.segment.kind == "layer")
    base, rest = divmod(blocks, depth)
    ends = [base * (i + 1) + min(i + 1, rest) for i in range(depth)]
    parts: list[list[Link]] = [[] for _ in range(depth)]
    done = 0
    for link in links:
        if link.segment.kind != "layer":
            ahead = done if link.segment.kind == "embedding" else max(done - 1, 0)
            parts[_stage_of(ahead, ends)].append(link)
            continue
        for stage, piece in _pieces(link, done, ends):
            parts[stage].append(piece)
        done += link.count
    return [tuple(part) for part in parts]


def _stage_of(block: int, ends: list[int]) -> int:
    return next((i for i, end in enumerate(ends) if block < end), len(ends) - 1)


def _pieces(link: Link, done: int, ends: list[int]) -> Iterator[tuple[int, Link]]:
    """A run of equal blocks cut at the stages' ends."""
    at, last = done, done + link.count
    while at < last:
        stage = _stage_of(at, ends)
        upto = min(ends[stage], last)
        yield stage, replace(link, count=upto - at, first=link.first + at - done)
        at = upto


def _alike(links: tuple[Link, ...], others: tuple[Link, ...]) -> bool:
    """Whether two stages cost the same; the earlier one holds more micro-batches."""
    return [(link.count, link.cost) for link in links] == [
        (link.count, link.cost) for link in others
    ]
