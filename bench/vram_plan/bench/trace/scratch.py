# ruff: noqa: TID253 -- loaded only once a trace has been asked for
"""Memory that CUDA kernels take and give back within one call.

Sources: pytorch aten/src/ATen/native/cuda/{ForeachReduceOp.cu, Embedding.cu,
EmbeddingBackwardKernel.cu}; attention's in attention.py. Left out: cuBLAS workspaces, which stay
allocated for the life of the process, and reductions' staging buffers (kilobytes).
"""

from typing import Any

import torch

from vram_plan.bench.trace.attention import backward_scratch

__all__ = ["cuda_scratch"]

_INDEX_BYTES = 8
_FP32_BYTES = 4
#: multi_tensor_apply's kChunkSize.
_CHUNK = 65536
#: Embedding.cu: up to so many indices one kernel does it without sorting.
_FEW_INDICES = 3072
#: EmbeddingBackwardKernel.cu NROWS_PER_THREAD.
_ROWS = 10


def cuda_scratch(func: Any, args: Any) -> list[int]:
    """Bytes of the blocks; empty for operators without scratch memory."""
    handler = _HANDLERS.get(func)
    return handler(args) if handler is not None else backward_scratch(func, args)


def _foreach_norm(args: Any) -> list[int]:
    """One fp32 partial result for each chunk of the largest tensor, times the tensors."""
    tensors = args[0]
    chunks = max(-(-tensor.numel() // _CHUNK) for tensor in tensors)
    return [_FP32_BYTES * len(tensors) * chunks]


def _embedding_backward(args: Any) -> list[int]:
    """Sorted indices and the partial sums of rows, in fp32.

    Indices are sorted and cut into segments of equal ones, those into pieces of 10; the kernel
    allocates for the worst case of n / 10 + min(n, rows) pieces of one embedding each.
    """
    grad, indices, rows = args[0], args[1], args[2]
    count = indices.numel()
    if count <= _FEW_INDICES:
        return []
    segments = min(count, rows)
    pieces = count // _ROWS + segments
    per_index = [_INDEX_BYTES * count] * 3
    per_segment = [_INDEX_BYTES * segments] * 2
    return [*per_index, *per_segment, _INDEX_BYTES * pieces, _FP32_BYTES * pieces * grad.shape[-1]]


_HANDLERS = {
    torch.ops.aten._foreach_norm.Scalar: _foreach_norm,
    torch.ops.aten.embedding_dense_backward.default: _embedding_backward,
}
