"""Size classes: exactly so many parameters, with a representative shape."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import resolve_model
from vram_plan.profiles.sizes import size_class, size_classes


def test_7b_is_exactly_seven_billion_in_the_shape_of_llama() -> None:
    spec = resolve_model("7b")
    assert spec.nominal_parameters == 7_000_000_000
    assert spec.note == (
        "size class: exactly 7,000,000,000 parameters with the shape of LLaMA-7B "
        "(arXiv:2302.13971, table 2)"
    )
    # arXiv:2302.13971, table 2: 4096 wide, 32 heads, 32 layers.
    assert (spec.hidden_size, spec.num_attention_heads, spec.num_hidden_layers) == (4096, 32, 32)
    assert (spec.intermediate_size, spec.vocab_size, spec.head_dim) == (11008, 32000, 128)


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        *(("0.5b", 5 * 10**8), ("1b", 10**9), ("1.5b", 15 * 10**8), ("3b", 3 * 10**9)),
        *(("6b", 6 * 10**9), ("6.7b", 67 * 10**8), ("7B", 7 * 10**9), ("7.5b", 75 * 10**8)),
        *(("8b", 8 * 10**9), ("13b", 13 * 10**9), ("14b", 14 * 10**9), ("20b", 20 * 10**9)),
        *(("30b", 30 * 10**9), ("32b", 32 * 10**9), ("33b", 33 * 10**9), ("34b", 34 * 10**9)),
        *(("40b", 40 * 10**9), ("65b", 65 * 10**9), ("70b", 70 * 10**9), ("72b", 72 * 10**9)),
        *(("110b", 110 * 10**9), ("175b", 175 * 10**9), ("180b", 180 * 10**9)),
        *(("405b", 405 * 10**9), ("1t", 10**12), ("125m", 125 * 10**6), (" 7b ", 7 * 10**9)),
        *(("6.74b", 6_740_000_000), ("100b", 10**11), ("60m", 6 * 10**7)),
    ],
)
def test_a_size_is_exactly_that_many_parameters(text: str, parameters: int) -> None:
    spec = resolve_model(text)
    assert spec.nominal_parameters == parameters
    assert spec.model_type == "llama"
    assert f"exactly {parameters:,} parameters" in spec.note


def llama_count(spec: ModelSpec) -> int:
    """Weights of a Llama: q and o, k and v, three of the feed-forward part, norms, tables."""
    h, kv, i = spec.hidden_size, spec.kv_dim, spec.intermediate_size
    layer = 2 * h * spec.query_dim + 2 * h * kv + 3 * h * i + 2 * h
    tables = spec.vocab_size * h * (1 if spec.tie_word_embeddings else 2)
    return spec.num_hidden_layers * layer + tables + h


@pytest.mark.parametrize("text", [one.size for one in size_classes()])
def test_a_listed_shape_is_near_its_size(text: str) -> None:
    spec = resolve_model(text)
    assert llama_count(spec) == pytest.approx(spec.nominal_parameters, rel=0.12)


@given(st.floats(min_value=0.05, max_value=9000))
def test_an_unlisted_size_takes_as_many_layers_as_it_needs(billions: float) -> None:
    spec = size_class(f"{billions:.3f}b")
    assert spec is not None
    assert spec.nominal_parameters is not None
    # One block more or less is the grain; tables alone can outweigh the smallest sizes.
    assert llama_count(spec) == pytest.approx(spec.nominal_parameters, rel=0.2)


@pytest.mark.parametrize("text", ["0b", "0.0001b", "99999b", "1m", "11t"])
def test_a_size_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="between 10m and 10t"):
        resolve_model(text)


def test_sizes_read_neither_catalogue_nor_readers() -> None:
    code = (
        "import sys; from vram_plan.profiles.models import resolve_model; resolve_model('7b');"
        "print(*[m for m in ('tomllib', 'json', 'vram_plan.profiles.hf_config') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
