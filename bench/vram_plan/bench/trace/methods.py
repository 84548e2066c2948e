"""What is trained: PEFT's methods by PEFT itself, freezing and BitFit by flags."""

from typing import Any

import torch

from vram_plan.bench.trace.config import TraceConfig

__all__ = ["apply_method", "peft_config"]

_PEFT_TASKS = {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM", "masked-lm": None}
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_LOW = (torch.bfloat16, torch.float16)


def apply_method(model: Any, config: TraceConfig, task: str) -> Any:
    """The model with its trainable part set up."""
    if config.method == "full":
        return model
    if config.method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return model
    if config.method == "freeze":
        _freeze(model, config.freeze_layers)
        return model
    from peft import get_peft_model

    if config.method in ("prompt", "prefix", "p-tuning") and task == "masked-lm":
        raise ValueError(f"PEFT has no {config.method} for masked language models")

    before = {id(parameter) for parameter in model.parameters()}
    wrapped = get_peft_model(model, peft_config(config, task))
    for parameter in wrapped.parameters():
        if id(parameter) not in before and parameter.dtype.is_floating_point:
            parameter.data = parameter.data.to(_TYPES[config.adapter_dtype])
    _settle_ranks(wrapped, config)
    return wrapped


def _settle_ranks(model: Any, config: TraceConfig) -> None:
    """AdaLoRA's rank counters are parameters that are not trained.

    On a device PEFT 0.21.2 makes them trainable where it casts 16-bit adapters to fp32 (its cast
    wraps them anew); on ``meta`` it always does. Adapters first have the type of their layer: the
    type it computes in, where that is a 4-bit one, and fp32, where it is an 8-bit one
    (``tuners_utils.py``, ``_get_base_layer_device_and_dtype``).
    """
    for module in model.modules():
        if not hasattr(module, "ranknum"):
            continue
        layer = module.get_base_layer()
        dtype = getattr(layer, "compute_dtype", layer.weight.dtype)
        eight = type(layer).__name__ == "Linear8bitLt"
        cast = dtype in _LOW and not eight and config.adapter_dtype == "fp32"
        for parameter in module.ranknum.values():
            parameter.requires_grad_(cast)


def peft_config(config: TraceConfig, task: str) -> Any:
    """PEFT's configuration of a method."""
    import peft

    options = dict(config.lora)
    options.setdefault("task_type", _PEFT_TASKS[task])
    name = config.method
    if name in ("lora", "rslora", "dora"):
        options.setdefault("r", 16)
        options.setdefault("target_modules", "all-linear")
        options.setdefault("use_rslora", name == "rslora")
        options.setdefault("use_dora", name == "dora")
        return peft.LoraConfig(**options)
    if name == "adalora":
        options.setdefault("target_modules", "all-linear")
        options.setdefault("total_step", 1000)
        return peft.AdaLoraConfig(**options)
    if name == "ia3":
        return peft.IA3Config(**options)
    options.setdefault("num_virtual_tokens", 20)
    kinds = {
        "prompt": peft.PromptTuningConfig,
        "prefix": peft.PrefixTuningConfig,
        "p-tuning": peft.PromptEncoderConfig,
    }
    return kinds[name](**options)


def _freeze(model: Any, layers: int) -> None:
    """Freeze the embeddings and the first ``layers`` blocks."""
    parts = [model]
    if model.config.is_encoder_decoder:
        parts = [model.get_encoder(), model.get_decoder()]
    blocks = [block for part in parts for block in _blocks(part)]
    for block in blocks[:layers]:
        block.requires_grad_(False)
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and id(module) not in inside:
            module.requires_grad_(False)  # of tokens, positions and types


def _blocks(model: Any) -> list[torch.nn.Module]:
    """The longest list of modules that is in no other: T5's blocks are such lists themselves."""
    lists = {n: list(m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    outer = [m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)]
    return max(outer, key=len)
