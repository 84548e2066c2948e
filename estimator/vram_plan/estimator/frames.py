"""What a model's own forward holds in local variables until it returns to its caller.

Masks, position ids, tables and the looked-up tokens are named in ``…Model.forward`` (an
encoder-decoder's: in its stack's), which runs the layers and the last norm. The head's projection
and the loss come when it has returned (transformers 5.23.0 ``models/*/modeling_*.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vram_plan.estimator.tape import Storage, Tape


class Frame:
    """The variables of the model's forward, while a segment runs that sees it return."""

    __slots__ = ("_locals",)

    def __init__(self) -> None:
        self._locals: list[Storage | None] = []

    def hold(self, storage: Storage | None) -> None:
        """A variable more."""
        self._locals.append(storage)

    def enter(self, tape: Tape, nbytes: int) -> None:
        """All those that no segment makes: tensors that the layers share."""
        if nbytes:
            self.hold(tape.new(nbytes, 1).storage)

    def leave(self) -> None:
        """The forward returns: what nothing else holds is gone."""
        self._locals.clear()
