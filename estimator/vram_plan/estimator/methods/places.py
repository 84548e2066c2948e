"""Where in a block a method's modules sit: the path of the linear layer that ran last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.whole import Frozen

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Tensor

_CROSS_PARTS = ("EncDecAttention", "encoder_attn", "crossattention", "cross_attn")


@dataclass(frozen=True, slots=True)
class Placed(Frozen):
    """A method that leaves linear layers alone but remembers which one ran last."""

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The plain layer."""
        f.prefix = name
        return base(x)


def check_positions(config: TrainConfig, tokens: int, length: int) -> None:
    """Virtual tokens take positions, of which a learned table has so many.

    Raises:
        ValueError: if the table ends before the sequence.
    """
    model = config.model
    rows = model.max_position_embeddings if model.position_embedding_type == "learned" else 0
    if rows and length + tokens > rows:
        raise ValueError(
            f"--virtual-tokens {tokens} with a length of {length}: {model.name} has {rows} "
            f"positions; choose --seq-len {max(1, rows - tokens)} or fewer virtual tokens"
        )


def is_cross(f: Forward) -> bool:
    """Whether the attention being run reads the encoder's output."""
    return any(part in f.prefix for part in _CROSS_PARTS)
