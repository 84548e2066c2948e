"""A model as a chain of segments: every segment's cost, repeated ones simulated once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from vram_plan.estimator.carried import Journeys
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.quantization import ends_in
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.shared import SharedBytes, shared_bytes
from vram_plan.estimator.simulate import RECOMPUTED, Boundary, Cost, Run, simulate
from vram_plan.estimator.tensors import rounded
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
        opens: bytes of shared tensors that live until one of these blocks has gone back, with it.
    """

    segment: Segment
    count: int
    first: int
    cost: Cost
    run: Run | None = None
    beside_forward: tuple[Entry, ...] = ()
    beside_backward: tuple[Entry, ...] = ()
    opens: tuple[tuple[int, int], ...] = ()

    @property
    def opened(self) -> int:
        """Bytes of those whose block is among these."""
        blocks = range(self.first, self.first + self.count)
        return sum(nbytes for block, nbytes in self.opens if block in blocks)


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
    shared = shared_bytes(spec, composition, how, shape)
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
            local=shared.passing + named_bytes(links) if segment.kind == "head" else 0,
        )
        for link in _repeat(run, journeys, i):
            links.append(link)
            entered = link.cost.left
    _return_late(links)
    return tuple(_open(_hand_back(links), shared))


def _open(links: list[Link], shared: SharedBytes) -> Iterator[Link]:
    """Note what the first block of its kind that goes back lets go of."""
    found = []
    for layers, nbytes in shared.some:
        back = (link for link in links if link.segment.kind == "layer" and link.cost.backward)
        blocks = [block for link in back for block in range(link.first, link.first + link.count)]
        found.append((min(set(layers) & set(blocks), default=layers[0]), nbytes))
    for link in links:
        mine = tuple(one for one in found if link.first <= one[0] < link.first + link.count)
        yield replace(link, opens=mine) if mine else link


def named_bytes(links: Iterable[Link]) -> int:
    """Bytes of the outputs that a variable of the model's forward holds and autograd does not."""
    named = (link for link, reader in pairwise(links) if names_output(link, reader))
    return sum(rounded(link.cost.left.nbytes) for link in named)


def names_output(link: Link, reader: Link) -> bool:
    """Whether a variable holds a segment's output where neither autograd nor a method does."""
    cost = link.cost
    return link.segment.named and not (reader.cost.keeps_input or cost.passed or cost.keeps_output)


def _return_late(links: list[Link]) -> None:
    """Let the first segment, before which all prefixes are made, wait for their gradients."""
    late = sum(link.cost.left_late * link.count for link in links)
    made = links[0].run if late else None
    if made is not None:
        run = replace(made, late=late)
        links[0] = replace(links[0], run=run, cost=simulate(run))


def _hand_back(links: list[Link]) -> list[Link]:
    """Let the gradient that a segment leaves keep its component in the one before.

    A head that does not begin with a norm leaves one of the logits'. It is the last of the blocks
    before it that gets this one: a link of its own.
    """
    found: list[Link] = []
    for link in reversed(links):
        incoming = found[-1].cost.outgoing if found else ""
        if incoming != "logits" or link.run is None:
            found.append(link)
            continue
        run, before = replace(link.run, incoming=incoming), link.count - 1
        first = link.first + before if link.first >= 0 else link.first
        found.append(replace(link, count=1, first=first, run=run, cost=simulate(run)))
        if before:
            found.append(replace(link, count=before))
    return found[::-1]


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
