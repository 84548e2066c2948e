"""Modules trained whole beside low-rank pairs: PEFT's ``modules_to_save``.

``peft/utils/other.py`` ``ModulesToSaveWrapper`` (0.21.2) keeps the frozen original and a copy that
learns, in the original's dtype; the copy is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.methods.lora import Lora

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.sharding.base import Rank

SOURCE = "PEFT 0.21.2 peft/utils/other.py ModulesToSaveWrapper"
KINDS = {"embeddings": "embedding", "lm_head": "head"}
"""What ``--modules-to-save`` may name → kind of weight."""
_METHODS = ("lora", "rslora", "qlora")
_ENGINES = ("torch", "ddp")


@dataclass(frozen=True, slots=True)
class LoraAndModules(Lora):
    """LoRA with modules that learn whole.

    Attributes:
        kinds: kinds of their weights.
    """

    kinds: frozenset[str]

    def check(self, config: TrainConfig) -> None:
        """Known modules, and engines that do not divide their originals."""
        super(LoraAndModules, self).check(config)
        unknown = set(named(config.modules_to_save)) - set(KINDS)
        if unknown:
            known = ", ".join(KINDS)
            raise ValueError(f"--modules-to-save {sorted(unknown)[0]}: choose from {known}")
        if config.method not in _METHODS or config.engine not in _ENGINES:
            raise ValueError(
                f"--modules-to-save is planned for --method {', '.join(_METHODS)} with --engine "
                f"{' or '.join(_ENGINES)}"
            )

    def trains(self, name: str, kind: str, layer: int) -> bool:
        """The copies of the named modules; no other base weight."""
        return layer < 0 and kind in self.kinds


def named(text: str) -> tuple[str, ...]:
    """The modules that ``--modules-to-save`` names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def with_modules(config: TrainConfig) -> LoraAndModules:
    """LoRA and the named modules."""
    kinds = frozenset(KINDS.get(name, name) for name in named(config.modules_to_save))
    return LoraAndModules(config.lora_rank, config.lora_targets, kinds)


def originals(rank: Rank) -> list[Entry]:
    """The frozen modules that the copies stand for."""
    if not rank.config.modules_to_save:
        return []
    inventory = rank.passes.inventory
    copies = tuple(w for w in inventory.weights if w.trainable and not w.added)
    nbytes = replace(inventory, weights=copies).nbytes()
    return [
        Entry(
            component="weights",
            name="originals of the modules trained whole",
            bytes=nbytes,
            formula=f"{nbytes:,} bytes of {rank.config.modules_to_save}, kept beside the copies",
            source=SOURCE,
            state=True,
        )
    ]
