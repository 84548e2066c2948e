"""The model catalogue: a source on every entry, names that mean one model, exact counts."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vram_plan.profiles import models
from vram_plan.profiles.hf_config import CUSTOM_TYPES
from vram_plan.profiles.models import CatalogueEntry, catalogue, resolve_model

FILES = sorted((Path(models.__file__).parent / "data" / "models").glob("*.toml"))
ENTRIES = catalogue()

# transformers 5 sets tie_word_embeddings for this family whatever the config says, and its
# from_pretrained unties the head when the checkpoint holds one that differs.
HEAD_OF_ITS_OWN = ("t5", "mt5", "umt5")
MASKED = ("bert", "roberta", "xlm-roberta", "distilbert", "electra")
SEQUENCE_TO_SEQUENCE = (*HEAD_OF_ITS_OWN, "bart", "marian")

# Counts that others published: hub pages (safetensors), model cards, keras-hub's presets.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen-7B": 7_721_324_544,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "google/gemma-2-9b": 9_241_705_984,
    "openai-community/gpt2-xl": 1_557_611_200,
    "openai/gpt-oss-20b": 20_914_757_184,
    "bigscience/bloom": 176_247_271_424,
    "tiiuae/falcon-7b": 6_921_720_704,
    "mosaicml/mpt-7b": 6_649_286_656,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "THUDM/chatglm3-6b": 6_243_584_000,
    "internlm/internlm2-7b": 7_737_708_544,
    "google/t5-v1_1-xxl": 11_135_332_352,
    "google/mt5-small": 300_176_768,
}


def _names(entry: CatalogueEntry) -> list[str]:
    return [entry.name, *entry.aliases]


def _count(entry: CatalogueEntry) -> int:
    """Distinct parameters of transformers' model with a head, built without memory."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
    )
    from transformers.initialization import no_init_weights

    fields = dict(entry.config)
    kind = fields.pop("model_type")
    model_class: Any = AutoModelForCausalLM
    if kind in MASKED:
        model_class = AutoModelForMaskedLM
    elif kind in SEQUENCE_TO_SEQUENCE:
        model_class = AutoModelForSeq2SeqLM
    # Catalogue entries carry a null for fields that only some classes have.
    known = {name: value for name, value in fields.items() if value is not None}
    nulls = {name for name in ("sliding_window", "q_lora_rank") if fields.get(name) is None}
    config = AutoConfig.for_model(kind, **known)
    for name in nulls:
        if hasattr(config, name):
            setattr(config, name, None)
    with torch.device("meta"), no_init_weights():
        model = model_class.from_config(config)
    model.tie_weights()  # loading does it; without initialisation nobody has
    count: int = sum(parameter.numel() for parameter in model.parameters())
    if kind in HEAD_OF_ITS_OWN and not fields["tie_word_embeddings"]:
        count += fields["vocab_size"] * fields["d_model"]
    return count


def test_the_catalogue_is_broad() -> None:
    assert len(ENTRIES) >= 200
    assert len({entry.config["model_type"] for entry in ENTRIES}) >= 35


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_entry_says_where_it_is_from(path: Path) -> None:
    for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
        assert table["source"].startswith(("https://", "github:")), name
        assert table["model_type"], name
        assert table["aliases"], name
        assert type(table["parameters"]) is int, name
        assert type(table["tie_word_embeddings"]) is bool, name


def test_a_name_means_one_model() -> None:
    names = Counter(name.casefold() for entry in ENTRIES for name in _names(entry))
    assert [name for name, times in names.items() if times > 1] == []


def test_the_last_part_of_a_name_means_one_model() -> None:
    owners: dict[str, set[str]] = {}
    for entry in ENTRIES:
        for name in _names(entry):
            owners.setdefault(name.casefold().rpartition("/")[2], set()).add(entry.name)
    assert {part: found for part, found in owners.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_name_resolves(path: Path) -> None:
    for entry in ENTRIES:
        if entry.family == path.stem:
            for name in _names(entry):
                assert resolve_model(name).name == entry.name


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_equal_the_published_ones(name: str) -> None:
    (entry,) = (entry for entry in ENTRIES if entry.name == name)
    assert entry.parameters == PUBLISHED[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_parameters_are_those_of_the_transformers_model(path: Path) -> None:
    pytest.importorskip("transformers")
    entries = [
        entry
        for entry in ENTRIES
        if entry.family == path.stem and entry.config["model_type"] not in CUSTOM_TYPES
    ]
    if not entries:
        pytest.skip("the code of these models lives on the hub")
    wrong = {
        entry.name: (entry.parameters, counted)
        for entry in entries
        if (counted := _count(entry)) != entry.parameters
    }
    assert wrong == {}
