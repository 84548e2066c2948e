"""Single kernels: matrix products over sizes and dtypes, attention, copies, the host link."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from vram_plan.bench.calibrate.clock import Clock

__all__ = ["Product", "attention_rates", "copy_bandwidth", "host_link", "products"]

_MIB = 2**20
_SHAPES = {
    "cpu": [(m, k, n) for m in (128, 512) for k in (64, 256, 1024) for n in (256, 1024)],
    "cuda": [(m, k, n) for m in (512, 2048, 8192) for k in (128, 1024, 4096) for n in (1024, 4096)],
}
_COPIED = {"cpu": 64 * _MIB, "cuda": 1024 * _MIB}
_HEADS = {"cpu": (1, 4, 256, 64), "cuda": (1, 32, 4096, 128)}
"""Batch, heads, tokens and width of a head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A matrix product [rows, inner] × [inner, columns] and its seconds."""

    rows: int
    inner: int
    columns: int
    dtype: str
    seconds: float

    @property
    def flops(self) -> float:
        """Operations."""
        return 2.0 * self.rows * self.inner * self.columns


def products(clock: Clock, dtypes: tuple[str, ...]) -> list[Product]:
    """Matrix products of several sizes in several dtypes."""
    import torch

    found = []
    for name in dtypes:
        dtype = getattr(torch, _TORCH[name])
        for rows, inner, columns in _SHAPES[clock.device]:
            a = torch.randn(rows, inner, device=clock.device).to(dtype)
            b = torch.randn(columns, inner, device=clock.device).to(dtype)
            seconds = clock.seconds(partial(torch.matmul, a, b.T))
            found.append(
                Product(rows=rows, inner=inner, columns=columns, dtype=name, seconds=seconds)
            )
    return found


_TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def copy_bandwidth(clock: Clock) -> float:
    """Bytes read and written per second by an addition of tensors larger than any cache."""
    import torch

    count = _COPIED[clock.device] // 4
    x, y = torch.ones(count, device=clock.device), torch.ones(count, device=clock.device)
    out = torch.empty_like(x)
    return 3 * 4 * count / clock.seconds(lambda: torch.add(x, y, out=out))


def attention_rates(clock: Clock) -> tuple[float, float]:
    """Operations per second of fused causal attention, forward and back (halved by the mask)."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    batch, heads, tokens, width = shape = _HEADS[clock.device]
    dtype = torch.float32 if clock.device == "cpu" else torch.bfloat16
    q, k, v = (
        torch.randn(shape, device=clock.device, dtype=dtype, requires_grad=True) for _ in range(3)
    )

    def forward() -> Any:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    def both() -> None:
        forward().sum().backward()

    pairs = batch * heads * tokens * tokens * width
    ahead = clock.seconds(forward)
    back = max(clock.seconds(both) - ahead, 1e-9)
    return 2.0 * pairs / ahead, 5.0 * pairs / back


def host_link(clock: Clock) -> float | None:
    """Bytes per second from pinned host memory to the device; None on a CPU."""
    if clock.device == "cpu":
        return None
    import torch

    host = torch.empty(256 * _MIB, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device=clock.device)
    return host.numel() / clock.seconds(lambda: there.copy_(host, non_blocking=True))
