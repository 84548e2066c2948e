"""What ``torch.autograd.graph.save_on_cpu`` does with the tensors that operators save.

torch 2.13.0 ``torch/csrc/autograd/saved_variable.cpp``: under default hooks every saved tensor is
packed for itself when its node is made, parameters too (``set_hooks_and_pack_data``; only wrapped
numbers are spared), and the node's function unpacks all of them as it begins and drops them when it
returns. A tensor that two operators save is copied twice and comes back twice; a view comes back
as a tensor of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.tensors import (
    ROUNDING_BYTES,
    Node,
    Param,
    Storage,
    Tensor,
    rounded,
    storages_in,
)

if TYPE_CHECKING:
    from vram_plan.estimator.costs import Boundary, Bytes
    from vram_plan.estimator.tape import Tape

__all__ = ["Saves", "brought_back", "page_out", "send_to_host"]

Saves = tuple[Tensor | Param | None, ...] | None
"""Tensors that an operator saves, in any order."""


def page_out(t: Tape, node: Node, out: Tensor, saves: Saves) -> None:
    """Send what ``node`` saved to the host and let go of it.

    A weight's gradient that a loss made going forward comes back as one.
    """
    paged: list[tuple[int, str]] = []
    for cell in (node.fn.__closure__ if node.fn else None) or ():
        storages = tuple(storages_in((cell.cell_contents,)))
        if storages:
            paged += [(storage.nbytes, _returns_as(storage)) for storage in storages]
            cell.cell_contents = None
    if saves is not None:
        sizes = [int(x.numel * x.itemsize) for x in saves if x is not None and x.numel]
        paged = [(size, "activations") for size in sizes]
        for x in saves:
            _write_out(t, x, out)
    node.paged = tuple(paged)
    t.paged_bytes += sum(-(-size // ROUNDING_BYTES) * ROUNDING_BYTES for size, _ in paged)


def _returns_as(storage: Storage) -> str:
    return "gradients" if storage.component == "gradients" else "activations"


def _write_out(t: Tape, x: Tensor | Param | None, out: Tensor) -> None:
    """Copy what does not fill its memory (a slice, an expanded tensor) before it goes.

    ``aten/src/ATen/native/cuda/Copy.cu``, ``copy_requires_temporaries``. Inputs are packed before
    the operator makes ``out``.
    """
    storage = x.storage if isinstance(x, Tensor) else None
    if x is None or storage is None:
        return
    nbytes = x.numel * x.itemsize
    if -(-nbytes // ROUNDING_BYTES) * ROUNDING_BYTES != storage.nbytes:
        later = out.storage.nbytes if out.storage is not None and out.storage is not storage else 0
        t.new(max(0, nbytes - later), 1)


def send_to_host(saved: Bytes, entered: Boundary, *, stays: bool) -> int:
    """Take a checkpoint off the device, unless a function's context holds it (``stays``).

    Returns:
        Its bytes.
    """
    nbytes = rounded(entered.nbytes)
    saved["activations"] -= 0 if stays else nbytes
    return nbytes


def brought_back(t: Tape, index: int, kept: Storage | None) -> Storage | None:
    """What a backward function saved, where it hands that very tensor on."""
    return t.unpacked[index].storage if t.unpacked else kept
