"""What variables of the libraries' functions hold: the closed form beside the tracer."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from vram_plan.bench.trace import TraceConfig, trace_step
from vram_plan.bench.trace.methods import apply_method, peft_config
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.step import CLIPPING, LOSS_BACKWARD
from vram_plan.profiles.hf_config import from_hf_config

FALCON = {
    "model_type": "falcon",
    "hidden_size": 128,
    "ffn_hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_kv_heads": 4,
    "new_decoder_architecture": True,
    "multi_query": True,
    "vocab_size": 300,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}
PEGASUS = {
    "model_type": "pegasus",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 300,
}
BASE = {"precision": "bf16", "micro_batch": 2, "seq_len": 64, "optimizer": "sgd"}
WIDE = {"weights_dtype": "fp32"}
BITFIT = {"method": "bitfit", "checkpointing": "full", "attention": "sdpa"}
SHARDED = {"gpus": 2, "engine": "fsdp2", "fsdp": "full-shard"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # ``outputs`` names a block's scores until the next one has run; on the host a checkpoint
    # holds none of PEFT's embeddings.
    "scores": (FALCON, {"method": "prompt", "attention": "eager", "checkpointing": "offload"}),
    # A product with ``weight.T`` has its cast made anew.
    "turned weight": (FALCON, {"method": "full", "checkpointing": "full", **WIDE}),
    # The norm before the feed-forward part has no name once the activation has it.
    "norm of an encoder-decoder": (PEGASUS, BITFIT),
    "norm of a decoder": (OPT, BITFIT),
    # Where ranks count themselves in a parameter that learns, outputs stay for its gradient.
    "ranks that learn": (LLAMA, {"method": "adalora", "quantization": "nf4"}),
    "ranks that do not": (LLAMA, {"method": "adalora", "quantization": "int8"}),
    # The last gradient of what FSDP reduces together has a name until that is done.
    "gradients in one dtype": (LLAMA | {"vocab_size": 20_000}, SHARDED),
    "gradients that are cast": (LLAMA | {"vocab_size": 20_000}, SHARDED | WIDE),
    # A prefix has a key for every query head.
    "prefix": (FALCON, {"method": "prefix"}),
}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
@pytest.mark.parametrize("name", CASES)
def test_equals_the_trace(name: str) -> None:
    raw, options = CASES[name]
    config = resolve(from_hf_config(raw, name="test", source="test"), BASE | options)
    planned, trace = plan_config(config).memory, trace_step(trace_config(config, raw))
    # Two tables of rotary frequencies, the loss, its gradient and a scalar beside each.
    scalars = 8 * 512
    assert planned.allocated_bytes == pytest.approx(trace.peak_bytes, abs=scalars)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "loss": "liger"},  # made going forward, on the host meanwhile
        {"method": "adalora", "grad_accum": 2},  # a weight by itself: both products are its own
    ],
    ids=["made early", "of a regularized weight"],
)
def test_gradients_keep_their_name_on_the_host(options: dict[str, Any]) -> None:
    asked = BASE | options | {"offload": "activations"}
    config = resolve(from_hf_config(LLAMA, name="test", source="test"), asked)
    planned, trace = plan_config(config).memory, trace_step(trace_config(config, LLAMA))
    seen = {instant.name: instant.components or {} for instant in trace.instants}
    for instant in (LOSS_BACKWARD, CLIPPING):
        named = planned.ledger.components(instant).get("gradients", 0)
        assert named == pytest.approx(seen[instant]["gradients"], abs=512)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("computes", [None, torch.bfloat16, torch.float32])
def test_ranks_learn_as_on_a_device(held: torch.dtype, computes: torch.dtype | None) -> None:
    """The tracer's models are on ``meta``, where PEFT leaves the adapters' dtype alone."""
    from peft import get_peft_model

    config = TraceConfig(config={}, method="adalora", quantization="nf4")
    real = get_peft_model(_two_layers(held, computes, "cpu"), peft_config(config, "masked-lm"))
    traced = apply_method(_two_layers(held, computes, "meta"), config, "masked-lm")
    learn, like = (
        {n: p.requires_grad for n, p in model.named_parameters() if "ranknum" in n}
        for model in (real, traced)
    )
    assert learn == like
    assert len(learn) == 2


def _two_layers(held: torch.dtype, computes: torch.dtype | None, device: str) -> Any:
    """A plain layer and a 4-bit one."""
    transformers: Any = import_module("transformers")
    bnb: Any = import_module("bitsandbytes")
    small = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 64)
    shape = transformers.LlamaConfig(num_hidden_layers=1, num_attention_heads=2, **small)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(shape).to(held)
    attention = model.model.layers[0].self_attn
    attention.q_proj = bnb.nn.Linear4bit(64, 64, False, computes, device=device)
    kept = ("q_proj", "k_proj")
    for block in (attention, model.model.layers[0].mlp):
        for name in list(dict(block.named_children())):
            if name not in kept and name.endswith("proj"):
                setattr(block, name, nn.Identity())
    return model
