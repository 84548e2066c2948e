"""Which composition an architecture has; its module is imported when it is first asked for."""

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from vram_plan.profiles.model import ModelSpec

if TYPE_CHECKING:
    from vram_plan.estimator.segment import Composition

_MODULES = {
    "bert": "bert",
    "roberta": "bert",
    "xlm-roberta": "bert",
    "electra": "bert",
    "distilbert": "distilbert",
    "t5": "t5",
    "mt5": "t5",
    "umt5": "t5",
    "bart": "bart",
    "mbart": "bart",
    "pegasus": "bart",
    "marian": "bart",
    "albert": "albert",
    "gpt2": "gpt2",
    "gpt_neo": "gpt_neo",
    "gptj": "gptj",
    "codegen": "codegen",
    "opt": "opt",
    "bloom": "bloom",
    "mpt": "mpt",
    "gpt_bigcode": "gpt_bigcode",
    "phi": "phi",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "falcon": "falcon",
    "gpt_neox": "gpt_neox",
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "mixtral",
    "phimoe": "phimoe",
    "dbrx": "dbrx",
    "gpt_oss": "gpt_oss",
    "deepseek_v3": "deepseek",
    "deepseek_v2": "deepseek",
    "granitemoeshared": "granitemoe",
    "granitemoe": "granitemoe",
    "qwen3_moe": "qwen3_moe",
    "qwen2_moe": "qwen2_moe",
    "olmoe": "olmoe",
    "qwen2": "llama",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "cohere": "cohere",
    "granite": "granite",
    "glm": "glm",
    "glm4": "glm",
    "chatglm": "chatglm",
    "chatglm1": "chatglm1",
    "baichuan": "baichuan",
    "qwen": "qwen",
    "internlm": "internlm2",
    "internlm2": "internlm2",
}
"""Hugging Face's ``model_type`` → module of this package."""


def known_model_types() -> tuple[str, ...]:
    """Every ``model_type`` that can be planned."""
    return tuple(_MODULES)


@lru_cache(maxsize=256)
def compose(spec: ModelSpec) -> "Composition":
    """The composition of a model.

    Raises:
        ValueError: if no composition exists for its ``model_type``.
    """
    module = _MODULES.get(spec.model_type)
    if module is None:
        raise ValueError(
            f"--model {spec.name}: architecture {spec.model_type!r} cannot be planned; "
            f"known are {', '.join(sorted(_MODULES))}"
        )
    found = import_module(f"vram_plan.estimator.blocks.{module}")
    composition: Composition = found.compose(spec)
    if spec.num_labels:
        from vram_plan.estimator.blocks.classifier import classify

        return classify(composition, spec)
    return composition
