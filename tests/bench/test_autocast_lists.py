"""CUDA's autocast lists as this torch's own header has them."""

import re
from pathlib import Path

import torch

from vram_plan.bench.trace import autocast

HEADER = Path(torch.__path__[0]) / "include" / "ATen" / "autocast_mode.h"
#: Listed by CUDA but left out here: images, point clouds and others no language model meets.
OTHERS = re.compile(r"upsample|nuclear|frobenius|margin|hinge|poisson|cosine_embedding|pdist")


def listed(macro: str) -> set[str]:
    """The operators of one macro, with their overloads."""
    text = HEADER.read_text()
    body = text[text.index(f"#define {macro}(_)") :].split("\n\n")[0]
    found = re.findall(r"_\((\w+)(?:, (\w+))?\)", body)
    return {f"{name}.{overload}" if overload else name for name, overload in found}


def test_fp32_list() -> None:
    expected = {name for name in listed("AT_FORALL_FP32") if not OTHERS.search(name)}
    assert set(autocast.FP32) == expected


def test_fp32_set_opt_dtype_list() -> None:
    assert set(autocast.FP32_SET_OPT_DTYPE) == listed("AT_FORALL_FP32_SET_OPT_DTYPE")


def test_lower_precision_list_is_the_cpus_too() -> None:
    """What CUDA runs in 16 bits and language models use, the CPU's autocast runs so too."""
    for name in ("linear", "matmul", "mm", "bmm", "addmm", "scaled_dot_product_attention"):
        assert name in listed("AT_FORALL_LOWER_PRECISION_FP")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCPU")


def test_fallthrough_is_on_no_cuda_list() -> None:
    for macro in ("AT_FORALL_FP32", "AT_FORALL_FP32_SET_OPT_DTYPE", "AT_FORALL_PROMOTE"):
        assert not set(autocast.FALLTHROUGH) & listed(macro)
