"""The weights of a model in the order of its forward pass, as ZeRO cuts and reduces them.

Nothing here depends on the data of a micro-batch, so a layout is made once for many plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from vram_plan.estimator.chain import Link
from vram_plan.estimator.sharding.zero_bucket import Reduction, cut, flattened, reductions, slices

Key = tuple[int, int, str]
"""(link, layer, name) of a block's weight; (−1, −1, name) outside the blocks."""
Structure = tuple["LinkShape", ...]
_FIRST = frozenset({"self_attn", "mlp"})
_LEAVES = frozenset({"mixtral", "qwen2_moe", "qwen3_moe"})
"""Models whose sparse feed-forward parts are one module for ZeRO 3 (DeepSpeed 0.19.8
``runtime/zero/leaf_module_config.py`` DEFAULT_LEAF_MODULE_CLASSES)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One weight where the forward pass first needs it.

    Attributes:
        numel: elements, those of a size class stretched to its nominal size.
        itemsize: bytes of one as DeepSpeed holds it.
        trainable: a gradient is made for it.
        link: index of its segment in the chain.
        layer: which of the segment's repetitions.
        key: the same for a weight that two segments share.
    """

    numel: int
    itemsize: int
    trainable: bool
    link: int
    layer: int
    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamShape:
    """One weight of a segment."""

    name: str
    numel: int
    itemsize: int
    trainable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """One segment of the chain.

    Attributes:
        layered: it is a block, or several.
        count: how many.
        repeats: they run with another's weights.
        returns: a gradient passes back through it.
        leaf: path of the module that ZeRO 3 does not look into; nothing where there is none.
    """

    layered: bool
    count: int
    repeats: bool
    returns: bool
    leaf: str
    params: tuple[ParamShape, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A reduction during the backward pass.

    Attributes:
        at: the weight whose gradient arrives then; None once the backward pass is over.
        within: gradients that are reduced.
        parts: partitions that it reaches.
        copied: elements of the flat copy it makes.
        elements: that leave autograd's tensors for the bucket.
    """

    at: Piece | None
    within: tuple[Piece, ...]
    parts: frozenset[int]
    copied: int
    elements: int


class Layout:
    """All weights of a chain, tied ones once, and what follows from their sizes alone."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Every weight in the order of the forward pass."""
        found: dict[Key, Piece] = {}
        for index, link in enumerate(self.structure):
            if link.repeats:
                continue
            for layer in range(link.count):
                for param in link.params:
                    key = (index, layer, param.name) if link.layered else (-1, -1, param.name)
                    if key not in found:
                        found[key] = Piece(
                            numel=param.numel,
                            itemsize=param.itemsize,
                            trainable=param.trainable,
                            link=index,
                            layer=layer,
                            key=key,
                        )
        return tuple(found.values())

    @cached_property
    def trained(self) -> tuple[Piece, ...]:
        """The weights that learn."""
        return tuple(piece for piece in self.pieces if piece.trainable)

    @cached_property
    def flat(self) -> tuple[Piece, ...]:
        """The weights that learn in the order of the flat buffer: as modules are registered.

        transformers' Llama-like blocks register attention and MLP before their norms
        (``models/llama/modeling_llama.py`` 5.23.0 LlamaDecoderLayer); others as they run.
        """
        late = [index for index, link in enumerate(self.structure) if _norms_last(link)]

        def place(piece: Piece) -> tuple[int, int, bool]:
            top = piece.key[2].partition(".")[0]
            return piece.link, piece.layer, piece.link in late and top not in _FIRST

        return tuple(sorted(self.trained, key=place))

    @cached_property
    def ranges(self) -> dict[Key, tuple[int, int]]:
        """Where each trained weight begins and ends in the flat buffer."""
        total, found = 0, {}
        for piece in self.flat:
            found[piece.key] = (total, total + piece.numel)
            total += piece.numel
        return found

    @cached_property
    def largest(self) -> int:
        """Elements of the largest weight that learns."""
        return max((piece.numel for piece in self.trained), default=0)


@lru_cache(maxsize=512)
def _layout(structure: Structure) -> Layout:
    return Layout(structure)


def layout_of(links: tuple[Link, ...], *, scale: float, width: int, code: float) -> Layout:
    """The layout of a chain; of a quantized weight, ``code`` bytes an element, it has the codes.

    Those of 4 bits are packed in pairs into a tensor of bytes (bitsandbytes 0.50.2
    ``bitsandbytes/functional.py`` quantize_4bit), and bytes are the elements that DeepSpeed counts.
    """
    return _layout(
        tuple(
            LinkShape(
                layered=link.segment.kind == "layer",
                count=link.count,
                repeats=link.segment.repeats,
                returns=bool(link.cost.backward),
                leaf=leaf_of(link),
                params=tuple(
                    ParamShape(
                        name=param.name,
                        numel=round(
                            param.numel
                            * (1.0 if param.added else scale)
                            * (code if param.packed else 1.0)
                        ),
                        itemsize=1 if param.packed else width,
                        trainable=param.trainable,
                    )
                    for param in link.cost.params
                ),
            )
            for link in links
        )
    )


@lru_cache(maxsize=1024)
def spans(layout: Layout, size: int) -> dict[int, int]:
    """Partition → elements of all weights that lie in it, cut ones counted whole."""
    found: dict[int, int] = {}
    for begin, end in layout.ranges.values():
        for part, _ in cut(begin, end, size):
            found[part] = found.get(part, 0) + end - begin
    return found


@lru_cache(maxsize=1024)
def largest_slices(layout: Layout, size: int) -> dict[int, int]:
    """Partition → elements of the largest part of a weight in it."""
    found: dict[int, int] = {}
    for begin, end in layout.ranges.values():
        for part, length in cut(begin, end, size):
            found[part] = max(found.get(part, 0), length)
    return found


@lru_cache(maxsize=1024)
def arrivals(layout: Layout, size: int, bucket: int) -> tuple[Arrival, ...]:
    """Reductions in the order of the backward pass."""
    return tuple(_arrivals(layout, size, bucket, layout.trained[::-1], backward=True))


@lru_cache(maxsize=1024)
def departures(layout: Layout, size: int, bucket: int) -> tuple[Arrival, ...]:
    """Reductions after the backward pass, in the order of the flat buffer."""
    return tuple(_arrivals(layout, size, bucket, layout.flat, backward=False))


def _arrivals(
    layout: Layout, size: int, bucket: int, order: tuple[Piece, ...], *, backward: bool
) -> Iterator[Arrival]:
    for r in reductions([piece.numel for piece in order], bucket):
        within = order[r.first : r.end]
        found = slices((layout.ranges[piece.key] for piece in within), size)
        yield Arrival(
            at=_waits(order, r) if backward else None,
            within=within,
            parts=frozenset(part for part, _ in found),
            copied=flattened(found, bucket),
            elements=0 if r.oversized else r.elements,
        )


def _waits(order: tuple[Piece, ...], r: Reduction) -> Piece | None:
    return order[r.end] if r.end < len(order) else None


def leaf_of(link: Link) -> str:
    """Path of the module within a block that ZeRO 3 does not look into."""
    if link.run is None or link.run.spec.model_type not in _LEAVES:
        return ""
    return "mlp" if any(param.name.startswith("mlp.gate.") for param in link.cost.params) else ""


def _norms_last(link: LinkShape) -> bool:
    tops = {param.name.partition(".")[0] for param in link.params}
    return link.layered and tops >= _FIRST
