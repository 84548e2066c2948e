"""Which module's code is running: in forward by hooks, in backward by autograd's numbering."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    a backward node. An operator may take several numbers, so all that were given since one last
    looked belong to the module that runs. Gradient accumulation has no number; there the
    parameter's name stands.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.stack: list[str] = []
        self._names = {id(module): shorten(name) for name, module in model.named_modules()}
        self._parameters = {id(p): shorten(name) for name, p in model.named_parameters()}
        self._by_number: dict[int, str] = {}
        self._next = 0
        self._handles: list[Any] = []
        self.on_exit: Callable[[torch.nn.Module], None] | None = None
        self.root = "model"
        self.engine: str | None = None
        self.mover: str | None = None
        self._running = ""
        self._head = self._head_of(model)
        self._losses = {  # DistilBERT's is a module of the model
            shorten(name)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.CrossEntropyLoss)
        }

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
        self._take_numbers()
        known = self._names.get(id(module))
        self.stack.append(known if known is not None else self.stack[-1] if self.stack else "")

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self.stack:
            self._take_numbers()
            self.stack.pop()
        if self.on_exit is not None:
            self.on_exit(module)

    def current(self) -> tuple[str, bool]:
        """The running module's path, and whether a backward node is at work."""
        if self.stack or self.engine:
            self._take_numbers()
            return self.engine or self.stack[-1] or self.root, False
        node = torch._C._current_autograd_node()
        if node is None:
            return "", False
        self._take_numbers()
        variable = getattr(node, "variable", None)
        if variable is not None:
            self._running = ""
            return self._parameters.get(id(variable), ""), True
        self._running = self._by_number.get(node._sequence_nr(), "")
        return self._running, True

    def goes_forward(self) -> bool:
        """Whether a module runs, or what a checkpoint repeats between its modules.

        Backward nodes run with gradients off.
        """
        return bool(self.stack) or torch.is_grad_enabled()

    @contextmanager
    def moving(self, path: str) -> Iterator[None]:
        """A sharding engine is at work for the module at ``path``, whatever module runs.

        Inside another's work (the one that runs next is gathered early) the other runs.
        """
        before = self.engine, self.mover
        self.engine, self.mover = path, self.mover or path
        try:
            yield
        finally:
            self.engine, self.mover = before

    def path_of(self, module: torch.nn.Module) -> str:
        """The path of a module of the model."""
        return self._names.get(id(module), "")

    def name(self, parameter: torch.Tensor, name: str) -> None:
        """A tensor that stands for a parameter bears its name."""
        self._parameters[id(parameter)] = name

    def _take_numbers(self) -> None:
        """Numbers given since the last look are the running module's; outside all, nobody's.

        Where a backward node repeats a function, such as one chunk of a loss, they are the node's.
        """
        now = torch._C._autograd._get_sequence_nr()
        inside = self.stack or self.engine
        path = self.engine or self.stack[-1] or self.root if inside else self._running
        if self._next < now and path:
            self._by_number.update(dict.fromkeys(range(self._next, now), path))
        self._next = now
        self._running = "" if inside else self._running

    def forget_numbers(self) -> None:
        """Start a new step."""
        self._by_number.clear()
        self.stack.clear()
        self._running = ""

    def is_head(self, path: str) -> bool:
        """Whether a path is that of the loss or of the projection to the vocabulary."""
        inside = path == self._head or path.startswith(f"{self._head}.")
        return inside or path == "loss" or path in self._losses

    def _head_of(self, model: torch.nn.Module) -> str:
        find = getattr(model, "get_output_embeddings", None)
        head = find() if find is not None else None
        return self._names.get(id(head), "loss") if head is not None else "loss"


def shorten(name: str) -> str:
    """The path without PEFT's prefixes."""
    for prefix in _WRAPPERS:
        if f"{name}.".startswith(prefix):
            return f"{name}.".removeprefix(prefix).removesuffix(".")
    return name
