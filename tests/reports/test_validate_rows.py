"""From a measured row to a model, options and the figure it is compared with."""

import random
from dataclasses import replace
from typing import Any

import pytest

from vram_plan.estimator.planner import count_parameters, plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.measured import Row, read_rows
from vram_plan.profiles.measured_row import COLUMNS
from vram_plan.reports.validate.judge import compare, predicted_bytes, stage_of
from vram_plan.reports.validate.lora_names import lora_targets
from vram_plan.reports.validate.model_of_row import model_of_row, parameters
from vram_plan.reports.validate.options_of_row import options_of_row
from vram_plan.reports.validate.outcomes import confusion
from vram_plan.reports.validate.run import Planner, judge, validate, worst
from vram_plan.reports.validate.stack_of_row import stack_of_row
from vram_plan.reports.validate.summary import middle, percentile, spread

ROWS = {row.id: row for row in read_rows() if isinstance(row, Row)}
LLAMA = Row(
    id="mine",
    group="mine/Llama-2-7b-hf",
    model="meta-llama/Llama-2-7b-hf",
    method="full",
    engine="torch",
    gpus=1,
    gpu="a100-80gb-sxm",
    micro_batch=1,
    seq_len=1024,
    outcome="ok",
    quality="A",
    allocated_peak_bytes=10**11,
)


def options(row: Row) -> dict[str, Any]:
    return options_of_row(row, model_of_row(row))


def test_a_name_of_the_catalogue_is_that_model() -> None:
    model = model_of_row(LLAMA)
    assert (model.model_type, model.num_hidden_layers) == ("llama", 32)
    assert model_of_row(replace(LLAMA, model="NousResearch/Llama-2-7b-hf")).hidden_size == 4096


def test_a_stated_shape_wins_over_the_catalogue() -> None:
    model = model_of_row(replace(LLAMA, vocab_size=32064, num_layers=2))
    assert (model.vocab_size, model.num_hidden_layers) == (32064, 2)


def test_a_model_of_another_size_is_built_like_its_family() -> None:
    row = next(row for row in ROWS.values() if row.model == "mosaicml/mpt-1b")
    model = model_of_row(row)
    assert (model.model_type, model.hidden_size, model.name) == ("mpt", 2048, "mosaicml/mpt-1b")


@pytest.mark.parametrize("number", ["mcore-020", "nanotron-001", "bloom-001", "fms-a100-main-009"])
def test_a_shape_of_columns_has_the_parameters_of_the_row(number: str) -> None:
    row = ROWS[number]
    assert row.params is not None
    assert parameters(model_of_row(row)) == pytest.approx(row.params, rel=0.01)


def test_a_shape_of_another_architecture_is_no_model() -> None:
    row = ROWS["mcore-020"]
    assert row.params is not None
    with pytest.raises(ValueError, match="parameters, the row says"):
        model_of_row(replace(row, params=2 * row.params))


def test_own_count_of_parameters_is_the_estimators() -> None:
    for number in ("mcore-020", "nanotron-001"):
        model = model_of_row(ROWS[number])
        config = resolve(model, {"seq_len": 128, "attention": "eager", "engine": "torch"})
        whole, _ = count_parameters(config)
        assert whole == pytest.approx(parameters(model), rel=0.002)


def test_a_model_without_a_shape_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="hidden size is not stated"):
        model_of_row(replace(LLAMA, model="somebody/Unheard-7B"))


