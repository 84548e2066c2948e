"""What tensors saved on the host cost: both ways over the link, behind nothing, weights too."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.speed.links import host_rate
from vram_plan.estimator.speed.offload import offload_transfers
from vram_plan.estimator.speed.step_time import step_time
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.models import resolve_model


def config(**options: Any) -> TrainConfig:
    chosen = {"gpu": find_gpu("a100-80gb-sxm"), "seq_len": 1024, **options}
    return resolve(resolve_model("qwen2.5-0.5b"), chosen)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("way", [{"offload": "activations"}, {"checkpointing": "offload"}])
def test_every_byte_travels_twice_and_nothing_hides_it(
    way: dict[str, str], accumulation: int
) -> None:
    run = config(grad_accum=accumulation, **way)
    saved = run_passes(run, keeps_gradients=accumulation == 1).host
    there, back = offload_transfers(run)
    for copy in (there, back):
        assert copy.bytes == saved * accumulation
        assert copy.seconds == pytest.approx(copy.bytes / host_rate(run))
        assert copy.overlaps is None
    step = step_time(run)
    assert step is not None
    assert step.parts["offload transfer"] == pytest.approx(there.seconds + back.seconds)


def test_weights_travel_with_what_operators_save() -> None:
    """``x @ w`` saves w for the gradient of x, whatever the number of tokens."""
    run = config(offload="activations", seq_len=1)
    linears = sum(
        param.numel * param.itemsize * link.count
        for link in run_passes(run, keeps_gradients=True).links
        if link.segment.kind == "layer"
        for param in link.cost.params
        if param.name.endswith("_proj.weight")
    )
    there, _ = offload_transfers(run)
    assert there.bytes > linears > 0


def test_pinned_copies_do_not_block() -> None:
    """torch's own code: what the rate of pinned memory rests on."""
    graph = pytest.importorskip("torch.autograd.graph")
    code = inspect.getsource(graph.save_on_cpu.__init__)
    assert "packed.copy_(tensor, non_blocking=is_pinnable)" in code
    assert "tensor.to(device, non_blocking=pin_memory)" in code
    assert "return (tensor.device, tensor.cpu())" in code  # pageable, and the host waits
