"""The spec, the catalogue and hub ids: what `--model` may say besides sizes and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vram_plan.profiles import hub, models
from vram_plan.profiles.models import catalogue, raw_config, resolve_model
from vram_plan.profiles.names import UnknownNameError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}


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
