"""Sizes, the catalogue, files and hub ids: everything `--model` may say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vram_plan.profiles import hub, models
from vram_plan.profiles.hf_config import MODEL_TYPES, from_hf_config, read_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import catalogue, raw_config, resolve_model
from vram_plan.profiles.names import UnknownNameError
from vram_plan.profiles.sizes import size_class, size_classes

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}


# Sizes


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


# Catalogue


def test_every_entry_becomes_a_spec_and_has_a_source() -> None:
    assert len(catalogue()) >= 150
    for entry in catalogue():
        spec = entry.spec()
        assert spec.name == entry.name
        assert spec.source == entry.source
        assert entry.source
        assert entry.parameters > 10**6


def test_no_two_models_share_a_name() -> None:
    seen: dict[str, str] = {}
    for entry in catalogue():
        for name in (entry.name, *entry.aliases):
            assert seen.setdefault(name.casefold(), entry.name) == entry.name, name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("LLAMA-2-7B", "meta-llama/Llama-2-7b-hf"),
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("qwen/qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1"),
    ],
)
def test_names_and_aliases(text: str, name: str) -> None:
    assert resolve_model(text).name == name


def test_published_counts_follow_from_the_shape() -> None:
    for name in ("meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B"):
        entry = next(one for one in catalogue() if one.name == name)
        assert llama_count(entry.spec()) == entry.parameters


def test_raw_config_holds_only_fields_of_the_config() -> None:
    raw = raw_config("llama-2-7b")
    assert raw["hidden_size"] == 4096
    assert not {"aliases", "source", "parameters"} & set(raw)
    with pytest.raises(UnknownNameError):
        raw_config("no-such-model")


def test_what_is_null_in_a_published_config_does_not_become_a_default() -> None:
    # TOML has no null; the class's default would be a window of 4,096 keys.
    assert resolve_model("mistralai/Mistral-7B-v0.1").sliding_window == 4096
    assert resolve_model("mistralai/Mistral-7B-v0.3").sliding_window == 0


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'lama-2-7b'; did you mean .*llama"):
        resolve_model("lama-2-7b")
    with pytest.raises(UnknownNameError, match=r"config\.json"):
        resolve_model("zzzzzzzz")
    with pytest.raises(ValueError, match="--model is empty"):
        resolve_model("  ")


# Files


def test_a_file_and_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA | {"torch_dtype": "float16"}))
    for path in (str(file), str(tmp_path)):
        spec = resolve_model(path)
        assert (spec.name, spec.source, spec.hidden_size) == (path, path, 4096)
        assert spec.torch_dtype == "float16"
        assert spec.nominal_parameters is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"is not JSON"),
        (b"{", r"is not JSON"),
        (b"\xff\xfe\x00", r"is not text"),
        (b"[1, 2]", r"must hold a JSON object"),
        (b"null", r"must hold a JSON object"),
        (b"[" * 100_000, r"nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", r"is not JSON|far larger|too large"),
        (b'{"model_type": "llama"}', r"hidden_size is missing"),
        (b"{}", r"model_type is missing"),
        (b" " * (8 * 2**20 + 1), r"too large for a config\.json"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        resolve_model(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "no" / "folder"):
        with pytest.raises(ValueError, match=r"no config\.json there"):
            resolve_model(str(path))
    with pytest.raises(ValueError, match="cannot be read"):
        read_config(Path("x" * 5000))


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ValueError, match=r"config\.json: cannot be read \(Permission denied\)"):
        read_config(file)


# Wrong fields


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size must be a whole number, got '4096'"),
        ({"hidden_size": 4096.0}, "hidden_size must be a whole number"),
        ({"hidden_size": True}, "hidden_size must be a whole number"),
        ({"hidden_size": -1}, "hidden_size must not be negative"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"hidden_size": 10**12 * 32}, "hidden_size must be between"),
        ({"hidden_size": 10**5000}, "far larger|divide evenly"),
        ({"hidden_size": 4097}, "hidden_size by num_attention_heads must divide evenly"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be between"),
        ({"num_key_value_heads": 5}, "must be a multiple of num_key_value_heads"),
        ({"vocab_size": {}}, "vocab_size must be a whole number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"attention_dropout": 2}, "attention_dropout must be between 0 and 1"),
        ({"attention_dropout": float("nan")}, "attention_dropout must be a finite number"),
        ({"hidden_act": 3}, "hidden_act must be a string"),
        ({"model_type": "lama"}, r"'lama' is not supported; did you mean llama"),
        ({"model_type": "mamba9000"}, "is not supported"),
        ({"model_type": 7}, "model_type must be a string"),
        ({"model_type": "gemma3"}, "text_config is missing"),
        ({"model_type": "gemma3", "text_config": []}, "text_config must be an object"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "names 1 layers of 32"),
        ({"model_type": "qwen2", "layer_types": ["mamba"] * 32}, "layer_types must be of"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"model_type": "phi", "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"model_type": "gpt_neo", "attention_types": 5}, "attention_types must look like"),
        ({"model_type": "t5", "d_ff": 64, "feed_forward_proj": "a-b-c"}, "feed_forward_proj"),
    ],
)
def test_a_wrong_field_is_named_with_the_way_out(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        from_hf_config(LLAMA | changes, name="my.json")
    message = str(caught.value)
    assert message.startswith("my.json")
    assert "\n" not in message
    assert len(message) < 1000


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=0, max_value=64),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["gelu", "gated-gelu", "full_attention", "bfloat16"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = sorted(
    {field for entry in catalogue() for field in entry.config}
    | {"text_config", "attn_config", "ffn_config", "rope_parameters", "pos_att_type", "dtype"}
    | {"attention_types", "quantization_config", "mlp_only_layers", "layer_types", "d_model"}
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.sampled_from([*MODEL_TYPES, *(entry.name for entry in catalogue())]),
    st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=8)), JSON, max_size=8),
)
def test_whatever_stands_in_a_config_only_valueerror_is_raised(
    base: str, changes: dict[str, Any]
) -> None:
    raw = {"model_type": base} if base in MODEL_TYPES else raw_config(base)
    try:
        spec = from_hf_config(raw | changes, name="fuzz")
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        hash(spec)
        assert spec.num_blocks >= 1


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_whatever_a_config_is_only_valueerror_is_raised(raw: Any) -> None:
    try:
        from_hf_config(raw, name="fuzz")
    except ValueError:
        return
    raise AssertionError("no arbitrary value is a config")


# The spec itself


def test_a_spec_is_frozen_hashable_and_checked() -> None:
    spec = resolve_model("7b")
    assert hash(spec) == hash(resolve_model("7b"))
    with pytest.raises(AttributeError):
        spec.hidden_size = 1  # type: ignore[misc]
    for changes in (
        {"hidden_dropout": -0.1},
        {"position_embedding_type": "magic"},
        {"qk_norm": "some"},
        {"kv_lora_rank": 512},
        {"layer_types": ("full_attention",)},
        {"num_experts": 8},
        {"num_experts": 8, "num_experts_per_tok": 2},
        {"is_encoder_decoder": True},
        {"nominal_parameters": 0},
        {"num_hidden_layers": 0},
    ):
        with pytest.raises(ValueError, match="7b"):
            replace(spec, **changes)


def test_windows_and_rotation() -> None:
    spec = replace(
        resolve_model("1b"),
        num_hidden_layers=2,
        sliding_window=16,
        layer_types=("sliding_attention", "full_attention"),
    )
    assert [spec.is_windowed(layer) for layer in (0, 1)] == [True, False]
    assert replace(spec, layer_types=()).is_windowed(1)
    assert replace(spec, partial_rotary_factor=0.5).rotary_dim == 32
    assert replace(spec, position_embedding_type="alibi").rotary_dim == 0


# The hub


def test_a_hub_id_is_asked_for_its_config_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA))
    monkeypatch.setattr(hub, "_download", lambda hub_id: file)
    spec = resolve_model("somebody/some-model")
    assert spec.name == "somebody/some-model"
    assert spec.source == "https://huggingface.co/somebody/some-model/blob/main/config.json"


def fail_with(error: Exception) -> Any:
    def download(hub_id: str) -> Path:
        raise error

    return download


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (ImportError("no huggingface_hub"), "pip install huggingface_hub"),
        (ConnectionError("no route"), r"\(ConnectionError: no route\).*local config\.json"),
        (RuntimeError("first\nsecond"), r"\(RuntimeError: first\)"),
        (RuntimeError(), r"\(RuntimeError: \)"),
    ],
)
def test_a_hub_that_fails(
    error: Exception, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_download", fail_with(error))
    with pytest.raises(ValueError, match=complaint) as caught:
        resolve_model("Qwen/Qwen2.5-77B")
    assert "did you mean Qwen/Qwen2.5-7" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_not_there_is_noticed_at_once() -> None:
    with pytest.raises(ConnectionError, match="does not answer"):
        hub._require_answer("http://localhost:9")


@pytest.mark.parametrize("text", ["a/b/c", "a/", "/a", "a", "a/b.json", "a/" + "b" * 200, "ä/b"])
def test_what_is_no_hub_id(text: str) -> None:
    assert not hub.is_hub_id(text)


def test_all_public_names_exist() -> None:
    assert all(hasattr(models, name) for name in models.__all__)
