"""Which 4-bit products bitsandbytes computes without writing the weight out.

Since 0.50 a fused kernel multiplies few rows by packed weights. When it is taken depends on the
GPU; the rule here is the A100's (108 multiprocessors, compute capability 8.0), as everywhere where
no GPU is asked for. Source: bitsandbytes 0.50.2 ``backends/cuda/ops.py``, the kernel of
``gemm_4bit`` and ``_gemm_4bit_use_custom_cuda``.
"""

from __future__ import annotations

from vram_plan.estimator.quantization import BNB_BLOCK

_MULTIPROCESSORS = 108
_MOST_ROWS = 1536
_ALWAYS_ROWS = 4
_VECTOR_ROWS = 7
_TILE = 64
_SMALL_WEIGHT = 4 * 1024 * 1024
_LARGE_WEIGHT_ROWS = 512


def is_fused(rows: int, outputs: int, inputs: int, itemsize: int) -> bool:
    """Whether ``rows`` × [outputs, inputs] runs in the fused kernel."""
    if rows > _MOST_ROWS or inputs % BNB_BLOCK:
        return False
    if rows <= _ALWAYS_ROWS:
        return True
    if itemsize == 4:
        return rows <= _VECTOR_ROWS
    if outputs * inputs < _SMALL_WEIGHT:
        return rows <= _small_limit(outputs, inputs)
    if rows <= _VECTOR_ROWS:
        return rows < 6 or _wins_with_seven(outputs, inputs)
    return rows <= min(_LARGE_WEIGHT_ROWS, _large_limit(outputs, inputs))


def _tiles(outputs: int) -> int:
    return -(-outputs // _TILE)


def _small_limit(outputs: int, inputs: int) -> int:
    """Rows up to which weights of fewer than 4 Mi elements take the kernel."""
    tiles = _tiles(outputs)
    if inputs * 2 < outputs:
        return _MOST_ROWS if tiles * 3 < _MULTIPROCESSORS else 512
    if tiles * 4 <= _MULTIPROCESSORS:
        if inputs < outputs:
            return 384
        return 32 if tiles * 8 <= _MULTIPROCESSORS else 128
    return 16 if tiles * 2 <= _MULTIPROCESSORS else 0


def _wins_with_seven(outputs: int, inputs: int) -> bool:
    """Six or seven rows of a large weight."""
    tiles = _tiles(outputs)
    if tiles < 48:
        return True
    if inputs > outputs:
        return tiles * 4 >= _MULTIPROCESSORS * 3
    return inputs != outputs or tiles * 5 >= _MULTIPROCESSORS * 3


def _large_limit(outputs: int, inputs: int) -> int:
    """Rows, eight at least, up to which larger weights take the kernel."""
    tiles = _tiles(outputs)
    if tiles >= _MULTIPROCESSORS * 3:
        return 128
    if tiles >= _MULTIPROCESSORS:
        return 64 if inputs < outputs else 32
    if inputs >= outputs * 3 and tiles * 4 > _MULTIPROCESSORS:
        return 0
    if inputs == outputs and tiles >= 48 and tiles * 5 < _MULTIPROCESSORS * 3:
        return 0
    return _unfilled_limit(outputs, inputs)


def _unfilled_limit(outputs: int, inputs: int) -> int:
    """The same for weights with fewer tiles of outputs than the GPU has multiprocessors."""
    tiles = _tiles(outputs)
    if tiles * 2 < _MULTIPROCESSORS:
        if inputs <= outputs:
            return 128
        if tiles * 3 >= _MULTIPROCESSORS:
            return 0
    if tiles >= _MULTIPROCESSORS // 2 and inputs < outputs:
        return 128
    return 16
