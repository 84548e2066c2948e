"""Experts run one after another ask which tokens are theirs; a fake tensor cannot say.

Answered as for balanced routing: every expert is chosen, by tokens · k / experts tokens. (Experts
that transformers runs by grouped products need no answer: their sizes do not hang on it.)
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["balanced_routing"]

_NAMES = ("moe_num_experts", "num_local_experts", "num_experts", "n_routed_experts")


def balanced_routing(config: Any) -> dict[Any, Callable[..., Any]]:
    """``nonzero`` for a model's configuration; nothing for a model without experts.

    In transformers 5.23.0 ``models/dbrx/modeling_dbrx.py``: asked of a vector it finds the experts
    that were hit, asked of a table of choices × tokens one expert's share.
    """
    inner = getattr(config, "ffn_config", config)
    experts = next((n for n in (getattr(inner, name, None) for name in _NAMES) if n), None)
    if experts is None:
        return {}

    def nonzero(mask: torch.Tensor) -> torch.Tensor:
        rows = min(mask.numel(), experts) if mask.dim() == 1 else -(-mask.numel() // experts)
        return mask.new_empty((rows, mask.dim()), dtype=torch.int64)

    return {torch.ops.aten.nonzero.default: nonzero}
