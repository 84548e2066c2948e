"""PEFT's ``adapter_config.json`` (0.21.2, ``peft/config.py`` and ``peft/tuners/*/config.py``)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from vram_plan.app.exchange.document import Document
from vram_plan.app.exchange.facts import CannotSayError, Reading
from vram_plan.app.exchange.reader import Reader
from vram_plan.app.exchange.words import LORA_METHODS
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.methods.targets import ALL_LINEAR, ATTENTION
from vram_plan.profiles.model import ModelSpec

FORM = "PEFT config"
FILE = "adapter_config.json"
DEFAULT_TARGETS = "default"
"""PEFT picks the layers by the model's type (``utils/constants.py``)."""
_TYPES = {
    "lora": "lora",
    "adalora": "adalora",
    "ia3": "ia3",
    "prompt_tuning": "prompt",
    "prefix_tuning": "prefix",
    "p_tuning": "p-tuning",
}
_NAMES = {
    "adalora": "ADALORA",
    "ia3": "IA3",
    "prompt": "PROMPT_TUNING",
    "prefix": "PREFIX_TUNING",
    "p-tuning-v2": "PREFIX_TUNING",
    "p-tuning": "P_TUNING",
} | dict.fromkeys(LORA_METHODS, "LORA")
TOTAL_STEPS = 1000
"""``AdaLoraConfig.total_step`` has no default; memory does not depend on it."""
_EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings", "shared"}
)
_OWN_NAMES = {
    **dict.fromkeys(
        ("codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt"), ("wte", "lm_head")
    ),
    **dict.fromkeys(("bloom", "falcon"), ("word_embeddings", "lm_head")),
    **dict.fromkeys(("t5", "mt5", "umt5"), ("shared", "lm_head")),
    "gpt_neox": ("embed_in", "embed_out"),
}
"""``model_type`` → names of embedding and head (transformers 5.23.0 ``models/*/modeling_*.py``)."""
_HEADS = frozenset({"lm_head", "embed_out", "output_layer", "output"})


def read(document: Document) -> Reading:
    """What an adapter's configuration says.

    Raises:
        ValueError: one line with the file, the line and the way out.
    """
    reader = Reader(document, FORM, "peft")
    method = reader.word(_TYPES, "peft_type")
    reader.state("model", reader.text("base_model_name_or_path"), "base_model_name_or_path")
    if method in {"lora", "adalora"}:
        method = _read_lora(reader, method)
    elif method == "ia3":
        for key in ("target_modules", "feedforward_modules"):
            if reader.has(key):
                reader.warn((key,), "is not planned; the plan takes PEFT's own for the model")
    else:
        tokens = reader.whole("num_virtual_tokens")
        reader.state("virtual_tokens", tokens, "num_virtual_tokens")
    if method == "p-tuning":
        words = {"mlp": "mlp", "lstm": "lstm"}
        kind = reader.word(words, "encoder_reparameterization_type") or "mlp"
        reader.state("prompt_encoder", kind, "encoder_reparameterization_type")
        size = reader.whole("encoder_hidden_size")
        reader.state("prompt_encoder_size", size, "encoder_hidden_size")
    reader.state("method", method, "peft_type")
    if reader.get("bias") not in (None, "none"):
        reader.warn(("bias",), "trains biases too, which is not planned")
    return reader.finish()


def _read_lora(reader: Reader, method: str) -> str:
    if method == "lora":
        method = "rslora" if reader.flag("use_rslora") else method
        method = "dora" if reader.flag("use_dora") else method
        reader.state("lora_rank", reader.whole("r") or 8, "r")
    else:
        reader.state("lora_rank", reader.whole("init_r") or 12, "init_r")
    reader.state("lora_dropout", reader.share("lora_dropout") or 0.0, "lora_dropout")
    read_targets(reader, "target_modules")
    saved_modules(reader, "modules_to_save")
    for key in ("r", "target_r", "use_rslora", "use_dora", "init_r"):
        reader.get(key)
    return method


