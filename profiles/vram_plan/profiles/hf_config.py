"""From the contents of a Hugging Face `config.json` to a `ModelSpec`, without transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from vram_plan.profiles.config_fields import Fields, show
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.names import suggest

__all__ = ["CUSTOM_TYPES", "MODEL_TYPES", "from_hf_config", "read_config"]

_LARGEST_FILE = 8 * 2**20  # bytes; published configs have some 10 kB
_WAY_OUT = "choose a model from `vram-plan models`"

# model_type -> the module that reads it; a plan imports the one it needs.
_MODULES = {
    "config_decoders": "llama mistral qwen2 qwen3 phi phi3 stablelm starcoder2 olmo olmo2 cohere "
    "granite glm glm4",
    "config_gemma": "gemma gemma2 gemma3_text gemma3",
    "config_experts": "mixtral phimoe granitemoe gpt_oss qwen2_moe qwen3_moe olmoe deepseek_v2 "
    "deepseek_v3 dbrx",
    "config_classics": "gpt2 gpt_bigcode gptj codegen gpt_neo gpt_neox opt bloom falcon mpt",
    "config_encoders": "bert roberta xlm-roberta electra albert distilbert deberta-v2",
    "config_seq2seq": "t5 mt5 umt5 bart mbart marian pegasus",
    "config_custom": "chatglm baichuan qwen internlm internlm2",
}
_MODULE_OF = {kind: module for module, kinds in _MODULES.items() for kind in kinds.split()}
# Configs of early releases say the second name for the same classes.
_SYNONYMS = {"RefinedWeb": "falcon", "RefinedWebModel": "falcon"}

MODEL_TYPES: tuple[str, ...] = tuple(_MODULE_OF)
CUSTOM_TYPES: tuple[str, ...] = tuple(_MODULES["config_custom"].split())


def from_hf_config(raw: Mapping[str, Any], *, name: str, source: str = "") -> ModelSpec:
    """The architecture that a `config.json` describes.

    Each ``model_type`` is read with the field names and defaults of its own configuration class
    in transformers 5.23.0. Width, depth, heads and vocabulary have no default here: a config
    without them is refused rather than read as some 7B model.

    Args:
        raw: The parsed file.
        name: What the user calls the model; also names the file in errors.
        source: Where the file is from.

    Raises:
        ValueError: naming the file, the field and the way out.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{name}: a config must be a JSON object, got {show(raw)}; {_WAY_OUT}")
    fields = Fields(raw, name)
    kind, reader = _reader(fields, name)
    values: dict[str, Any] = {"model_type": kind} | _published(fields) | reader(fields)
    try:
        return ModelSpec(name=name, source=source, **values)
    except ValueError as error:
        raise ValueError(f"{error}; correct the config or {_WAY_OUT}") from None


def _reader(fields: Fields, name: str) -> tuple[str, Callable[[Fields], dict[str, Any]]]:
    kind = fields.text("model_type", default="")
    if not kind:
        raise fields.error("model_type", "is missing")
    kind = _SYNONYMS.get(kind, kind)
    if kind not in _MODULE_OF:
        near = suggest(kind, MODEL_TYPES) or f"; known are {', '.join(MODEL_TYPES)}"
        raise ValueError(f"{name}: model_type {show(kind)} is not supported{near}")
    module = import_module(f"vram_plan.profiles.{_MODULE_OF[kind]}")
    return kind, module.READERS[kind]


def _published(fields: Fields) -> dict[str, str]:
    """How the weights were published: data type and quantization, empty when not stated."""
    name = "dtype" if isinstance(fields.value("dtype"), str) else "torch_dtype"
    dtype = fields.value(name)
    quantization = fields.value("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    return {
        "torch_dtype": dtype.removeprefix("torch.") if isinstance(dtype, str) else "",
        "quantization_method": method if isinstance(method, str) else "",
    }


def read_config(path: Path) -> dict[str, Any]:
    """The object in a `config.json`, or in the one of a folder.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        file = path / "config.json" if path.is_dir() else path
        text = _read_text(file)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not text; give the model's config.json") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {_WAY_OUT}") from None
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}: is not JSON ({error.msg}, line {error.lineno}); give the model's config.json"
        ) from None
    except (ValueError, RecursionError):  # an integer of thousands of digits, 100,000 brackets
        raise ValueError(f"{file}: is beyond any config (numbers or nesting); {_WAY_OUT}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: must hold a JSON object, got {show(raw)}; {_WAY_OUT}")
    return raw


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"{file}: no config.json there; {_WAY_OUT}")
    size = file.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(
            f"{file}: {size:,} bytes is too large for a config.json (at most {_LARGEST_FILE:,}); "
            "give the model's config.json, not its weights"
        )
    return file.read_text(encoding="utf-8")
