"""How the places of a sample are run: what shares the work, and how large the model is."""

from __future__ import annotations

from random import Random
from typing import Any

from vram_plan.bench.proof.shapes import Fields, small_model
from vram_plan.profiles.models import CatalogueEntry, catalogue

__all__ = ["SETUPS", "lengths", "model_of", "sharding_options"]

SETUPS: tuple[tuple[str, str], ...] = (
    *(("torch", "small"),) * 12,
    ("torch", "full"),
    *(("ddp", "small"),) * 2,
    ("fsdp2 full-shard", "small"),
    ("fsdp2 full-shard", "full"),
    ("fsdp2 grad-op", "small"),
    ("fsdp2 hybrid-shard", "small"),
    ("deepspeed", "small"),
)
"""Sharding and size of every twenty places."""

_LENGTHS = {"small": (64, 96, 128, 200, 256), "full": (256, 384, 512, 1024, 2048)}
"""Tokens of a sequence."""
_ROOM = 40
"""Positions that are left for virtual tokens."""
_NODE = 8
_MOST_EXPERTS = 128
_BUCKETS = {"reduce_bucket_size": 500_000, "overlap_comm": False}
"""DeepSpeed's own default would hide a small model behind a bucket of 10⁹ bytes."""


def model_of(kind: str, size: str, random: Random) -> Fields:
    """The `config.json` of a small model, or a published one where the catalogue has any."""
    published = _published(kind) if size == "full" else []
    if not published:
        return small_model(kind, random)
    fields = random.choice(published).config
    return {n: v for n, v in fields.items() if v is not None or n == "sliding_window"}


def lengths(fields: Fields, size: str) -> tuple[int, ...]:
    """Lengths that a model has positions for."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    most = min([fields[n] for n in names if fields.get(n)], default=1 << 20) - _ROOM
    fitting = tuple(length for length in _LENGTHS[size] if length <= most)
    return fitting or _LENGTHS["small"]


def _published(kind: str) -> list[CatalogueEntry]:
    """Those of a kind; over sharded weights experts run one by one, so more would take minutes."""
    found = [entry for entry in catalogue() if entry.config.get("model_type") == kind]
    few = [entry for entry in found if (entry.config.get("n_routed_experts") or 0) <= _MOST_EXPERTS]
    return sorted(few, key=lambda entry: entry.name)


def sharding_options(sharding: str, number: int, random: Random) -> dict[str, Any]:
    """The plan's options for what shares the work.

    Args:
        sharding: a word of `SETUPS`.
        number: of the place: DeepSpeed's stages come in turn.
        random: where the number of ranks is drawn from.
    """
    engine, _, strategy = sharding.partition(" ")
    if engine == "torch":
        return {}
    if strategy == "hybrid-shard":
        return {"engine": engine, "fsdp": strategy, "gpus": 2 * _NODE, "gpus_per_node": _NODE}
    gpus = random.choice((2, 4, 8))
    chosen: dict[str, Any] = {"engine": engine, "gpus": gpus}
    if strategy:
        chosen["fsdp"] = strategy
    if engine == "deepspeed":
        stage = number % 4
        sizes = _BUCKETS | {"overlap_comm": stage == 3}
        chosen |= {"zero": stage, "gpus_per_node": gpus, "zero_sizes": sizes}
    return chosen
