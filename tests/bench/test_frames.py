"""What is there before the first segment and until the model's forward returns, as in the trace."""

from typing import Any

import pytest

from vram_plan.bench.trace import trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.step import BACKWARD_FIRST, EMBEDDING_BACKWARD, FORWARD, LOSS
from vram_plan.profiles.hf_config import from_hf_config

BLOCKS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}
GEMMA3 = BLOCKS | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 32}
NEOX = BLOCKS | {"model_type": "gpt_neox"}
T5: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": 100,
    "feed_forward_proj": "relu",
}
PEGASUS: dict[str, Any] = {
    "model_type": "pegasus",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": 100,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
PREFIX = {"method": "prefix", "virtual_tokens": 24, "precision": "fp32"}
LONG = PREFIX | {"virtual_tokens": 200, "seq_len": 16, "attention": "sdpa"}
RANKS = {"engine": "fsdp2", "gpus": 2, "fsdp": "grad-op", "attention": "sdpa"}
RECOMPUTED = {"method": "bitfit", "checkpointing": "full"}
BACK = (BACKWARD_FIRST, EMBEDDING_BACKWARD)
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    # A mask is a local variable of the model's forward, which runs the last norm too.
    "masks in the last norm": ((LOSS,), GEMMA3, PREFIX | {"loss": "liger"}),
    "words in a stack's last norm": ((LOSS,), PEGASUS, RECOMPUTED),
    # PEFT makes all prefixes before the model's forward: they go back behind everything else.
    "the last block's prefix, when that is gathered": ((FORWARD,), NEOX, PREFIX | RANKS),
    "prefixes of a decoder go back": (BACK, NEOX, LONG),
    "prefixes of an encoder-decoder, made twice": (BACK, T5, LONG),
    "prefixes beside the first block's weights": (BACK, NEOX, LONG | RANKS),
}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_trace(case: str) -> None:
    """In the instants that the case is about."""
    instants, raw, options = CASES[case]
    given = {"micro_batch": 2, "seq_len": 64, "attention": "eager", "optimizer": "sgd", **options}
    config = resolve(from_hf_config(raw, name="test", source="test"), given)
    planned, trace = plan_config(config).memory, trace_step(trace_config(config, raw))
    seen = max(one.bytes for one in trace.instants if one.name in instants)
    # Rotary frequencies, the loss and its gradient, ids of virtual tokens: the smallest blocks.
    assert max(planned.instants[name] for name in instants) == pytest.approx(seen, abs=10 * 512)
