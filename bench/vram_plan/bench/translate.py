"""From the plan's options to the tracer's: the same training step, said in the libraries' words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vram_plan.bench.refused_dtensor import refuse_sharded
from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Shape, build_chain
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.lengths import FIXED
from vram_plan.estimator.methods.lora import Lora
from vram_plan.estimator.methods.targets import ALL_LINEAR, ATTENTION, matches
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import CUSTOM_TYPES, read_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import find_entry

if TYPE_CHECKING:
    from vram_plan.bench.trace.config import TraceConfig

__all__ = ["model_fields", "refuse_ignored", "trace_config"]

_METHODS = {"qlora": "lora", "p-tuning-v2": "prefix"}
"""The plan's methods that are another one of PEFT's with other options."""
_LOW_RANK = frozenset({"lora", "rslora", "dora", "qlora"})
_WITHOUT_PEFT = frozenset(
    {
        "moelora",
        "adapter-houlsby",
        "adapter-pfeiffer",
        "adapter-fusion",
        "mam",
        "unipelt",
        "llama-adapter",
        "llama-adapter-v2",
    }
)
_FSDP = ("fsdp1", "fsdp2")
_ROUTERS_IN_TUPLES = frozenset({"phimoe"})
"""Routers that are linear layers but return more than a tensor."""
_PREFIXED = frozenset({"prompt", "prefix", "p-tuning", "p-tuning-v2"})


def trace_config(config: TrainConfig, raw: Mapping[str, Any] | None = None) -> TraceConfig:
    """The step that the tracer runs for a resolved configuration of the plan.

    Args:
        config: what the plan was made for.
        raw: fields of the model's `config.json`; looked up from the model's name where None.

    Raises:
        ValueError: one line that says what cannot be traced, and the way out.
    """
    from vram_plan.bench.trace.config import TraceConfig

    refuse_ignored(config)
    _refuse(config)
    fields = _own_classes(dict(raw) if raw is not None else model_fields(config.model))
    method = _METHODS.get(config.method, config.method)
    encoder_decoder = config.model.is_encoder_decoder
    return TraceConfig(
        config=fields,
        batch=config.micro_batch,
        seq=config.source_len if encoder_decoder else config.seq_len,
        target_seq=config.seq_len if encoder_decoder else None,
        method=method,
        lora=_peft_options(config),
        freeze_layers=config.freeze_layers,
        dtype=config.weights_dtype,
        autocast=config.precision if config.autocast else None,
        adapter_dtype=config.adapter_dtype,
        quantization=config.quantization,
        double_quant=config.double_quant,
        kbit_preparation=config.kbit_preparation,
        checkpointing=config.checkpointing,
        offload=config.offload,
        attention=config.attention,
        loss=config.loss,
        optimizer=config.optimizer,
        grad_accum=config.grad_accum,
        engine=config.engine,
        ranks=config.gpus,
        ranks_per_node=config.gpus_per_node,
        **_sharding(config),
    )


def _sharding(config: TrainConfig) -> dict[str, Any]:
    """FSDP's options; where it gathers in another type than it holds, mixed precision is on.

    Beside 16-bit weights FSDP2 may hold adapters in fp32, which its policy casts (accelerate
    utils/fsdp_utils.py); FSDP1 holds one type in a flat weight.
    """
    if config.engine not in _FSDP:
        return {}
    held = {config.weights_dtype, "fp32" if config.engine == "fsdp2" else config.weights_dtype}
    mixed = config.precision if held != {config.precision} else None
    return {"fsdp": config.fsdp, "compute_dtype": mixed}


def model_fields(model: ModelSpec) -> dict[str, Any]:
    """The fields of a model's `config.json`; those of its Llama shape for a size class.

    Raises:
        ValueError: for a model that is known by its architecture alone.
    """
    if model.nominal_parameters is not None:
        return _llama(model)
    entry = find_entry(model.name)
    if entry is not None:
        return {name: value for name, value in entry.config.items() if _says_something(name, value)}
    if Path(model.name).exists():
        return read_config(Path(model.name))
    raise ValueError(
        f"--model {model.name}: its config.json is not at hand; save it and give its path"
    )


def _says_something(name: str, value: Any) -> bool:
    """Fields that the catalogue holds as null mean null only where the class has them."""
    return value is not None or name == "sliding_window"


def _llama(model: ModelSpec) -> dict[str, Any]:
    """A size class as Llama's configuration."""
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "tie_word_embeddings",
    )
    return {"model_type": "llama"} | {name: getattr(model, name) for name in names}


