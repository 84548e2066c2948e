"""What is sent ahead: FSDP 2's copies of shards; and what ZeRO 3 makes before it saves."""

import warnings
from typing import Any

import pytest

from vram_plan.estimator import Plan, plan
from vram_plan.estimator.ops.linear import linear
from vram_plan.estimator.step import LOSS_BACKWARD
from vram_plan.estimator.tape import Param, Tape
from vram_plan.profiles.hf_config import from_hf_config

FIELDS: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 128,
}
BLOCK = 4 * 256 * 256 + 3 * 256 * 1024 + 2 * 256
"""Elements of one."""


def sharded(**options: Any) -> Plan:
    given = {"fsdp": "full-shard", "gpus": 2, "seq_len": 16, **options}
    return plan(from_hf_config(FIELDS, name="toy"), engine="fsdp2", **given)


def sent(planned: Plan) -> int:
    """Bytes of what is sent as the loss starts to go back."""
    found = planned.memory.ledger.at(LOSS_BACKWARD)
    return sum(entry.bytes for entry in found if "all-gather input" in entry.name)


def test_shards_are_cast_into_one_tensor_to_be_sent() -> None:
    """The last block's, as the backward pass begins: a rank's half in 16 bits."""
    assert sent(sharded()) == 2 * BLOCK // 2
    assert sent(sharded(weights_dtype="bf16")) == 0
    assert sent(sharded(weights_dtype="bf16", offload="optimizer+params")) == 2 * BLOCK // 2
    assert sent(sharded(fsdp="grad-op")) == 0


@pytest.mark.filterwarnings("ignore")
def test_the_moment_equals_the_trace() -> None:
    """All-gather input and output beside what the head has left."""
    pytest.importorskip("transformers")
    from vram_plan.bench.instants import instants_of
    from vram_plan.bench.trace import trace_step
    from vram_plan.bench.translate import trace_config

    planned = sharded()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = trace_step(trace_config(planned.config, FIELDS))
    seen = {one.name: one.bytes for one in instants_of(trace.events, trace.start_blocks)}
    assert planned.memory.instants[LOSS_BACKWARD] == pytest.approx(seen[LOSS_BACKWARD], rel=0.002)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_python_function_saves_when_its_output_is_there(keeps: bool) -> None:
    """Recomputation ends with the last tensor saved: ZeRO 3's linear has run by then."""
    t = Tape()
    weight = Param(name="weight", numel=64, itemsize=2, trainable=True, shape=(8, 8))
    with t.rehearsal():
        linear(t, t.new(32, 2), weight, None, 8, keeps=keeps)
    assert t.made - t.last_saved == (0 if keeps else 1)