@pytest.mark.parametrize(
    ("model", "stated", "names"),
    [
        ("meta-llama/Llama-2-7b-hf", "q,k,v,o", "q_proj,k_proj,v_proj,o_proj"),
        ("meta-llama/Llama-2-7b-hf", "qkv", "q_proj,k_proj,v_proj"),
        (
            "meta-llama/Llama-2-7b-hf",
            "q,v,o,mlp",
            "q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        ),
        ("bigcode/gpt_bigcode-santacoder", "q,k,v,o", "c_attn,attn.c_proj"),
        ("Qwen/Qwen-7B", "qkv", "c_attn"),
        ("tiiuae/falcon-7b", "q,v", "query_key_value"),
        ("meta-llama/Llama-2-7b-hf", "all-linear", "all-linear"),
    ],
)
def test_lora_targets_in_the_names_of_the_class(model: str, stated: str, names: str) -> None:
    row = replace(LLAMA, model=model, method="lora", lora_targets=stated)
    assert lora_targets(row, model_of_row(row)) == names


def test_options_say_what_the_row_says() -> None:
    row = ROWS["fms-a100-main-082"]
    found = options(row)
    assert found["method"] == "lora"
    assert found["quantization"] == "nf4"
    assert found["double_quant"] is True
    assert found["kbit_preparation"] is False, "its notes say so"
    assert found["engine"] == "fsdp1"
    assert found["fsdp"] == "full-shard"
    assert found["gpu"].name == row.gpu
    assert str(found["stack"]).startswith("torch=2.4.1,transformers=4.48.1")


def test_what_is_not_stated_is_left_to_the_default() -> None:
    found = options(LLAMA)
    assert not {"precision", "weights_dtype", "optimizer", "loss", "lora_rank"} & set(found)


def test_micro_batches_follow_from_the_global_batch() -> None:
    row = replace(LLAMA, engine="ddp", gpus=4, data_parallel=4, global_batch=64, grad_accum=None)
    assert options(row)["grad_accum"] == 16


@pytest.mark.parametrize(
    ("number", "ep", "tensor"),
    [("mcore-097", 4, "1"), ("mcore-105", 2, "2"), ("mcore-093", 4, "1"), ("mcore-092", 2, "")],
)
def test_expert_ranks_that_take_tensor_ranks(number: str, ep: int, tensor: str) -> None:
    row = replace(ROWS[number], notes=None)
    assert options(row)["ep"] == ep
    assert stack_of_row(row).version("expert-tensor-parallel-size") == tensor


def test_libraries_nobody_knows_do_not_hinder() -> None:
    row = replace(LLAMA, stack="torch=2.1.0;homegrown=7;alloc_conf=x", trainer="homegrown")
    assert stack_of_row(row).version("torch") == "2.1.0"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"micro_batch": None}, "micro-batch is not stated"),
        ({"seq_len": None}, "sequence length is not stated"),
        ({"gpus": None, "engine": "ddp"}, "number of GPUs is not stated"),
        ({"engine": "deepspeed"}, "ZeRO stage is not stated"),
        ({"engine": None, "gpus": 2}, "engine is not stated"),
        ({"engine": "libai"}, "engine libai cannot be planned"),
        ({"method": "lisa"}, "method lisa cannot be planned"),
        ({"method": None}, "method is not stated"),
        ({"method": "lora"}, "LoRA targets are not stated"),
        ({"objective": "dpo"}, "objective dpo cannot be planned"),
        ({"quantization": "hqq4"}, "quantization hqq4 cannot be planned"),
        ({"precision": "nvfp4"}, "precision nvfp4 cannot be planned"),
        ({"optimizer": "lomo"}, "optimizer lomo cannot be planned"),
        ({"compile": True, "stack": "torchtitan=e7c0cae"}, "compiled loss cannot be planned"),
    ],
)
def test_what_cannot_be_expressed_is_said(change: dict[str, Any], reason: str) -> None:
    result = validate([replace(LLAMA, **change)])
    assert [reason in one.reason for one in result.skipped] == [True], result.skipped
    assert not result.comparisons


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("recomputed modules: layernorm mlp; FP8", "recomputation of layernorm, mlp cannot"),
        ("recomputed modules: mlp+core_attn", "recomputation of mlp cannot"),
        ("multi-latent attention, q/kv ranks 1536/512", "multi-latent attention cannot"),
        ("recomputed modules: core_attn; counter not named", ""),
    ],
)
def test_notes_say_what_megatron_ran(said: str, reason: str) -> None:
    row = replace(LLAMA, engine="megatron", zero_stage=1, checkpointing="selective", notes=said)
    result = validate([row])
    assert [reason in one.reason for one in result.skipped] == ([True] if reason else [])
    assert bool(result.comparisons) is not bool(reason)


def test_every_counter_is_compared_with_its_own_figure() -> None:
    counters: dict[str, Any] = {
        "allocated_peak_bytes": 1,
        "allocated_final_bytes": 2,
        "reserved_peak_bytes": 3,
        "device_used_bytes": 4,
        "memory_bytes": 5,
    }
    row = replace(LLAMA, **counters)
    plan = Planner().plan(row, None)
    found = {one.metric: one for one in compare(row, plan)}
    assert set(found) == set(counters)
    assert found["allocated_peak_bytes"].predicted == plan.memory.allocated_bytes
    assert found["allocated_final_bytes"].predicted < plan.memory.allocated_bytes
    assert found["memory_bytes"].predicted == found["reserved_peak_bytes"].predicted
    assert found["device_used_bytes"].predicted > found["reserved_peak_bytes"].predicted
    assert found["reserved_peak_bytes"].predicted >= plan.memory.allocated_bytes
    for metric, measured in counters.items():
        assert found[metric].error == predicted_bytes(plan, metric) / measured - 1


