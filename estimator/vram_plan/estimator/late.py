"""Gradients that later blocks leave for the first one, which made their prefixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vram_plan.estimator.tape import Leaf, Tape, Tensor


class Late:
    """Both sides of one segment: what it leaves for the first block, what that one waits with.

    PEFT 0.21.2 ``peft_model.py`` (``get_prompt``) makes the prefixes of all blocks from one table.
    Autograd holds the gradients of its pieces until all of them are there (torch 2.13.0
    ``torch/csrc/autograd/engine.cpp``, one ``InputBuffer`` for the function that cut them).

    Attributes:
        leaves: prefixes that the first block made for this one.
        arrived: in the first block, what the others have left.
    """

    __slots__ = ("arrived", "leaves")

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self.arrived: list[Tensor] = []

    def wait(self, tape: Tape, nbytes: int) -> None:
        """Begin the backward pass with ``nbytes`` of the others' gradients."""
        if nbytes:
            self.arrived.append(tape.new(nbytes, 1, "temporaries"))

    def leave(self) -> int:
        """Bytes of gradients that this segment leaves for the first block."""
        stored = {leaf.grad.storage for leaf in self.leaves if leaf.grad is not None}
        self.leaves.clear()
        return sum(storage.nbytes for storage in stored if storage is not None)
