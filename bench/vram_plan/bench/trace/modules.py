"""Which module's code is running: in forward by hooks, in backward by autograd's numbering."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules import module as hooks

__all__ = ["ModulePaths"]

#: What PEFT puts before the paths of the model it wraps.
_WRAPPERS = ("base_model.model.", "base_model.")


class ModulePaths:
    """Names the module that an operator belongs to.

    In forward a stack of the modules being called; every operator that autograd records takes the
    next sequence number, which its backward node carries too: number → module gives the module of
    a backward node. Gradient accumulation has no number; there the parameter's name stands.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.stack: list[str] = []
        self._names = {id(module): shorten(name) for name, module in model.named_modules()}
        self._parameters = {id(p): shorten(name) for name, p in model.named_parameters()}
        self._by_number: dict[int, str] = {}
        self._handles: list[Any] = []
        self.on_exit: Callable[[torch.nn.Module], None] | None = None
        self.root = "model"

    def __enter__(self) -> "ModulePaths":
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        known = self._names.get(id(module))
        self.stack.append(known if known is not None else self.stack[-1] if self.stack else "")

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self.stack:
            self.stack.pop()
        if self.on_exit is not None:
            self.on_exit(module)

    def current(self) -> tuple[str, bool]:
        """The running module's path, and whether a backward node is at work."""
        if self.stack:
            path = self.stack[-1] or self.root
            if torch.is_grad_enabled():
                self._by_number[torch._C._autograd._get_sequence_nr() - 1] = path
            return path, False
        node = torch._C._current_autograd_node()
        if node is None:
            return "", False
        variable = getattr(node, "variable", None)
        if variable is not None:
            return self._parameters.get(id(variable), ""), True
        return self._by_number.get(node._sequence_nr(), ""), True

    def forget_numbers(self) -> None:
        """Start a new step."""
        self._by_number.clear()
        self.stack.clear()


def shorten(name: str) -> str:
    """The path without PEFT's prefixes."""
    for prefix in _WRAPPERS:
        if f"{name}.".startswith(prefix):
            return f"{name}.".removeprefix(prefix).removesuffix(".")
    return name
