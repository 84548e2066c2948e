"""What a dry run of full-size models may take, imports excluded."""

import resource
import time
from typing import Any

from vram_plan.bench.trace import TraceConfig, trace_deep

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
LLAMA_70B = {
    **LLAMA_7B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
MOST_MEMORY_KIB = 2 * 2**20


def test_speed_and_memory() -> None:
    """Seconds of CPU, so that other processes on the machine do not count."""
    small = {**LLAMA_7B, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    lora: dict[str, Any] = {"method": "lora", "attention": "flash"}
    trace_deep(TraceConfig(config=small, **lora))  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    adapters = trace_deep(TraceConfig(config=LLAMA_7B, seq=2048, **lora))
    between = time.process_time()
    full = trace_deep(TraceConfig(config=LLAMA_70B, seq=2048, attention="flash"))
    ended = time.process_time()
    assert adapters.extended_from == full.extended_from == (3, 4)
    assert full.parameters > 70e9
    assert between - began <= 5
    assert ended - between <= 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= max(before, MOST_MEMORY_KIB)
