"""Trainable parameters of every PEFT method equal PEFT's own count, on many architectures."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Shape, build_chain
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.methods.adalora import AdaLora
from vram_plan.estimator.methods.base import Method
from vram_plan.estimator.methods.dora import Dora
from vram_plan.estimator.methods.ia3 import Ia3
from vram_plan.estimator.methods.lora import Lora
from vram_plan.estimator.methods.prefix import Prefix
from vram_plan.estimator.methods.prompts import Prompt, PTuning
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

Fields = dict[str, Any]
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
GATED = SIZES | {"intermediate_size": 144}
ARCHITECTURES: dict[str, Fields] = {
    "llama": GATED | {"num_key_value_heads": 2},
    "qwen3": GATED | {"num_key_value_heads": 2, "head_dim": 32},
    "gemma2": GATED | {"num_key_value_heads": 2, "head_dim": 32},
    "mixtral": GATED | {"num_key_value_heads": 2, "num_local_experts": 4},
    "phi": GATED,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96},
    "gpt_neox": GATED,
    "opt": SIZES | {"ffn_dim": 144, "word_embed_proj_dim": 64},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96},
    "falcon": SIZES | {"multi_query": False},
    "bert": GATED,
    "t5": {
        "d_model": 64,
        "d_kv": 16,
        "num_heads": 4,
        "d_ff": 144,
        "num_layers": 2,
        "vocab_size": 96,
    },
    "bart": {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 144,
        "decoder_ffn_dim": 144,
        "vocab_size": 96,
    },
}
ENCODERS = frozenset({"bert"})
SEQ2SEQ = frozenset({"t5", "bart"})
METHODS: dict[str, tuple[Method, str, Fields]] = {
    "lora": (Lora(4, "all-linear"), "LoraConfig", {"r": 4, "target_modules": "all-linear"}),
    "dora": (
        Dora(4, "all-linear"),
        "LoraConfig",
        {"r": 4, "target_modules": "all-linear", "use_dora": True},
    ),
    "adalora": (
        AdaLora(12, "all-linear"),
        "AdaLoraConfig",
        {"init_r": 12, "target_modules": "all-linear", "total_step": 10},
    ),
    "ia3": (Ia3(), "IA3Config", {}),
    "prompt": (Prompt(6), "PromptTuningConfig", {"num_virtual_tokens": 6}),
    "prefix": (Prefix(6), "PrefixTuningConfig", {"num_virtual_tokens": 6}),
    "prefix-projection": (
        Prefix(6, 40),
        "PrefixTuningConfig",
        {"num_virtual_tokens": 6, "prefix_projection": True, "encoder_hidden_size": 40},
    ),
    "p-tuning": (
        PTuning(6, "mlp", 24),
        "PromptEncoderConfig",
        {"num_virtual_tokens": 6, "encoder_hidden_size": 24},
    ),
    "p-tuning-lstm": (
        PTuning(6, "lstm", 24),
        "PromptEncoderConfig",
        {
            "num_virtual_tokens": 6,
            "encoder_hidden_size": 24,
            "encoder_reparameterization_type": "LSTM",
        },
    ),
}


def counted(fields: Fields, method: Method) -> int:
    """Trainable parameters of the plan."""
    spec = from_hf_config(fields, name="small", source="test")
    chain = build_chain(spec, compose(spec), Treatment(method=method), Shape(batch=1, seq=16))
    return take_inventory(chain).numel(trainable=True)


def peft_counted(fields: Fields, config: str, options: Fields) -> int:
    """Trainable parameters of the library's model in bf16, on no device."""
    kind = fields["model_type"]
    auto, task = transformers.AutoModelForCausalLM, "CAUSAL_LM"
    if kind in SEQ2SEQ:
        auto, task = transformers.AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"
    elif kind in ENCODERS:
        auto, task = transformers.AutoModelForMaskedLM, "FEATURE_EXTRACTION"
    values = {name: value for name, value in fields.items() if name != "model_type"}
    shape = transformers.AutoConfig.for_model(kind, **values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            model = auto.from_config(shape, dtype=torch.bfloat16)
        wrapped = peft.get_peft_model(model, getattr(peft, config)(task_type=task, **options))
    return int(wrapped.get_nb_trainable_parameters()[0])


def pairs() -> list[tuple[str, str]]:
    """Every method on every architecture but DoRA on stacked experts, which PEFT refuses."""
    every = [(kind, name) for kind in ARCHITECTURES for name in METHODS]
    return [pair for pair in every if pair != ("mixtral", "dora")]


@pytest.mark.parametrize(("kind", "name"), pairs())
def test_trainable_parameters_equal_peft(kind: str, name: str) -> None:
    """The plan counts what PEFT counts."""
    method, config, options = METHODS[name]
    fields = ARCHITECTURES[kind] | {"model_type": kind}
    assert counted(fields, method) == peft_counted(fields, config, options)


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", "q_proj,v_proj"),
        ("gpt2", "c_attn, mlp.c_proj"),
        ("gpt2", "c_proj"),
        ("t5", "q,v"),
        ("bert", "query,attention.output.dense"),
        ("bert", "dense"),
        ("falcon", "query_key_value"),
    ],
)
def test_named_targets_match_as_in_peft(kind: str, targets: str) -> None:
    """Names and path endings between commas select what PEFT selects."""
    fields = ARCHITECTURES[kind] | {"model_type": kind}
    names = [part.strip() for part in targets.split(",")]
    expected = peft_counted(fields, "LoraConfig", {"r": 4, "target_modules": names})
    assert counted(fields, Lora(4, targets)) == expected


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("gpt2", ["c_attn", "attn.c_proj"]),
        ("bert", ["query", "key", "value", "attention.output.dense"]),
        ("t5", ["q", "k", "v", "o"]),
    ],
)
def test_attention_targets_are_its_linear_layers(kind: str, names: list[str]) -> None:
    """``attention`` stands for every linear layer of attention modules."""
    fields = ARCHITECTURES[kind] | {"model_type": kind}
    expected = peft_counted(fields, "LoraConfig", {"r": 4, "target_modules": names})
    assert counted(fields, Lora(4, "attention")) == expected


BLOOMZ = {
    "model_type": "bloom",
    "hidden_size": 1024,
    "n_layer": 24,
    "n_head": 16,
    "vocab_size": 250880,
}


def test_documented_counts_of_bloomz_560m() -> None:
    """The figures of PEFT's own guides for bigscience/bloomz-560m."""
    assert counted(BLOOMZ, PTuning(20, "lstm", 128)) == 1_926_400
    assert counted(BLOOMZ, Prompt(8)) == 8_192
