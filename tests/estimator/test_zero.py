"""Laws and golden numbers of DeepSpeed's stages, and its configuration file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vram_plan.estimator import plan
from vram_plan.estimator.config import ZeroSizes
from vram_plan.estimator.ds_config import parse_ds_config, read_ds_config
from vram_plan.estimator.sharding.onebit import padded
from vram_plan.estimator.sharding.zero_bucket import flattened, reductions, slices
from vram_plan.estimator.sharding.zero_parts import REDUCTION
from vram_plan.estimator.step import BACKWARD_FIRST, BACKWARD_LAST, EMBEDDING_BACKWARD, LOSS

# ZeRO (arXiv:1910.02054), figure 1: 7.5e9 parameters, 64 ranks; GB are 1e9 bytes.
FIGURE_1 = [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)]


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 38.5), (2, 26.25), (3, 14.0)])
def test_states_of_7b_on_8_gpus(stage: int, gigabytes: float) -> None:
    assert plan("7b", zero=stage, gpus=8).memory.model_states_bytes == gigabytes * 1e9


@pytest.mark.parametrize(("stage", "gigabytes"), FIGURE_1)
def test_zero_figure_1(stage: int, gigabytes: float) -> None:
    states = plan("7.5b", zero=stage, gpus=64).memory.model_states_bytes
    assert round(states / 1e9, 1) == gigabytes


def entries(name: str, **options: Any) -> dict[str, int]:
    found = plan("7b", **options).memory.ledger.entries
    return {entry.name: entry.bytes for entry in found if name in entry.name}


def test_stage_0_copies_gradients_twice_in_fp32() -> None:
    assert entries("fp32 copies", zero=0, gpus=8) == {"fp32 copies of the gradients": 56 * 10**9}


def test_the_update_copies_the_partition_flat_and_in_fp32() -> None:
    copies = entries("copy of the partition's gradients", zero=2, gpus=8)
    assert sorted(copies.values()) == [1_750_000_000, 3_500_000_000]


def test_the_bucket_is_there_whatever_is_trained() -> None:
    for method in ("full", "lora"):
        bucket = entries("reduce bucket", zero=2, gpus=8, method=method)
        assert bucket["reduce bucket"] == 1_000_000_000


def test_a_second_partition_is_there_once_a_bucket_has_been_reduced() -> None:
    """LoRA's gradients fit into one bucket, which is reduced when the backward pass is over."""
    name = "partition of one micro-batch"
    assert entries(name, zero=2, gpus=8, grad_accum=2, method="lora") == {}
    assert len(entries(name, zero=2, gpus=8, grad_accum=2)) == 1


def test_the_first_gradient_makes_the_bucket() -> None:
    """One of a prompt's encoder arrives after the blocks', one of the head before them."""
    alive: dict[str, set[str]] = {}
    for method in ("lora", "p-tuning", "p-tuning-v2"):
        made = plan("7b", zero=1, gpus=8, method=method).memory.ledger.entries
        named = [entry.alive for entry in made if entry.name == "reduce bucket"]
        alive[method] = set().union(*named)
    assert {BACKWARD_LAST, BACKWARD_FIRST} <= alive["lora"]
    assert alive["p-tuning"] == {EMBEDDING_BACKWARD, REDUCTION}
    assert BACKWARD_LAST not in alive["p-tuning-v2"]  # a prefix learns behind the first block


def test_stage_3_saves_the_inputs_of_frozen_layers() -> None:
    """DeepSpeed 0.19.8 runtime/zero/linear.py; GPT-2's Conv1D is no linear layer."""
    for model, more in (("meta-llama/Llama-3.2-1B", True), ("gpt2", False)):
        kept = {
            stage: plan(model, zero=stage, gpus=2, seq_len=512, method="p-tuning-v2").memory
            for stage in (2, 3)
        }
        saved = {stage: one.ledger.components(LOSS)["activations"] for stage, one in kept.items()}
        assert (saved[3] > saved[2]) == more


def test_layers_of_8_bits_hold_their_codes_whole() -> None:
    """bitsandbytes 0.50.2 nn/modules.py Linear8bitLt: their state refers to them at stage 3 too."""
    held = {}
    for bits in ("int8", "nf4"):
        named = entries(f"weights in {bits}", zero=3, gpus=8, method="lora", quantization=bits)
        (held[bits],) = named.values()
    assert held["int8"] > 6e9
    assert held["nf4"] < 2e9


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_the_preparation_widens_is_cast_back(stage: int) -> None:
    """DeepSpeed casts the norms and tables that PEFT held in fp32."""
    given = {"zero": stage, "gpus": 8, "method": "lora", "quantization": "nf4"}
    peaks = [plan("7b", kbit_preparation=on, **given).memory.instants for on in (True, False)]
    assert peaks[0] == peaks[1]


def test_overlap_doubles_the_bucket_of_stages_1_and_2() -> None:
    sizes = ZeroSizes(overlap_comm=True)
    assert entries("reduce bucket", zero=2, gpus=8, zero_sizes=sizes) == {
        "reduce bucket": 2_000_000_000
    }


def test_offload_leaves_weights_and_staging_on_the_device() -> None:
    states = plan("7b", zero=2, gpus=8, offload="optimizer").memory
    assert states.model_states_bytes == 14 * 10**9
    assert states.host_bytes >= 16 * 7 * 10**9
    assert plan("7b", zero=3, gpus=8, offload="optimizer+params").memory.model_states_bytes == 0


