"""A dry run of the largest models takes no memory worth speaking of."""

import resource
from typing import Any

from vram_plan.bench.trace import TraceConfig, trace_deep

LLAMA_70B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
MOST_MEMORY_KIB = 2 * 2**20


def test_seventy_billion_parameters_in_two_gib() -> None:
    small = LLAMA_70B | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    trace_deep(TraceConfig(config=small, attention="flash"))  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    full = trace_deep(TraceConfig(config=LLAMA_70B, seq=2048, attention="flash"))
    assert full.extended_from == (3, 4)
    assert full.parameters > 70e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= max(before, MOST_MEMORY_KIB)
