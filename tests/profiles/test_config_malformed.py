"""Configs that are none: every refusal is one line with the file, the field and the way out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vram_plan.profiles.hf_config import MODEL_TYPES, from_hf_config, read_config
from vram_plan.profiles.models import catalogue, raw_config, resolve_model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}


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
        (b"[" * 100_000, r"is beyond any config"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", r"is beyond any config"),
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


@settings(max_examples=400)
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
        message = str(error)
    else:
        message = spec.note
        assert hash(spec) == hash(replace(spec))
        assert spec.num_blocks >= 1
    assert "\n" not in message


@settings(max_examples=100)
@given(JSON)
def test_whatever_a_config_is_only_valueerror_is_raised(raw: Any) -> None:
    try:
        from_hf_config(raw, name="fuzz")
    except ValueError:
        return
    raise AssertionError("no arbitrary value is a config")
