"""The hooks through which a training method changes a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.methods.experts import Factors
    from vram_plan.estimator.tape import Param, Tensor


class Method:
    """How a model is trained. This one is full fine-tuning; the others override what differs.

    The compositions (``blocks/``) call the hooks, so a method works for every architecture.
    Methods are frozen dataclasses: they are part of the key under which a block is remembered.
    """

    __slots__ = ()

    @property
    def adds(self) -> bool:
        """Whether weights are added to the model (PEFT then wraps it)."""
        return False

    @property
    def virtual_tokens(self) -> int:
        """Positions prepended to every sequence (prompt tuning)."""
        return 0

    @property
    def prefix_tokens(self) -> int:
        """Keys and values prepended in every attention (prefix tuning)."""
        return 0

    def check(self, config: TrainConfig) -> None:
        """Refuse a model or an option that the method's library does not run.

        Raises:
            ValueError: one line that names the option and the way out.
        """

    def trains(self, name: str, kind: str, layer: int) -> bool:
        """Whether a weight of the base model learns.

        Args:
            name: path inside its segment (``self_attn.q_proj.weight``).
            kind: ``linear``, ``bias``, ``norm``, ``embedding``, ``position`` or ``head``.
            layer: index of the block, −1 outside the blocks.
        """
        return True

    def layer_key(self, layer: int) -> int:
        """Blocks with the same key are treated alike (freezing tells first from last blocks)."""
        return 0

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Run the linear layer ``name`` [inputs, outputs]; ``base`` runs the plain one."""
        return base(x)

    def weight(self, f: Forward, name: str, weight: Param, factors: Factors | None = None) -> Param:
        """Change a base weight that is no linear layer's: stacked experts, a router."""
        return weight

    def wraps(self, f: Forward, stacks: Mapping[str, tuple[int, ...]]) -> Mapping[str, Factors]:
        """Enter what wraps a module of stacked weights [experts, outputs, inputs], in their order.

        Returns what was made there for each of them; `weight` takes it.
        """
        return {}

    def sublayer(self, f: Forward, where: str, x: Tensor, entered: Tensor) -> Tensor:
        """Change the output ``x`` of ``attention`` or ``mlp`` before it joins the residual.

        ``entered`` is what the sublayer read (after its norm).
        """
        return x

    @property
    def parallel(self) -> bool:
        """Whether `sublayer` reads what entered: else the caller may have let go of it."""
        return False

    def regularizes(self, f: Forward, name: str) -> bool:
        """Whether the loss reads an added weight directly: its gradient is there from then on."""
        return False

    def begin(self, f: Forward, kind: str) -> None:
        """Make what is there before a segment's own code runs (prefixes)."""

    def embed(self, f: Forward, x: Tensor) -> Tensor:
        """Change the embedded input (prompts are prepended here)."""
        return x

    def keys_values(self, f: Forward, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Change keys and values [batch, kv_heads, seq, head_dim] (prefixes are prepended here)."""
        return k, v
