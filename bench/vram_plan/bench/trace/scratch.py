"""Memory that CUDA kernels take and give back within one call.

Sources: pytorch aten/src/ATen/native/cuda/{ForeachReduceOp.cu, Embedding.cu,
EmbeddingBackwardKernel.cu}; attention's in attention.py. Left out: cuBLAS workspaces, which stay
allocated for the life of the process, and reductions' staging buffers (kilobytes).
"""

from typing import Any

import torch

from vram_plan.bench.trace.attention import backward_scratch

__all__ = ["cuda_scratch", "grouped_mm"]

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


def grouped_mm(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, *rest: Any, **kwargs: Any
) -> torch.Tensor:
    """The result of ``_grouped_mm`` for every type; the fake kernel insists on bf16.

    Rows are padded to 16 bytes (cuda/GroupedBlas.cpp, ``create_grouped_gemm_output_tensor``).
    """
    if a.dim() == 2 and b.dim() == 2:
        assert offs is not None
        shape = [offs.shape[0], a.shape[0], b.shape[1]]
    elif a.dim() == 3 and b.dim() == 3:
        shape = [a.shape[0], a.shape[1], b.shape[2]]
    else:
        shape = [a.shape[-2], b.shape[-1]]
    row = -(-shape[-1] * a.itemsize // 16) * 16 // a.itemsize
    strides = [row, 1] if len(shape) == 2 else [row * shape[1], row, 1]
    return torch.empty_strided(shape, strides, dtype=a.dtype, device=a.device)


_HANDLERS = {
    torch.ops.aten._foreach_norm.Scalar: _foreach_norm,
    torch.ops.aten.embedding_dense_backward.default: _embedding_backward,
}
