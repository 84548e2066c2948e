"""Prefixes of all blocks: made before the first segment, their gradients waited for at the end.

PEFT 0.21.2 ``peft_model.py`` (``get_prompt``) makes the prefixes of all blocks from one table
before the model's forward, and a cache holds each until its block puts it in front of its own keys
and values. Autograd holds the gradients of the pieces until all of them are there (torch 2.13.0
``torch/csrc/autograd/engine.cpp``, one ``InputBuffer`` for the function that cut them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.tensors import Leaf, Node, Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.tape import Tape


class Late:
    """Both sides of one segment: what a block takes over and leaves, what the maker waits with.

    Attributes:
        pair: keys and values that this block finds in the cache.
        taken: their bytes.
        leaves: where their gradients arrive.
        maker: in the segment that makes all prefixes, the function that cut them.
        arrived: there, what the blocks have left.
    """

    __slots__ = ("arrived", "leaves", "maker", "pair", "taken")

    def __init__(self) -> None:
        self.pair: tuple[Tensor, Tensor] | None = None
        self.taken = 0
        self.leaves: list[Leaf] = []
        self.maker: Node | None = None
        self.arrived: list[Tensor] = []

    def take(self, tape: Tape, numel: int, itemsize: int) -> None:
        """Find a block's prefixes of ``numel`` elements each in the cache."""
        keys, values = tape.new(numel, itemsize), tape.new(numel, itemsize)
        self.leaves += [tape.leaf(keys), tape.leaf(values)]
        self.pair = keys, values
        self.taken = sum(one.storage.nbytes for one in self.pair if one.storage is not None)

    def move_out(self) -> tuple[Tensor, Tensor]:
        """Hand them to their block's attention."""
        assert self.pair is not None
        pair, self.pair = self.pair, None
        return pair

    def wait(self, tape: Tape, nbytes: int) -> None:
        """Begin the backward pass with ``nbytes`` of the blocks' gradients."""
        if nbytes and self.maker is not None:
            self.arrived.append(tape.new(nbytes, 1, "temporaries"))
            self.maker.grad = Tensor(nbytes, 1, None)

    def leave(self) -> int:
        """Bytes of gradients that this block leaves for the maker."""
        stored = {leaf.grad.storage for leaf in self.leaves if leaf.grad is not None}
        self.leaves.clear()
        return sum(storage.nbytes for storage in stored if storage is not None)
