"""The CUDA rules on fake tensors, each against what PyTorch's sources say."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from vram_plan.bench.trace import attention
from vram_plan.bench.trace.cuda import CudaRules
from vram_plan.bench.trace.rules import fake_tensors_count
from vram_plan.bench.trace.scratch import cuda_scratch


@pytest.fixture
def rules() -> Iterator[CudaRules]:
    found = CudaRules()
    with fake_tensors_count(), found.installed(), FakeTensorMode():
        yield found


def node(tensor: torch.Tensor) -> str:
    return type(tensor.grad_fn).__name__


def above(tensor: torch.Tensor) -> Any:
    """The backward node before the one that made the tensor."""
    assert tensor.grad_fn is not None
    return tensor.grad_fn.next_functions[0][0]


def test_rules_are_undone() -> None:
    """Nothing of CUDA is left after the context."""
    with CudaRules().installed():
        pass
    x = torch.ones(4, 4, requires_grad=True)
    assert node(functional.dropout(x, 0.5, True)) == "MulBackward0"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.rsqrt(x.bfloat16()).dtype is torch.bfloat16


def test_dropout_keeps_a_bool_mask(rules: CudaRules) -> None:
    x = torch.ones(4, 4, requires_grad=True)
    assert node(functional.dropout(x, 0.5, True)) == "NativeDropoutBackward0"
    assert functional.dropout(x, 0.0, True) is x
    assert functional.dropout(x, 0.5, False) is x


def test_half_softmax_casts_inside_the_kernel(rules: CudaRules) -> None:
    half = torch.ones(4, 4, dtype=torch.float16, requires_grad=True)
    brain = torch.ones(4, 4, dtype=torch.bfloat16, requires_grad=True)
    for op in (functional.softmax, functional.log_softmax):
        direct = op(half, dim=-1, dtype=torch.float32)
        assert type(above(direct)).__name__ == "AccumulateGrad"
        copied = op(brain, dim=-1, dtype=torch.float32)
        assert type(above(copied)).__name__ == "ToCopyBackward0"


def test_autocast_follows_cuda(rules: CudaRules) -> None:
    x = torch.ones(4, 4, requires_grad=True)
    with rules.autocast(torch.bfloat16):
        low = x @ x
        assert low.dtype is torch.bfloat16
        assert torch.is_autocast_enabled()
        for result in (low.softmax(-1), low.log_softmax(-1), low.pow(2), low.rsqrt(), low.sum()):
            assert result.dtype is torch.float32
        assert functional.layer_norm(low, (4,)).dtype is torch.float32
        assert functional.gelu(low).dtype is torch.bfloat16
        assert low.mean().dtype is torch.bfloat16


def test_foreach_is_the_default(rules: CudaRules) -> None:
    from torch.optim.optimizer import _default_to_fused_or_foreach

    weight = torch.nn.Parameter(torch.ones(4))
    assert _default_to_fused_or_foreach([weight], differentiable=False) == (False, True)


@pytest.mark.parametrize(
    ("dtype", "heads", "masked", "kernel"),
    [
        (torch.bfloat16, 4, False, "flash"),
        (torch.float16, 2, False, "flash"),
        (torch.bfloat16, 4, True, "efficient"),
        (torch.float32, 4, False, "efficient"),
        (torch.float32, 2, False, "math"),
    ],
)
def test_attention_kernel(
    rules: CudaRules, dtype: torch.dtype, heads: int, masked: bool, kernel: str
) -> None:
    query = torch.ones(2, 4, 16, 64, dtype=dtype)
    key = torch.ones(2, heads, 16, 64, dtype=dtype)
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool) if masked else None
    assert attention.kernel_for(query, key, key, mask, is_causal=not masked) == kernel


def test_attention_saves_what_flash_saves(rules: CudaRules) -> None:
    query = torch.ones(2, 4, 16, 60, dtype=torch.bfloat16, requires_grad=True)
    out = functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert out.shape == query.shape
    saved = above(out)  # below the slice that undoes the padding to 64
    assert saved._saved_query.shape[-1] == 64
    assert saved._saved_logsumexp.dtype is torch.float32
    assert saved._saved_logsumexp.shape == (2, 4, 16)


def test_flash_backward_scratch() -> None:
    """flash_api.cpp mha_bwd: softmax_d and dq_accum in fp32, dk and dv for every query head."""
    alone = attention.flash_backward_scratch((2, 100, 8, 80), 8, 100)
    assert alone == [4 * 2 * 8 * 128, 4 * 2 * 128 * 8 * 96]
    grouped = attention.flash_backward_scratch((2, 100, 8, 80), 2, 100)
    assert grouped == [*alone, 2 * 2 * 100 * 8 * 80, 2 * 2 * 100 * 8 * 80]


def test_efficient_backward_scratch(rules: CudaRules) -> None:
    query = torch.ones(2, 100, 4, 64).transpose(1, 2)
    tiles = 2 * 4 * 2 * (4 * 64 * 64 + 16)
    assert attention.efficient_backward_scratch(query, query) == [0, 4 * 2 * 4 * 100, tiles]
    copied = attention.efficient_backward_scratch(query.contiguous(), query)[0]
    assert copied == query.nbytes


def test_embedding_backward_sorts_many_indices(rules: CudaRules) -> None:
    op = torch.ops.aten.embedding_dense_backward.default
    few = torch.zeros(3072, dtype=torch.long)
    many = torch.zeros(4000, dtype=torch.long)
    assert cuda_scratch(op, (torch.ones(3072, 8), few, 1000)) == []
    sizes = cuda_scratch(op, (torch.ones(4000, 8), many, 1000))
    assert sizes[-1] == 4 * (400 + 1000) * 8
