"""Stand-ins for the optimizers that DeepSpeed compiles for the GPU and for the host."""

from collections.abc import Iterable
from typing import Any

import torch

from vram_plan.bench.trace.optimizers import make_optimizer

__all__ = ["zero_optimizer"]

_LR = 1e-4
_BETAS = (0.9, 0.999)
_EPS = 1e-8


def zero_optimizer(name: str, model: Any, *, on_host: bool) -> Any:
    """The optimizer that a user of DeepSpeed would hand to it.

    Args:
        name: the plan's word.
        model: whose trainable parameters it gets.
        on_host: DeepSpeed then wants its CPU Adam, whose two moments lie beside the fp32 weights;
            PyTorch's fused one keeps the same.
    """
    if name != "adamw":
        return make_optimizer(name, model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if on_host:
        return torch.optim.AdamW(trainable, lr=_LR, fused=True)
    return _fused_adam()(trainable)


def _fused_adam() -> Any:
    """DeepSpeed's FusedAdam with PyTorch's fused kernel instead of the one it would compile.

    Its own class is kept, since DeepSpeed chooses its wrappers by it (runtime/engine.py).
    """
    from deepspeed.ops.adam import FusedAdam

    class Adam(FusedAdam):  # type: ignore[misc]  # deepspeed has no types
        def __init__(self, parameters: Any) -> None:
            defaults = {"lr": _LR, "betas": _BETAS, "eps": _EPS, "weight_decay": 0.0}
            torch.optim.Optimizer.__init__(self, parameters, defaults)

        def zero_grad(self, set_to_none: bool = True) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                group["step"] = group.get("step", 0) + 1  # where FusedAdam counts, too
                having = (p for p in group["params"] if p.grad is not None)
                _update(having, self.state, group["step"])

    return Adam


def _update(parameters: Iterable[Any], state: Any, step: int) -> None:
    for parameter in parameters:
        own = state[parameter]
        if not own:
            own["exp_avg"] = torch.zeros_like(parameter.data)
            own["exp_avg_sq"] = torch.zeros_like(parameter.data)
        torch._fused_adamw_(
            [parameter.data],
            [parameter.grad],
            [own["exp_avg"]],
            [own["exp_avg_sq"]],
            [],
            [torch.full((), float(step))],
            lr=_LR,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=0.0,
            eps=_EPS,
            amsgrad=False,
            maximize=False,
        )
