"""The plan's word for a tensor of the step, told by what makes it.

The plan's tape names tensors where they are made (``estimator/tape.py``): head and loss make
logits, going forward a layer makes activations and copies of weights are temporaries, going back a
node makes gradients of weights and temporaries. A trace tells the same from the module that runs
and from where autograd will send what a node makes.
"""

import itertools
import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.trace.timeline import Block

__all__ = ["Roles", "goes_to_weights", "is_laid_out", "is_weight", "made_for"]

_PASSES = ("forward", "loss", "backward")
#: bitsandbytes' operators that write a weight out.
_WRITTEN_OUT = ("dequantize_4bit", "dequantize_blockwise", "resize")
#: Nodes between one that makes a weight's gradient and the weight: transposed, cast, reshaped.
_MOST_STEPS = 8
_MOST_DIMENSIONS = 5
_SCOPE: ContextVar[str] = ContextVar("component", default="")


@contextmanager
def made_for(component: str) -> Iterator[None]:
    """What is made inside is this component's, whoever makes it."""
    token = _SCOPE.set(component)
    try:
        yield
    finally:
        _SCOPE.reset(token)


class Roles:
    """Says what a new block is, as far as its making tells; who holds it may know better."""

    def __init__(self, paths: ModulePaths) -> None:
        self.paths = paths

    def __call__(self, block: Block) -> str:
        """The component."""
        scope = _SCOPE.get()
        written = _is_written_out(block)
        if block.phase not in _PASSES or (written and not scope):
            return "temporaries"
        if scope:
            return scope
        back = block.phase == "backward" and not self.paths.goes_forward()
        if back and _is_for_weight(torch._C._current_autograd_node(), block.shape):
            return "gradients"
        if self.paths.is_head(block.module):
            return "logits"
        return "temporaries" if back else "activations"


def is_weight(block: Block) -> bool:
    """Whether a block is a weight, or one cast, gathered or written out."""
    if "weights" in (block.component, block.role) or _is_written_out(block):
        return True
    if block.component == "activations":  # token ids, made before the step
        return False
    return block.role == "temporaries" and not block.in_backward


def _is_written_out(block: Block) -> bool:
    return block.op.rpartition("::")[2].partition(".")[0] in _WRITTEN_OUT


def _is_for_weight(node: Any, shape: tuple[int, ...]) -> bool:
    """Whether a backward node makes the gradient of a weight of this size.

    Its way to the weight is a single one, through views and casts.
    """
    if node is None:
        return False
    variable = getattr(node, "variable", None)
    if variable is not None:
        return _is_weights(variable, shape)
    return any(_ends_in_weight(after, shape) for after, _ in node.next_functions)


def goes_to_weights() -> bool:
    """Whether all that the running node makes is for weights: it multiplies one by another."""
    node: Any = torch._C._current_autograd_node()
    after = [edge for edge, _ in node.next_functions if edge is not None] if node else []
    leaves = [_leaf_behind(edge) for edge in after]
    return bool(leaves) and all(isinstance(leaf, torch.nn.Parameter) for leaf in leaves)


def _ends_in_weight(node: Any, shape: tuple[int, ...]) -> bool:
    variable = _leaf_behind(node)
    return variable is not None and _is_weights(variable, shape)


def _leaf_behind(node: Any) -> torch.Tensor | None:
    """The leaf at the end of a single way."""
    for _ in range(_MOST_STEPS):
        if node is None:
            return None
        variable: torch.Tensor | None = getattr(node, "variable", None)
        if variable is not None:
            return variable
        onward = [after for after, _ in node.next_functions if after is not None]
        if len(onward) != 1:
            return None
        node = onward[0]
    return None


def _is_weights(variable: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Not every leaf is a weight: T5's zero position bias learns nothing, but has a gradient."""
    return isinstance(variable, torch.nn.Parameter) and is_laid_out(shape, variable.shape)


def is_laid_out(shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether permuting dimensions and joining neighbours turns one shape into the other.

    The same number of elements alone is no sign: with small models it comes by chance.
    """
    if math.prod(shape) != math.prod(weight):
        return False
    many, few = sorted((shape, weight), key=len, reverse=True)
    if len(many) > _MOST_DIMENSIONS:
        return True
    return any(_joins(order, tuple(few)) for order in itertools.permutations(many))


def _joins(many: tuple[int, ...], few: tuple[int, ...]) -> bool:
    ends = set(itertools.accumulate(many, operator.mul))
    return ends.issuperset(itertools.accumulate(few, operator.mul))
