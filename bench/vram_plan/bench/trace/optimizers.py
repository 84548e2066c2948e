"""The optimizers by the plan's names, from the libraries that have them."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["load_libraries", "make_optimizer"]

_LR = 1e-4


def make_optimizer(name: str, model: Any) -> Any:
    """The optimizer with its library's defaults; weight decay as it comes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "muon":
        edges: list[Any] = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        edges.append(model.get_output_embeddings())
        return _Pair(parameters, {id(p) for m in edges if m is not None for p in m.parameters()})
    kinds = _torch_kinds()
    if name not in kinds:
        kinds = _other_kinds()
    return kinds[name](parameters)


def load_libraries() -> None:
    """Import what optimizers come from, since imports make tensors that are no part of a step."""
    _other_kinds()


def _torch_kinds() -> dict[str, Callable[[list[Any]], Any]]:
    optim = torch.optim
    return {
        "adamw": lambda p: optim.AdamW(p, lr=_LR),
        "adamw-fused": lambda p: optim.AdamW(p, lr=_LR, fused=True),
        "adamw-for-loop": lambda p: optim.AdamW(p, lr=_LR, foreach=False),
        "sgd": lambda p: optim.SGD(p, lr=_LR),
        "sgd-momentum": lambda p: optim.SGD(p, lr=_LR, momentum=0.9),
        "rmsprop": lambda p: optim.RMSprop(p, lr=_LR),
    }


def _other_kinds() -> dict[str, Callable[[list[Any]], Any]]:
    from bitsandbytes.optim import adamw, lion
    from transformers import optimization

    adafactor: Any = optimization.Adafactor
    adamw_kind: Any = adamw.AdamW
    lion_kind: Any = lion.Lion
    return {
        # transformers' trainer_optimizer.py: these two switches, the rest as it comes
        "adafactor": lambda p: adafactor(p, lr=_LR, scale_parameter=False, relative_step=False),
        "adamw-8bit": lambda p: adamw_kind(p, lr=_LR, optim_bits=8),
        "paged-adamw": lambda p: adamw_kind(p, lr=_LR, is_paged=True),
        "paged-adamw-8bit": lambda p: adamw_kind(p, lr=_LR, optim_bits=8, is_paged=True),
        "lion": lambda p: lion_kind(p, lr=_LR),
        "lion-8bit": lambda p: lion_kind(p, lr=_LR, optim_bits=8),
    }


class _Pair:
    """Muon for matrices, AdamW for the rest: embeddings, head, norms and biases.

    torch.optim.Muon takes matrices only and its documentation sends the others, embeddings and
    head included, to AdamW.
    """

    def __init__(self, parameters: list[Any], edges: set[int]) -> None:
        inner = [p for p in parameters if p.ndim == 2 and id(p) not in edges]
        chosen = {id(p) for p in inner}
        outer = [p for p in parameters if id(p) not in chosen]
        self.members: list[Any] = [torch.optim.Muon(inner, lr=_LR)] if inner else []
        if outer:
            self.members.append(torch.optim.AdamW(outer, lr=_LR))

    @property
    def state(self) -> dict[Any, Any]:
        """The members' states together."""
        return {key: value for member in self.members for key, value in member.state.items()}

    def step(self) -> None:
        """One step of each."""
        for member in self.members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)