def test_infinity_moves_the_optimizer_to_nvme() -> None:
    found = plan("70b", zero=3, gpus=8, offload="optimizer+params", offload_device="nvme").memory
    # fp32 weights, gradients and two moments, and 16-bit weights beyond the 1e9 kept on the host
    assert found.nvme_bytes == pytest.approx(16 * 70e9 + 2 * (70e9 - 8e9), rel=1e-3)


def test_one_bit_adam_remembers_what_signs_lose() -> None:
    errors = entries("errors", zero=0, gpus=8, optimizer="one-bit-adam")
    worker, server = errors.values()
    assert worker == pytest.approx(28e9, rel=1e-4)
    assert server == pytest.approx(worker / 8, rel=1e-6)


@given(st.integers(1, 10**9), st.integers(1, 4096))
def test_padded_errors_divide(numel: int, ranks: int) -> None:
    found = padded(numel, ranks)
    assert found >= numel
    assert found % ranks == 0
    assert found // ranks % 8 == 0


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=50), st.integers(1, 2000))
def test_every_gradient_is_reduced_once(numels: list[int], bucket: int) -> None:
    found = list(reductions(numels, bucket))
    assert [r.first for r in found] == [0, *[r.end for r in found[:-1]]]
    assert found[-1].end == len(numels)
    for r in found:
        assert r.elements == sum(numels[r.first : r.end])
        assert r.elements <= bucket or r.end - r.first == 1


@given(st.integers(0, 500), st.integers(1, 500), st.integers(1, 600), st.integers(1, 600))
def test_one_partition_needs_no_copy(begin: int, length: int, size: int, bucket: int) -> None:
    copied = flattened(slices([(begin, begin + length)], size), bucket)
    assert 0 <= copied <= length
    if begin // size == (begin + length - 1) // size:
        assert copied == 0


def test_gradients_of_one_partition_are_one_slice_only_side_by_side() -> None:
    assert slices([(4, 6), (2, 4)], 10) == [(0, 4)]
    assert slices([(4, 6), (12, 14), (2, 4)], 10) == [(0, 2), (1, 2), (0, 2)]
    assert slices([(8, 13)], 10) == [(0, 2), (1, 3)]


@pytest.mark.parametrize(
    ("stage", "offload"),
    [(0, "none"), *((stage, offload) for stage in (1, 2, 3) for offload in ("none", "optimizer"))],
)
def test_less_on_more_gpus(stage: int, offload: str) -> None:
    peaks = [
        plan("7b", zero=stage, gpus=gpus, offload=offload).memory.allocated_bytes
        for gpus in (2, 4, 8, 16, 32)
    ]
    assert peaks == sorted(peaks, reverse=True)


AUTO = {
    "bf16": {"enabled": "auto"},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": 4,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "sub_group_size": 1e9,
        "offload_optimizer": {"device": "nvme", "buffer_count": 6},
        "offload_param": {"device": "cpu"},
    },
}


def test_auto_sizes_follow_the_width() -> None:
    sizes = parse_ds_config(AUTO).for_model(4096).sizes
    assert sizes.reduce_bucket_size == 4096**2
    assert sizes.stage3_prefetch_bucket_size == int(0.9 * 4096**2)
    assert sizes.stage3_param_persistence_threshold == 40_960
    assert sizes.optimizer_buffer_count == 6
    assert sizes.offload_param_device == "cpu"


def test_options_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(AUTO))
    found = read_ds_config(path)
    assert found.stage == 3
    assert found.options == {
        "grad_accum": 4,
        "offload": "optimizer+params",
        "offload_device": "nvme",
    }


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_defaults_are_deepspeeds(stage: int) -> None:
    found = parse_ds_config({"zero_optimization": {"stage": stage}, "fp16": {"enabled": True}})
    assert found.sizes == ZeroSizes(overlap_comm=stage == 3)
    assert found.options == {"precision": "fp16"}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ([], "not a DeepSpeed configuration"),
        ({"hidden_size": 4096}, "not a DeepSpeed configuration"),
        ({"zero_optimization": 3}, "zero_optimization must be an object"),
        ({"zero_optimization": {"stage": 4}}, "stage must be 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": True}}, "stage must be"),
        ({"zero_optimization": {"reduce_bucket_size": "5e8"}}, "reduce_bucket_size must be"),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "reduce_bucket_size must be"),
        ({"zero_optimization": {"reduce_bucket_size": 0.5}}, "reduce_bucket_size must be"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, "overlap_comm must be"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "gpu"}}}, "one of none"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "needs stage 3"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "choose one"),
        ({"data_types": {"grad_accum_dtype": "fp8"}}, "grad_accum_dtype must be"),
    ],
)
def test_files_that_are_not_what_they_claim(raw: object, says: str) -> None:
    with pytest.raises(ValueError, match=r"^--ds-config") as error:
        parse_ds_config(raw)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "{", "{'stage': 3}", '{"bf16": {}, "bf16": {}}', "[" * 100_000, "\x00"]
)
def test_files_that_are_not_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^--ds-config .*JSON"):
        read_ds_config(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ValueError, match=r"^--ds-config"):
            read_ds_config(path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.sampled_from(
    ["stage", "reduce_bucket_size", "overlap_comm", "offload_optimizer", "offload_param", "device"]
)


@given(st.dictionaries(keys, scalars | st.dictionaries(keys, scalars, max_size=3), max_size=4))
def test_random_files_are_read_or_refused(zero: dict[str, Any]) -> None:
    said = "--ds-config"
    try:
        parse_ds_config({"zero_optimization": zero})
    except ValueError as error:
        said = str(error)
    assert said.startswith("--ds-config")
    assert len(said.splitlines()) == 1
