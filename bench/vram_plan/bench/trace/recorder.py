"""The dispatch mode that sees every operator and notes what it allocates."""

import sys
from types import FrameType
from typing import Any

import torch
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.trace.roles import goes_to_weights, is_laid_out, is_weight
from vram_plan.bench.trace.rules import DeviceRules
from vram_plan.bench.trace.storages import StorageLog, tensors_in

__all__ = ["Recorder"]

_ATEN = torch.ops.aten
_ADD = _ATEN.add.Tensor
_CAST = _ATEN._to_copy.default
#: What autograd's formulas do in place for plain tensors and out of place for subclasses
#: (``areAnyTensorSubclassLike`` in FunctionsManual.cpp and TensorAdvancedIndexing.cpp), and the
#: engine's sums, which depend on who else holds the first summand.
_IN_PLACE = {
    _ADD: _ATEN.add_.Tensor,
    _ATEN.index_put.default: _ATEN.index_put_.default,
    _ATEN.scatter.src: _ATEN.scatter_.src,
    _ATEN.scatter.value: _ATEN.scatter_.value,
    _ATEN.scatter_add.default: _ATEN.scatter_add_.default,
}
#: What a copy of a weight is taken for at first.
_FORWARD = ("activations", "logits")
#: The function from which autograd's engine runs (torch/autograd/graph.py).
_ENGINE = "_engine_run_backward"
#: The functions that call the math kernel: transformers' and ours.
_ATTENTION_FUNCTIONS = ("sdpa_attention_forward", "scaled_dot_product_attention")
_ITEM = _ATEN._local_scalar_dense.default
#: References to a tensor, and to its storage, when autograd's buffer is its only holder.
_ALONE_TENSOR = 4
_ALONE_STORAGE = 2
_LIFT = (_ATEN.lift_fresh.default, _ATEN.lift_fresh_copy.default)
_DEVICE = torch.ops.prim.device.default
#: What lies between an operator and its caller: torch's wrappers, and modes above this one.
_WRAPPERS = ("_fn", "inner", "__call__", "__torch_dispatch__")


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Runs below autograd: forward, recomputation, backward and optimizer all pass through."""

    def __init__(
        self,
        log: StorageLog,
        paths: ModulePaths,
        rules: DeviceRules,
        subclasses: tuple[type, ...] = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.log = log
        self.paths = paths
        self.rules = rules
        self.subclasses = subclasses
        self.composites = rules.composites()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and note the storages of its results.

        Subclasses such as DTensor come first: they run operators on plain tensors, seen then.
        """
        if self.subclasses and any(kind in self.subclasses for kind in types):
            return NotImplemented
        path, in_node = self.paths.current()
        self.log.where = self.paths.mover or path
        if func is _DEVICE or func is _ITEM:
            return _answer(func, args[0])
        kwargs = kwargs or {}
        if in_node and func in _IN_PLACE and _caller() == _ENGINE:
            if func is not _ADD:
                func = _IN_PLACE[func]
            elif may_accumulate_in_place(args[0]):
                return args[0].add_(args[1])
        if func is _ADD and _caller() in _ATTENTION_FUNCTIONS and not _under_a_checkpoint():
            # The math kernel adds the mask in place; to subclasses, and under a mode such as
            # selective checkpointing's, out of place (attention.cpp, TensorSubclassLikeUtils.h).
            return _ATEN.detach.default(args[0].add_(args[1]))
        inside = self.composites.get(func)
        if inside is not None:
            with self:
                return inside(*args, **kwargs)
        result = func(*args, **kwargs)
        self._note(func, args, result, path, in_node)
        name = func.__name__.removesuffix(".default")
        self.log.scratch(self.rules.scratch(func, args, kwargs, result), name, path)
        return result

    def _copies_weight(self, weight: torch.Tensor, copy: torch.Tensor) -> None:
        """A weight in another type, such as autocast's, is no activation; nor is its copy."""
        source, made = self.log.block_of(weight), self.log.block_of(copy)
        if source is None or made is None or made is source or made.role not in _FORWARD:
            return
        known = source.role if source.role == "weights" else source.component or source.role
        if known in ("weights", "temporaries"):
            made.role = "temporaries"

    def _reads_weight(self, operands: Any, shape: tuple[int, ...]) -> bool:
        """A product with a weight is the gradient of its input, though it be of the same shape.

        Where weights are multiplied, as low-rank pairs are, the other one has another shape.
        """
        blocks = (self.log.block_of(tensor) for tensor in tensors_in(operands))
        weights = (block for block in blocks if block is not None and is_weight(block))
        return any(is_laid_out(shape, weight.shape) for weight in weights)

    def _note(self, func: Any, args: Any, result: Any, path: str, in_node: bool) -> None:
        log = self.log
        name = func.__name__.removesuffix(".default")
        counter = func in _LIFT and log.phase == "step" and self.rules.has_host
        zero = func is torch.ops.aten.zeros.default and log.phase == "step" and self.rules.has_host
        for tensor in tensors_in(result):
            if counter or (zero and not tensor.dim()):
                log.on_host(tensor)  # torch.tensor(…) in an optimizer: a step counter
                continue
            block = log.see(tensor, name, path, self.rules.size_bytes(func, tensor))
            if block is not None:
                block.in_backward = in_node
                for_weight = in_node and block.role == "gradients" and not goes_to_weights()
                if for_weight and self._reads_weight(args, block.shape):
                    block.role = "temporaries"
                if self.paths.engine:
                    block.component = "buffers"
                block.recomputed = log.phase == "backward" and self.paths.goes_forward()
        if func is _CAST:
            self._copies_weight(args[0], result)


def _caller() -> str:
    """The Python function above the operator, beyond torch's wrappers and other modes."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name in _WRAPPERS:
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_name


def _under_a_checkpoint() -> bool:
    """Whether a mode of selective checkpointing handed the operator on."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name in _WRAPPERS:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def _answer(func: Any, tensor: Any) -> Any:
    """The device, asked for twice an operator; or a value, which a fake tensor has not.

    The step's control flow does not hang on values.
    """
    if func is _DEVICE:
        return getattr(tensor, "fake_device", None) or func(tensor)
    if tensor.dtype is torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def may_accumulate_in_place(tensor: Any) -> bool:
    """Whether autograd's engine would add a second gradient into the first one's memory.

    It does when nobody else holds the tensor or its storage (torch/csrc/autograd/
    input_buffer.cpp, ``can_accumulate_inplace``), but never for tensor subclasses or under a
    dispatch mode, so a trace must do it itself. Here the caller's stack and the Python objects
    hold references of their own.
    """
    storage = tensor.untyped_storage()
    return bool(
        tensor._use_count() == _ALONE_TENSOR
        and torch._C._storage_Use_Count(storage._cdata) == _ALONE_STORAGE
        and torch._prims_common.is_non_overlapping_and_dense_or_false(tensor)
    )