def test_megatron_is_read_on_its_last_rank() -> None:
    row = ROWS["mcore-020"]
    assert (row.memory_rank, stage_of(row)) == ("last", -1)
    assert stage_of(replace(row, memory_rank="max")) is None
    assert stage_of(replace(row, pipeline_parallel=1)) is None
    planner = Planner()
    last, first = planner.plan(row, -1), planner.plan(row, 0)
    assert last.memory.instants != first.memory.instants
    fullest = planner.plan(row, None).memory.largest_bytes
    assert fullest >= max(last.memory.largest_bytes, first.memory.largest_bytes)


def test_a_failed_run_has_an_outcome_and_no_peak() -> None:
    row = replace(LLAMA, outcome="failed", gpu="rtx-4090-24gb")
    found, outcome = judge(row, Planner())
    assert not found
    assert outcome is not None
    assert confusion([outcome])["failed"]["does not fit"] == 1, "7B in bf16 needs 10 bytes a weight"


def test_a_run_on_an_unknown_card_is_compared_but_not_judged() -> None:
    found, outcome = judge(replace(LLAMA, gpu="gtx-9000-1tb"), Planner())
    assert found
    assert outcome is None


def test_rows_of_one_configuration_share_a_plan() -> None:
    result = validate([LLAMA, replace(LLAMA, id="other")])
    assert result.comparisons[0].plan is result.comparisons[1].plan


def test_spreads() -> None:
    found = spread([-0.5, 0.1, 0.2, 0.3])
    assert (found.n, found.median, found.max) == (4, 0.25, 0.5)
    assert found.signed == pytest.approx(0.15)
    assert middle([1.0, 2.0, 9.0]) == 2.0
    ordered = [float(i) for i in range(1, 101)]
    assert (percentile(ordered, 90), percentile(ordered, 95), percentile([7.0], 90)) == (90, 95, 7)


def test_worst_come_first() -> None:
    rows = [replace(LLAMA, id=str(n), allocated_peak_bytes=n * 10**10) for n in (5, 1, 9)]
    sizes = [abs(one.error) for one in worst(validate(rows).comparisons, 2)]
    every = [abs(one.error) for one in validate(rows).comparisons]
    assert sizes == sorted(every, reverse=True)[:2]


def test_what_is_predicted_grows_with_the_batch() -> None:
    """The law that holds of every plan holds of every row: a larger micro-batch is no cheaper."""
    for number in ("fms-a100-main-009", "mcore-020", "litgpt-012", "swift1-001", "qwen-001"):
        row = ROWS[number]
        assert row.micro_batch is not None
        model = model_of_row(row)
        small = resolve(model, options(row))
        large = resolve(model, options(replace(row, micro_batch=2 * row.micro_batch)))
        peaks = [plan_config(one).memory.allocated_bytes for one in (small, large)]
        assert peaks[0] <= peaks[1]


def test_rows_nobody_ran_are_skipped_with_a_reason_or_predicted() -> None:
    """Fields of other rows put into a row: never anything but a reason or a positive figure."""
    chance = random.Random(3)
    every = [row for row in ROWS.values() if row.micro_batch and row.seq_len]
    names = [name for name in COLUMNS if name not in {"id", "group", "outcome", "quality"}]
    for _ in range(250):
        row = chance.choice(every)
        for name in chance.sample(names, 4):
            row = replace(row, **{name: getattr(chance.choice(every), name)})
        result = validate([row])
        assert len(result.skipped) == (not result.comparisons and not result.outcomes)
        for one in result.comparisons:
            if one.metric.startswith("allocated"):
                assert one.predicted > 0


@pytest.mark.parametrize(("name", "heads"), [("bloom-028", 64), ("bloom-031", 64)])
def test_heads_that_the_file_states_below_its_tables(name: str, heads: int) -> None:
    row = next(row for row in read_rows() if isinstance(row, Row) and row.id == name)
    assert row.num_heads is None
    assert model_of_row(row).num_attention_heads == heads
    elsewhere = replace(row, source="github:someone/else@0123abc:train/README.md#L1")
    with pytest.raises(ValueError, match="num heads is not stated"):
        model_of_row(elsewhere)
