"""A model as a chain of segments: every segment's cost, repeated ones simulated once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vram_plan.estimator.carried import Journeys
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.quantization import ends_in
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.simulate import RECOMPUTED, Boundary, Cost, Run, simulate
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """``count`` segments in a row with one cost; ``first`` is the index of the first block.

    Attributes:
        run: what each of them is run with; None where nothing is computed.
        beside_forward: what the engine holds beside the tape while each of them runs forward
            (gathered weights, buffers); an engine's ``links(rank)`` puts it there.
        beside_backward: the same while each of them goes back.
    """

    segment: Segment
    count: int
    first: int
    cost: Cost
    run: Run | None = None
    beside_forward: tuple[Entry, ...] = ()
    beside_backward: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The data of one micro-batch on this rank, and what is done to every segment."""

    batch: int
    seq: int
    source_seq: int = 0
    checkpoint: str = "none"
    keeps_gradients: bool = True


def build_chain(
    spec: ModelSpec, composition: Composition, how: Treatment, shape: Shape
) -> tuple[Link, ...]:
    """Simulate the segments in forward order, each with the boundary tensor the last one left."""
    links: list[Link] = []
    entered: Boundary | None = None
    journeys = Journeys(composition.segments, prompted=how.method.virtual_tokens > 0)
    source = (shape.source_seq or shape.seq) if spec.is_encoder_decoder else 0
    for i, segment in enumerate(composition.segments):
        entered = None if segment.kind == "embedding" else entered
        run = Run(
            spec=spec,
            how=how,
            segment=segment,
            composition=composition,
            batch=shape.batch,
            seq=shape.seq,
            source_seq=source,
            layer=segment.first,
            entered=entered,
            checkpoint=_checkpoint(shape.checkpoint, segment),
            keeps_gradients=shape.keeps_gradients,
            awaited=journeys.awaited(i),
            input_gradients=(segment.kind == "embedding" and shape.checkpoint in RECOMPUTED),
            input_stays=segment.kind == "embedding" and shape.checkpoint == "offload",
        )
        for link in _repeat(run, journeys, i):
            links.append(link)
            entered = link.cost.left
    _return_late(links)
    return tuple(links)


def names_output(link: Link, reader: Link) -> bool:
    """Whether a variable holds a segment's output where neither autograd nor a method does."""
    cost = link.cost
    return link.segment.named and not (reader.cost.keeps_input or cost.passed or cost.keeps_output)


def _return_late(links: list[Link]) -> None:
    """Let the block that made the others' prefixes wait for their gradients."""
    late = sum(link.cost.left_late * link.count for link in links)
    maker = next((i for i, link in enumerate(links) if link.cost.left_late), 0) - 1
    made = links[maker].run if late else None
    if made is not None:
        run = replace(made, late=late)
        links[maker] = replace(links[maker], run=run, cost=simulate(run))


def _repeat(run: Run, journeys: Journeys, i: int) -> Iterator[Link]:
    """Segment ``i``, ``count`` times: a new simulation only where its surroundings change."""
    index, end = run.layer, run.layer + run.segment.count
    while index < end:
        run = replace(run, layer=index, carried=journeys.carried(i, last_piece=index == end - 1))
        alike = _first_alike(run)
        cost = simulate(alike)
        journeys.note(cost)
        key = _treated(run, index)
        after = index + 1
        if cost.left == run.entered:
            while (
                after < end
                and _treated(run, after) == key
                and journeys.carried(i, last_piece=after == end - 1) == run.carried
            ):
                after += 1
        yield Link(segment=run.segment, count=after - index, first=index, cost=cost, run=alike)
        index = after
        run = replace(run, entered=cost.left)


def _first_alike(run: Run) -> Run:
    """The same run at a decoder's first block that is treated alike: both share a simulation."""

    def traits(layer: int) -> tuple[tuple[int, bool], bool, bool]:
        spec = run.spec
        return _treated(run, layer), spec.is_windowed(layer), spec.is_sparse(layer)

    if run.layer <= 0 or run.spec.is_encoder_decoder:
        return run
    mine = traits(run.layer)
    first = next(layer for layer in range(run.layer + 1) if traits(layer) == mine)
    return replace(run, layer=first, segment=replace(run.segment, count=1, first=first))


def _treated(run: Run, layer: int) -> tuple[int, bool]:
    """Blocks for which this is equal are treated alike by the method and the quantization."""
    return run.how.method.layer_key(layer), ends_in(run.spec, run.how, layer)


def _checkpoint(wanted: str, segment: Segment) -> str:
    """Only layers are recomputed; paging out concerns every saved tensor."""
    return wanted if segment.kind == "layer" or wanted == "page-out" else "none"
