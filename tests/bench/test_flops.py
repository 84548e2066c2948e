"""Operations on the tape against PyTorch's own counter on the real models."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vram_plan.bench.proof.shapes import small_model
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.speed.phases import chain_work
from vram_plan.profiles.hf_config import from_hf_config

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

# What the libraries say of each other is no concern here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)
FAMILIES = ("llama", "gemma2", "gpt2", "bloom", "falcon", "qwen3_moe", "deepseek_v3", "t5", "bart")
WAYS: tuple[dict[str, Any], ...] = ({}, {"method": "lora"}, {"checkpointing": "full"})
CASES = [(kind, way) for kind in FAMILIES for way in WAYS] + [
    ("llama", {"checkpointing": "selective"}),
    ("llama", {"method": "dora"}),
    ("llama", {"method": "bitfit"}),
    ("llama", {"method": "prefix"}),
    ("olmo2", {"loss": "chunked"}),
    ("qwen2", {"grad_accum": 2}),
]


def _grouped(first: Any, second: Any, *rest: Any, **more: Any) -> int:
    """``grouped_mm``, which PyTorch's counter leaves out: every row meets one matrix."""
    return int(2 * first[0] * first[1] * second[-1])


def _counted(config: Any, fields: dict[str, Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    from vram_plan.bench.trace.timed import TimedRun

    run = TimedRun(trace_config(config, fields), "cpu", 0)
    ours = {torch.ops.aten._grouped_mm: _grouped}
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        run.step.run(run.batch)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("kind", "way"), CASES, ids=str)
def test_operations_are_those_pytorch_counts(kind: str, way: dict[str, Any]) -> None:
    fields = small_model(kind, random.Random(3))
    config = resolve(
        from_hf_config(fields, name="test", source="test"),
        {
            "attention": "eager",
            "micro_batch": 2,
            "seq_len": 24,
            "precision": "fp32",
            "weights_dtype": "fp32",
            **way,
        },
    )
    work = chain_work(run_passes(config, keeps_gradients=config.grad_accum == 1).links)
    planned = sum(kernel.flops * count for kernel, count in work) * config.grad_accum
    assert planned == pytest.approx(_counted(config, fields), rel=1e-3)