def _own_classes(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of the language model inside; refuses classes that transformers has not."""
    inner = fields.get("text_config")
    if isinstance(inner, Mapping):
        fields = dict(inner)
        fields.setdefault("model_type", "gemma3_text")
    kind = fields.get("model_type", "")
    if kind in CUSTOM_TYPES:
        raise ValueError(
            f"dry-run: transformers has no class for {kind}; its code is on the hub and is not run"
        )
    return fields


def _refuse(config: TrainConfig) -> None:
    """Raise for what the tracer has no way to run."""
    if not config.training:
        raise ValueError("dry-run traces training steps; leave out --task inference")
    _refuse_method(config)
    _refuse_engine(config)
    refuse_sharded(config)
    if config.quantization in {"gptq4", "gptq8"}:
        raise ValueError(
            f"dry-run --quantization {config.quantization}: its kernels are not traced; choose nf4"
        )
    if config.attention == "block-sparse":
        raise ValueError("dry-run --attention block-sparse: transformers has none; choose flash")
    if config.fused_kernels:
        raise ValueError("dry-run --fused-kernels: Triton's kernels are not traced; leave it out")
    if config.optimizer == "one-bit-adam":
        raise ValueError("dry-run --optimizer one-bit-adam: DeepSpeed's alone; add --zero 0")
    if config.offload not in {"none", "activations"}:
        raise ValueError(f"dry-run --offload {config.offload}: only activations are traced")


def refuse_ignored(config: TrainConfig) -> None:
    """Raise for options of the plan that no trace carries out."""
    if config.stack.given:
        raise ValueError("dry-run --stack: the libraries installed here are run; leave it out")
    asked = {
        "--modules-to-save": config.modules_to_save,
        "--optimizer-in-backward": config.optimizer_in_backward,
        "--compile": config.compile,
        "--precision fp8": config.precision == "fp8",
        "--lengths": config.lengths != FIXED,
        "a classification head": config.model.num_labels,
    }
    for name, wanted in asked.items():
        if wanted:
            raise ValueError(f"dry-run: {name} is not traced; leave it out")


def _refuse_engine(config: TrainConfig) -> None:
    if config.engine not in {"torch", "ddp", *_FSDP}:
        raise ValueError(
            f"dry-run --engine {config.engine}: no tracer runs it; choose torch, ddp or fsdp2"
        )
    for name in ("tp", "pp", "cp", "ep"):
        if getattr(config, name) > 1:
            raise ValueError(
                f"dry-run --{name} {getattr(config, name)} with --engine {config.engine}: not "
                f"traced; choose --{name} 1"
            )


def _refuse_method(config: TrainConfig) -> None:
    """Methods that PEFT has not, or not for this model."""
    kind = config.model.model_type
    if config.method in _WITHOUT_PEFT:
        raise ValueError(
            f"dry-run --method {config.method}: PEFT has no such method; plan it without dry-run"
        )
    added = config.method in _LOW_RANK or config.method == "adalora"
    if added and kind in _ROUTERS_IN_TUPLES and matches("mlp.router", config.lora_targets):
        raise ValueError(
            f"dry-run --method {config.method} with --lora-targets {config.lora_targets}: the "
            f"router of {kind} returns a tuple, to which PEFT's low-rank layers cannot add; choose "
            "--lora-targets attention"
        )


def _peft_options(config: TrainConfig) -> dict[str, Any]:
    """PEFT's names for the sizes of a method."""
    method = config.method
    if method in _LOW_RANK:
        return {
            "r": config.lora_rank,
            "target_modules": _targets(config),
            "lora_dropout": config.lora_dropout,
        }
    if method == "adalora":
        return {"init_r": config.lora_rank, "target_modules": _targets(config)}
    options: dict[str, Any] = {}
    if method in _PREFIXED:
        options["num_virtual_tokens"] = config.virtual_tokens
    if method == "p-tuning":
        options["encoder_reparameterization_type"] = config.prompt_encoder.upper()
        options["encoder_hidden_size"] = config.prompt_encoder_size
    return options


def _targets(config: TrainConfig) -> str | list[str]:
    """``target_modules``; PEFT has no word for the linear layers of attention, so they are listed.

    Raises:
        ValueError: when nothing matches.
    """
    if config.lora_targets == ALL_LINEAR:
        return ALL_LINEAR
    if config.lora_targets != ATTENTION:
        return [name.strip() for name in config.lora_targets.split(",")]
    how = Treatment(method=Lora(1, ATTENTION))
    links = build_chain(config.model, compose(config.model), how, Shape(batch=1, seq=1))
    ending = ".lora_A.weight"
    names = {p.name for link in links for p in link.cost.params if p.name.endswith(ending)}
    if not names:
        raise ValueError(f"--lora-targets attention: {config.model.name} has no such layers")
    return sorted(name.removesuffix(ending) for name in names)
