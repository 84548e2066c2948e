"""Bottleneck adapters in every block: Houlsby's, Pfeiffer's and AdapterFusion.

PEFT has none of them; they are those of the ``adapters`` library (adapter-hub/adapters,
``src/adapters/methods/modeling.py`` and ``bottleneck.py``), with the casts of PEFT's tuners: the
input to the adapter's dtype, the result back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.places import Placed, is_cross
from vram_plan.estimator.ops.activations import activation
from vram_plan.estimator.ops.adapters import add_in_place
from vram_plan.estimator.ops.attention import batched_product, softmax
from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    add,
    cast,
    concat,
    copy,
    scale,
)
from vram_plan.estimator.ops.norm import layer_norm
from vram_plan.estimator.tape import Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward

FUSED_ADAPTERS = 3
"""Adapters that AdapterFusion combines, as in the library's example ``Fuse("a", "b", "c")``."""


def module_name(f: Forward, where: str) -> str:
    """The path of an adapter: beside the linear layer that ended its sublayer."""
    parent = f.prefix.rpartition(".")[0]
    return f"{parent}.{where}_adapters" if parent else f"{where}_adapters"


def bottleneck(
    f: Forward, name: str, x: Tensor, size: int, act: str, *, trainable: bool = True
) -> Tensor:
    """``up(act(down(x))) · scaling`` with biases; x is in the adapter's dtype."""
    width = f.spec.hidden_size
    down = _linear(f, f"{name}.adapter_down", x, (width, size), trainable=trainable)
    inner = activation(f.t, down, act)
    del down
    return scale(f.t, _linear(f, f"{name}.adapter_up", inner, (size, width), trainable=trainable))


def _linear(
    f: Forward, name: str, x: Tensor, shape: tuple[int, int], *, trainable: bool, bias: bool = True
) -> Tensor:
    weight = f.added_param(f"{name}.weight", shape[::-1], trainable=trainable)
    offset = f.added_param(f"{name}.bias", shape[1:], trainable=trainable) if bias else None
    return f.product(x, weight, offset, shape[1])


def joined_residual(f: Forward, x: Tensor) -> Tensor:
    """What Pfeiffer's adapters read: the sublayer's output after its residual (and its norm)."""
    total = add(f.t, x, Tensor(x.numel, x.itemsize, None))
    if f.spec.do_layer_norm_before:
        return total
    return layer_norm(f.t, total, None, None, f.spec.hidden_size)


@dataclass(frozen=True, slots=True)
class Houlsby(Placed):
    """``DoubleSeqBnConfig`` (arXiv:1902.00751): one after attention, one after the feed-forward.

    Each is ``x + up(swish(down(x)))`` in front of the block's own residual. Attention to an
    encoder's output gets none (``cross_adapter`` is off).

    Attributes:
        size: width of the bottleneck.
    """

    size: int

    def sublayer(self, f: Forward, where: str, x: Tensor, entered: Tensor) -> Tensor:
        """Add the bottleneck's output to the sublayer's."""
        if where == "attention" and is_cross(f):
            return x
        itemsize = x.itemsize
        wide = cast(f.t, x, f.how.adapter_bytes)
        up = bottleneck(f, module_name(f, where), wide, self.size, "silu")
        del wide
        return cast(f.t, add(f.t, up, x), itemsize)


@dataclass(frozen=True, slots=True)
class Pfeiffer(Placed):
    """``SeqBnConfig`` (arXiv:2005.00247): one after the feed-forward part, with ReLU.

    It reads the sublayer's output after the residual (and the norm, in post-norm blocks) and is
    added to the output before it.

    Attributes:
        size: width of the bottleneck.
    """

    size: int

    def sublayer(self, f: Forward, where: str, x: Tensor, entered: Tensor) -> Tensor:
        """Add the bottleneck's output to that of the feed-forward part."""
        if where != "mlp":
            return x
        itemsize = x.itemsize
        wide = cast(f.t, joined_residual(f, x), f.how.adapter_bytes)
        up = bottleneck(f, module_name(f, where), wide, self.size, "relu")
        del wide
        return cast(f.t, add(f.t, up, x), itemsize)


@dataclass(frozen=True, slots=True)
class Fusion(Placed):
    """AdapterFusion (arXiv:2005.00247): attention over the outputs of frozen Pfeiffer adapters.

    ``BertFusion`` with the library's defaults: the query is the feed-forward output after its
    residual, keys and values are the stacked outputs of `FUSED_ADAPTERS` adapters; query and key
    have biases, the value has none. Only these three matrices learn.

    Attributes:
        size: width of the adapters' bottlenecks.
    """

    size: int

    def sublayer(self, f: Forward, where: str, x: Tensor, entered: Tensor) -> Tensor:
        """Attend to the adapters' outputs and add what comes out."""
        if where != "mlp":
            return x
        itemsize, name = x.itemsize, module_name(f, where)
        query = cast(f.t, joined_residual(f, x), f.how.adapter_bytes)
        ups: list[Tensor] = []
        outputs: list[Tensor] = []
        for i in range(FUSED_ADAPTERS):
            up = bottleneck(f, f"{name}.{i}", query, self.size, "relu", trainable=False)
            outputs.append(add(f.t, up, x))  # unused, but the list of states holds it
            ups.append(up)
        fused = self._fuse(f, f"{name}.fusion", query, concat(f.t, tuple(ups)))
        return cast(f.t, add_in_place(f.t, fused, x), itemsize)

    @staticmethod
    def _fuse(f: Forward, name: str, query: Tensor, stack: Tensor) -> Tensor:
        """Softmax(q · k) over the adapters, per token, times the values.

        The stack's dimensions are permuted, so both linear layers copy it.
        """
        t, width = f.t, f.spec.hidden_size
        shape, rows = (width, width), query.numel // width
        q = _linear(f, f"{name}.query", query, shape, trainable=True)
        k = _linear(f, f"{name}.key", copy(t, stack), shape, trainable=True)
        v = _linear(f, f"{name}.value", copy(t, stack), shape, trainable=True, bias=False)
        scores = scale(t, batched_product(t, q, k, rows * FUSED_ADAPTERS, width))
        wide = FP32_BYTES if f.how.autocast else scores.itemsize
        weights = softmax(t, scores, wide, half_to_float=f.how.half)
        if f.how.autocast:
            weights = cast(t, weights, v.itemsize)
        return batched_product(t, weights, v, query.numel, FUSED_ADAPTERS)
