"""What is gathered, freed and reduced at once: each block, and everything outside the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from vram_plan.estimator.chain import Link
from vram_plan.estimator.choices import BYTES
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.eight import gathered_itemsize
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.quantization import code_bytes
from vram_plan.estimator.tape import ROUNDING_BYTES, Param
from vram_plan.profiles.switches import shards_gptq

FOUR_BIT = ("nf4", "fp4")
Size = Callable[[Param], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Weights that travel together.

    Attributes:
        name: module path.
        params: its weights on this rank before sharding.
        scale: what one of its base weights counts for (size classes).
    """

    name: str
    params: tuple[Param, ...]
    scale: float = 1.0

    def total(self, size: Size, *, trainable: bool = False) -> int:
        """Σ ``size`` over its weights, or over those that learn."""
        total = 0.0
        for param in self.params:
            if param.trainable or not trainable:
                total += size(param) * (1.0 if param.added else self.scale)
        return round(total)

    @property
    def learns(self) -> bool:
        """Whether any of its weights has a gradient."""
        return any(param.trainable for param in self.params)


def unit_of(link: Link, scale: float) -> Unit:
    """The weights of one block."""
    return Unit(name=link.segment.name, params=link.cost.params, scale=scale)


def root_unit(links: tuple[Link, ...], scale: float) -> Unit:
    """Everything outside the blocks, tied weights once."""
    found: dict[str, Param] = {}
    for link in links:
        if link.segment.kind != "layer" and not link.segment.repeats:
            for param in link.cost.params:
                found.setdefault(param.name, param)
    return Unit(name="root", params=tuple(found.values()), scale=scale)


def single_ends(links: tuple[Link, ...]) -> tuple[Link, ...]:
    """The chain with the first two blocks and the last one as links of their own."""
    blocks = [i for i, link in enumerate(links) if link.segment.kind == "layer"]
    result: list[Link] = []
    for i, link in enumerate(links):
        head = min(2, link.count) if blocks and i == blocks[0] else 0
        tail = 1 if blocks and i == blocks[-1] and link.count > head else 0
        result += cut(link, (*(1,) * head, link.count - head - tail, tail))
    return tuple(result)


def cut(link: Link, counts: tuple[int, ...]) -> Iterator[Link]:
    """A run of equal blocks in pieces of ``counts``, empty ones left out."""
    first = link.first
    for count in counts:
        if count:
            yield replace(link, count=count, first=first)
        first += count if link.first >= 0 else 0


def held_bytes(config: TrainConfig, weight: Param | Weight) -> int:
    """Bytes per element of a weight as its shard is held, before any cast for compute."""
    if weight.added:
        return BYTES[config.adapter_dtype]
    return 4 if config.kbit_preparation and not weight.packed else config.weights_bytes


def gathered_bytes(config: TrainConfig, weight: Param, ranks: int) -> float:
    """Bytes of a weight gathered for compute, rows padded to a multiple of ``ranks``.

    4-bit codes travel as they are (``bnb_4bit_quant_storage`` makes them 16-bit words); GPTQ's are
    buffers, which are not sharded.
    """
    if weight.packed:
        rows, columns = weight.shape[0], weight.shape[1]
        whole = code_bytes(config.quantization, columns, rows, group=config.gptq_group_size)
        return whole if shards_packed(config) else 0.0
    return padded(weight, ranks) * gathered_itemsize(config, weight)


def shards_packed(config: TrainConfig) -> bool:
    """Whether quantized codes are parameters that FSDP divides."""
    if config.quantization in {"gptq4", "gptq8"}:
        return shards_gptq(config.stack)
    return config.quantization in FOUR_BIT


def rows_of(weight: Param | Weight) -> int:
    """The dimension that is divided."""
    return max(1, weight.shape[0] if weight.shape else weight.numel)


def padded(weight: Param | Weight, ranks: int) -> int:
    """Elements after padding the first dimension to a multiple of ``ranks``."""
    rows = rows_of(weight)
    return weight.numel // rows * -(-rows // ranks) * ranks


def shard(weight: Weight, config: TrainConfig, ranks: int) -> Weight:
    """One rank's rows of a weight, padding included, in the dtype shards are held in."""
    held = -(-rows_of(weight) // ranks)
    return replace(
        weight,
        numel=padded(weight, ranks) // ranks,
        itemsize=held_bytes(config, weight),
        shape=(held, *weight.shape[1:]),
    )


def tensors_bytes(weights: Iterable[Weight], scale: float) -> int:
    """Bytes of a tensor for each weight: rounded as the allocator does, scaled for size classes."""
    total = 0.0
    for weight in weights:
        each = weight.numel * weight.itemsize
        if scale != 1.0 and not weight.added:
            total += each * weight.count * scale
        else:
            total += rounded(each) * weight.count
    return round(total)


def rounded(nbytes: float) -> int:
    """Rounded up to the allocator's blocks."""
    return int(-(-nbytes // ROUNDING_BYTES) * ROUNDING_BYTES)
