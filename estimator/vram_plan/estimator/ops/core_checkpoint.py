"""Core attention alone recomputed: Megatron-LM's selective recomputation.

Korthikanti et al., arXiv:2205.05198 section 5: q, k and v are kept, and what lies between them and
the context (scores, softmax, dropout) is made again when its gradient is asked for.
``megatron/core/transformer/attention.py`` ``_checkpointed_attention_forward`` by way of
``megatron/core/tensor_parallel/random.py`` ``CheckpointFunction``: a reentrant checkpoint.
"""

from collections.abc import Callable

from vram_plan.estimator.tape import Tape, Tensor

__all__ = ["core_checkpoint"]

Core = Callable[[Tape, Tensor, Tensor, Tensor], Tensor]


def core_checkpoint(t: Tape, q: Tensor, k: Tensor, v: Tensor, core: Core) -> Tensor:
    """Run ``core`` without recording, and again within its own backward function."""
    with t.no_grad():
        out = core(t, q, k, v)
    kept = tuple((x.numel, x.itemsize, x.storage) for x in (q, k, v))

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        again = Tape(t.meter)
        again.component, again.work = t.component, t.work
        given = [Tensor(*one) for one in kept]
        leaves = [again.leaf(x) for x in given]
        if t.work is not None:
            t.work.override = "recompute"
        made = core(again, *given)
        if t.work is not None:
            t.work.override = ""
        assert made.node is not None
        made.node.grad = grad
        del grad, made
        again.play()
        return tuple(leaf.grad for leaf in leaves)

    return t.record(out, (q.node, k.node, v.node), backward)
