"""Two peers are libraries of the reference stack: their own functions are called and compared."""

from dataclasses import replace

import pytest

from vram_plan.reports.peers.accelerate_estimate import ACCELERATE
from vram_plan.reports.peers.deepspeed_states import DEEPSPEED, largest_layer
from vram_plan.reports.peers.run import PeerInput

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1408,
    "vocab_size": 32000,
}
H, L, F, V = 512, 3, 1408, 32000
PARAMETERS = 2 * V * H + L * (2 * H * H + H * H + 3 * H * F + 2 * H) + H
RUN = PeerInput(
    parameters=PARAMETERS, num_layers=L, hidden_size=H, num_heads=8, num_kv_heads=4, head_dim=64,
    intermediate_size=F, vocab_size=V,
)  # fmt: skip


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "float16"), ("fp32", "float32")])
@pytest.mark.parametrize("tied", [False, True])
def test_accelerate(precision: str, dtype: str, tied: bool) -> None:
    estimate = pytest.importorskip("accelerate.commands.estimate")
    modeling = pytest.importorskip("accelerate.utils.modeling")
    config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    total, _ = modeling.calculate_maximum_sizes(model)
    said = max(estimate.estimate_training_usage(total, dtype).values())
    parameters = PARAMETERS - (V * H if tied else 0)
    run = replace(RUN, parameters=parameters, precision=precision, tied_embeddings=tied)
    found = ACCELERATE.ask(run).total_bytes
    assert found == pytest.approx(said, abs=4096)  # the rotary embedding's buffers


@pytest.mark.parametrize("gpus", [1, 8, 16])
def test_deepspeed(gpus: int) -> None:
    stage2 = pytest.importorskip("deepspeed.runtime.zero.stage_1_and_2")
    stage3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    layout = {"num_gpus_per_node": min(gpus, 8), "num_nodes": max(gpus // 8, 1)}
    run = replace(RUN, gpus=gpus)
    for offload in ("none", "optimizer"):
        _, gpu = stage2.estimate_zero2_model_states_mem_needs(
            PARAMETERS, cpu_offload=offload != "none", **layout
        )
        assert DEEPSPEED.ask(replace(run, shard_stage=2, offload=offload)).total_bytes == gpu
    for offload in ("none", "optimizer", "optimizer+params"):
        _, gpu, _ = stage3.estimate_zero3_model_states_mem_needs(
            PARAMETERS,
            largest_layer(run),
            cpu_offload=offload != "none",
            cpu_offload_params=offload == "optimizer+params",
            **layout,
        )
        assert DEEPSPEED.ask(replace(run, shard_stage=3, offload=offload)).total_bytes == gpu


def test_deepspeed_largest_layer() -> None:
    stage3 = pytest.importorskip("deepspeed.runtime.zero.stage3")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    assert stage3.model_to_params(model) == (PARAMETERS, largest_layer(RUN))