def read_targets(reader: Reader, *path: str) -> None:
    """Names of layers; PEFT's own choice where none are named."""
    value = reader.get(*path)
    names = reader.names(*path) or []
    if isinstance(value, str) and set(value) & set("^$*()[]|\\"):
        raise reader.wrong(
            path, "as a regular expression is not planned; give --lora-targets", value
        )
    if names in ([ALL_LINEAR], ["all"]):
        reader.state("lora_targets", ALL_LINEAR, *path)
    else:
        reader.state("lora_targets", ",".join(names) or DEFAULT_TARGETS, *path)


def saved_modules(reader: Reader, *path: str) -> None:
    """Modules that learn whole: the embeddings and the head, by the names models give them."""
    found = []
    for name in reader.names(*path) or ():
        last = name.rpartition(".")[2]
        if last in _EMBEDDINGS:
            found.append("embeddings")
        elif last in _HEADS:
            found.append("lm_head")
        else:
            reader.warn(path, f"{name} is not planned; the plan has embeddings and lm_head")
    if found:
        reader.state("modules_to_save", ",".join(sorted(set(found))), *path)


def write(config: TrainConfig) -> str:
    """The file for a configuration.

    Raises:
        CannotSayError: for a method that PEFT does not have.
    """
    name = _NAMES.get(config.method)
    if name is None:
        raise CannotSayError(f"{FORM} has no --method {config.method}")
    found: dict[str, Any] = {
        "peft_type": name,
        "task_type": task_type(config.model),
        "base_model_name_or_path": config.model.name,
        "inference_mode": False,
    }
    if config.method in {*LORA_METHODS, "adalora"}:
        found |= _lora(config)
    elif config.method != "ia3":
        found["num_virtual_tokens"] = config.virtual_tokens
    if config.method == "p-tuning":
        found["encoder_reparameterization_type"] = config.prompt_encoder.upper()
        found["encoder_hidden_size"] = config.prompt_encoder_size
    return json.dumps(found, indent=2) + "\n"


def _lora(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "lora_alpha": 2 * config.lora_rank,  # what most recipes take; memory does not depend on it
        "lora_dropout": config.lora_dropout,
        "target_modules": target_modules(config),
        "bias": "none",
    }
    if config.method == "adalora":
        return {"init_r": config.lora_rank, "total_step": TOTAL_STEPS} | found
    saved = saved_names(config)
    return (
        {"r": config.lora_rank}
        | found
        | {
            "use_rslora": config.method == "rslora",
            "use_dora": config.method == "dora",
            "modules_to_save": saved or None,
        }
    )


def task_type(model: ModelSpec) -> str | None:
    """PEFT's word for the model's kind; None for encoders, for which it has no general one."""
    if model.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.is_causal else None


def target_modules(config: TrainConfig) -> str | list[str]:
    """``target_modules``: PEFT's word for all linear layers, or names."""
    if config.lora_targets == ALL_LINEAR:
        return ALL_LINEAR
    if config.lora_targets == ATTENTION:
        return attention_layers(config.model)
    return [name.strip() for name in config.lora_targets.split(",")]


def attention_layers(model: ModelSpec) -> list[str]:
    """The endings of the linear layers inside attention, which PEFT has no word for."""
    from vram_plan.estimator.methods.lora import Lora

    ending = ".lora_A.weight"
    names = [name for name in _names(model, Lora(1, ATTENTION)) if name.endswith(ending)]
    return sorted({name.removesuffix(ending) for name in names})


def saved_names(config: TrainConfig) -> list[str]:
    """Module names of ``--modules-to-save`` in the model's own spelling."""
    from vram_plan.estimator.methods.saved import named

    embeddings, head = _OWN_NAMES.get(config.model.model_type, ("embed_tokens", "lm_head"))
    names = {"embeddings": embeddings, "lm_head": head}
    return [names[kind] for kind in named(config.modules_to_save)]


def _names(model: ModelSpec, method: Any) -> Iterable[str]:
    """Names of the weights of a model under a method."""
    from vram_plan.estimator.blocks.registry import compose
    from vram_plan.estimator.chain import Shape, build_chain
    from vram_plan.estimator.treatment import Treatment

    links = build_chain(model, compose(model), Treatment(method=method), Shape(batch=1, seq=1))
    return [param.name for link in links for param in link.cost.params]
