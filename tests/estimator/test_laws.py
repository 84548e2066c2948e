"""Laws that hold for every configuration."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import COMPONENTS, OUTSIDE_THE_STEP
from vram_plan.estimator.planner import Plan, plan, plan_config
from vram_plan.estimator.rank import run_passes
from vram_plan.profiles.model import ModelSpec

LLAMA = ModelSpec(
    name="small llama",
    model_type="llama",
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=32,
    intermediate_size=768,
    vocab_size=2048,
)
GPT2 = ModelSpec(
    name="small gpt2",
    model_type="gpt2",
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=32,
    intermediate_size=1024,
    vocab_size=2048,
    hidden_act="gelu_new",
    is_gated_act=False,
    position_embedding_type="learned",
    position_embedding_rows=4096,
    max_position_embeddings=4096,
    attention_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
)
COMMON = settings(max_examples=60)

configurations = st.fixed_dictionaries(
    {
        "model": st.sampled_from((LLAMA, GPT2)),
        "method": st.sampled_from(("full", "lora", "qlora", "bitfit", "freeze", "ia3")),
        "checkpointing": st.sampled_from(choices.CHECKPOINTINGS),
        "attention": st.sampled_from(("flash", "sdpa", "eager")),
        "loss": st.sampled_from(choices.LOSSES),
        "optimizer": st.sampled_from(("adamw", "adamw-fused", "adamw-8bit", "sgd", "lion")),
        "micro_batch": st.integers(1, 8),
        "seq_len": st.sampled_from((128, 256, 512, 1024)),
        "grad_accum": st.sampled_from((1, 4)),
    }
).filter(lambda options: options["method"] != "bitfit" or options["model"] is GPT2)  # has biases


def _plan(options: dict[str, object], **changes: object) -> Plan:
    merged = options | changes
    model = merged.pop("model")
    assert isinstance(model, ModelSpec)
    return plan(model, **merged)


@COMMON
@given(configurations)
def test_components_sum_to_the_peak(options: dict[str, object]) -> None:
    memory = _plan(options).memory
    assert sum(memory.components.values()) == memory.allocated_bytes
    assert tuple(memory.components) == COMPONENTS
    inside = [v for k, v in memory.instants.items() if k not in OUTSIDE_THE_STEP]
    assert memory.allocated_bytes == max(inside)
    for instant, total in memory.instants.items():
        assert sum(memory.ledger.components(instant).values()) == total


@COMMON
@given(configurations)
def test_peak_never_falls_with_batch_and_length(options: dict[str, object]) -> None:
    peak = _plan(options).memory.allocated_bytes
    more, longer = options["micro_batch"], options["seq_len"]
    assert isinstance(more, int)
    assert isinstance(longer, int)
    assert _plan(options, micro_batch=more + 1).memory.allocated_bytes >= peak
    assert _plan(options, seq_len=longer * 2).memory.allocated_bytes >= peak


@COMMON
@given(configurations)
def test_peak_never_falls_with_layers(options: dict[str, object]) -> None:
    model = options["model"]
    assert isinstance(model, ModelSpec)
    deeper = replace(model, num_hidden_layers=model.num_hidden_layers + 2)
    peak = _plan(options).memory.allocated_bytes
    assert _plan(options, model=deeper).memory.allocated_bytes >= peak


@COMMON
@given(configurations, st.sampled_from((1, 4, 8, 16)))
def test_peak_never_falls_with_rank(options: dict[str, object], rank: int) -> None:
    lower = _plan(options, method="lora", lora_rank=rank).memory.allocated_bytes
    assert _plan(options, method="lora", lora_rank=rank * 2).memory.allocated_bytes >= lower


@COMMON
@given(configurations)
def test_saved_activations_never_rise_with_checkpointing(options: dict[str, object]) -> None:
    # Checkpointing makes the looked-up tokens require a gradient (transformers 5.23.0
    # modeling_utils.py), so blocks at the bottom that learn nothing keep something only then.
    frozen = options.get("method") in {"freeze", "bitfit"}
    levels, saved = choices.CHECKPOINTINGS[1:] if frozen else choices.CHECKPOINTINGS, []
    for level in levels:
        config = _plan(options, checkpointing=level).config
        passes = run_passes(config, keeps_gradients=True)
        layers = [link for link in passes.links if link.segment.kind == "layer"]
        saved.append(sum(sum(link.cost.saved.values()) * link.count for link in layers))
    assert saved == sorted(saved, reverse=True), dict(zip(levels, saved, strict=True))


@COMMON
@given(configurations, st.sampled_from((2, 4, 8)))
def test_saved_activations_never_rise_with_tensor_ranks(
    options: dict[str, object], ranks: int
) -> None:
    options = options | {"method": "full", "optimizer": "adamw"}
    whole = _saved(_plan(options, engine="megatron", gpus=8).config)
    split = _saved(_plan(options, engine="megatron", gpus=8, tp=ranks).config)
    assert split <= whole


def _saved(config: TrainConfig) -> int:
    links = run_passes(config, keeps_gradients=True).links
    return sum(sum(link.cost.saved.values()) * link.count for link in links)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_model_states_never_rise_with_the_stage(method: str) -> None:
    for gpus in (1, 2, 8, 64):
        states = [
            plan("7b", gpus=gpus, zero=stage, method=method).memory.model_states_bytes
            for stage in choices.ZERO_STAGES
        ]
        assert states == sorted(states, reverse=True)


@pytest.mark.parametrize("options", [{"zero": 1}, {"zero": 2}, {"zero": 3}, {"fsdp": "full-shard"}])
def test_model_states_never_rise_with_ranks(options: dict[str, object]) -> None:
    states = [
        plan("7b", gpus=gpus, **options).memory.model_states_bytes for gpus in (2, 4, 8, 16, 64)
    ]
    assert states == sorted(states, reverse=True)


@pytest.mark.parametrize("degree", ["tp", "pp", "cp"])
def test_model_states_never_rise_with_a_parallel_degree(degree: str) -> None:
    states = [
        plan("7b", gpus=32, engine="megatron", **{degree: size}).memory.model_states_bytes
        for size in (1, 2, 4, 8)
    ]
    assert states == sorted(states, reverse=True)


@COMMON
@given(configurations)
def test_a_plan_is_a_function_of_its_configuration(options: dict[str, object]) -> None:
    first = _plan(options)
    assert plan_config(first.config).memory.instants == first.memory.instants
