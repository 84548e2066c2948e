"""The fullest moment of the backward pass equals the tracer's, method by method.

The trace runs PEFT's own step on fake tensors (``vram_plan.bench.trace``); what differs are a few
scalars of 512 bytes each.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Link, Shape, build_chain
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.methods.base import Method
from vram_plan.estimator.methods.dora import Dora
from vram_plan.estimator.methods.ia3 import Ia3
from vram_plan.estimator.methods.lora import Lora
from vram_plan.estimator.methods.prefix import Prefix
from vram_plan.estimator.methods.prompts import Prompt
from vram_plan.estimator.step import moments
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config

pytest.importorskip("torch")
pytest.importorskip("peft")

Fields = dict[str, Any]
BATCH, SEQ = 2, 128
BYTES = {"bf16": 2, "fp32": 4}
TOLERANCE = 8 * 512
LLAMA: Fields = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 128,
}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4}
GPT2: Fields = {
    "model_type": "gpt2",
    "n_embd": 256,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 128,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CASES: dict[str, tuple[Fields, Method, str, Fields, Fields]] = {
    "lora": (LLAMA, Lora(8, "all-linear"), "lora", {"r": 8}, {}),
    "lora-experts": (MIXTRAL, Lora(8, "all-linear"), "lora", {"r": 8}, {}),
    "dora": (LLAMA, Dora(8, "all-linear"), "dora", {"r": 8}, {}),
    "ia3": (LLAMA, Ia3(), "ia3", {}, {}),
    "ia3-autocast": (LLAMA, Ia3(), "ia3", {}, {"dtype": "fp32", "autocast": "bf16"}),
    "ia3-checkpointed": (LLAMA, Ia3(), "ia3", {}, {"checkpointing": "full"}),
    "prompt": (LLAMA, Prompt(20), "prompt", {"num_virtual_tokens": 20}, {}),
    "prompt-gpt2": (GPT2, Prompt(20), "prompt", {"num_virtual_tokens": 20}, {}),
    "prefix": (LLAMA, Prefix(20), "prefix", {"num_virtual_tokens": 20}, {}),
    "prefix-gpt2": (GPT2, Prefix(20), "prefix", {"num_virtual_tokens": 20}, {}),
}


def planned(fields: Fields, method: Method, options: Fields) -> int:
    """Weights, inputs and the fullest moment of the backward pass."""
    spec = from_hf_config(fields, name="small", source="test")
    dtype = BYTES[options.get("dtype", "bf16")]
    how = Treatment(
        method=method,
        compute_bytes=dtype,
        weights_bytes=dtype,
        norm_bytes=dtype,
        adapter_bytes=BYTES[options.get("adapter_dtype", "fp32")],
        autocast="autocast" in options,
    )
    seq, composition = SEQ + method.virtual_tokens, compose(spec)
    shape = Shape(batch=BATCH, seq=seq, checkpoint=options.get("checkpointing", "none"))
    links = build_chain(spec, composition, how, shape)
    inventory = take_inventory(links)
    tables = composition.shared(Forward(spec, how, batch=BATCH, seq=seq)).values()
    always = inventory.nbytes() + 8 * BATCH * SEQ
    always += sum(-(-t.numel * t.itemsize // 512) * 512 for t in tables if t.saved)
    return always + fullest(links)


def fullest(links: tuple[Link, ...]) -> int:
    """The fullest moment of the backward pass."""
    return max(moment.total for name, moment in moments(links).items() if "backward" in name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_the_backward_peak_equals_the_trace(case: str) -> None:
    """To a few scalars."""
    from vram_plan.bench.trace import TraceConfig, trace_step

    fields, method, name, peft, options = CASES[case]
    config = TraceConfig(
        config=fields,
        batch=BATCH,
        seq=SEQ,
        attention="flash",
        method=name,
        lora=peft,
        steps=1,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = trace_step(config).phase_peaks["backward"]
    assert abs(planned(fields, method, options) - traced) <= TOLERANCE
