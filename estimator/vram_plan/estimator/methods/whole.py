"""Methods that train weights of the model itself and add none: freezing and BitFit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.base import Method

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Full(Method):
    """Every weight learns."""


@dataclass(frozen=True, slots=True)
class Freeze(Method):
    """The first ``frozen`` blocks and the embeddings do not learn; the rest and the head do.

    A head tied to the embeddings does not learn either.
    """

    frozen: int

    def check(self, config: TrainConfig) -> None:
        """Blocks that share their weights cannot be told apart."""
        if config.model.model_type == "albert" and self.frozen:
            raise ValueError(
                f"--method freeze: the blocks of {config.model.name} share their weights; choose "
                "--freeze-layers 0 or --method lora"
            )

    def trains(self, name: str, kind: str, layer: int) -> bool:
        """Blocks from ``frozen`` on, the last norm and the head."""
        if layer >= 0:
            return layer >= self.frozen
        return kind not in {"embedding", "position"} and not name.startswith("embed_tokens")

    def layer_key(self, layer: int) -> int:
        """Frozen blocks differ from the others."""
        return int(layer >= self.frozen)


@dataclass(frozen=True, slots=True)
class BitFit(Method):
    """Only bias vectors learn, those of norms included (Ben Zaken et al., arXiv:2106.10199)."""

    def trains(self, name: str, kind: str, layer: int) -> bool:
        """Weights whose name ends in ``bias``."""
        return name.endswith("bias")


@dataclass(frozen=True, slots=True)
class Frozen(Method):
    """Nothing of the base model learns; what adapters inherit."""

    @property
    def adds(self) -> bool:
        """Adapters are added."""
        return True

    def trains(self, name: str, kind: str, layer: int) -> bool:
        """No base weight learns."""
        return False
