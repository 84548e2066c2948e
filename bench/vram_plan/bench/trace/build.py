"""Build the model without memory: on ``meta``, adapters included, then swap in fake tensors."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from vram_plan.bench.trace.checkpoints import enable_checkpointing
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.losses import install_loss
from vram_plan.bench.trace.methods import apply_method
from vram_plan.bench.trace.quantized import quantize_layers, quantized_parameter
from vram_plan.bench.trace.sharding.parameters import sharded_parameter

__all__ = ["DTYPES", "bare_model", "build_model", "count_parameters", "materialize", "model_config"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_ATTENTION = {"eager": "eager", "sdpa": "sdpa", "flash": "flash_attention_2"}


def model_config(config: Any) -> Any:
    """A transformers configuration from one, or from a mapping with ``model_type``."""
    from transformers import AutoConfig

    if not isinstance(config, Mapping):
        return config
    fields = dict(config)
    if "model_type" not in fields:
        raise ValueError("config needs model_type, such as llama, gpt2, bert or t5")
    made = AutoConfig.for_model(fields.pop("model_type"), **fields)
    # T5's classes say tied whatever the file says.
    made.has_own_head = fields.get("tie_word_embeddings") is False and made.tie_word_embeddings
    return made


def task_of(config: Any, task: str | None) -> str:
    """The task, from the model type where none is named."""
    from transformers.models.auto import modeling_auto as auto

    if task is not None:
        return task
    kind = config.model_type
    if kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq-lm"
    masked = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if masked and (not causal or getattr(config, "is_decoder", None) is False):
        return "masked-lm"
    return "causal-lm"


def bare_model(config: TraceConfig) -> Any:
    """The library's model on ``meta``, without values."""
    import transformers
    from transformers import initialization

    shape = copy.deepcopy(model_config(config.config))
    shape.use_cache = False
    if shape.is_encoder_decoder and getattr(shape, "decoder_start_token_id", None) is None:
        shape.decoder_start_token_id = 0
    auto: Any = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "masked-lm": transformers.AutoModelForMaskedLM,
        "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
    }[task_of(shape, config.task)]
    wanted = _ATTENTION[config.attention]
    with torch.device("meta"), initialization.no_init_weights():
        try:
            model = auto.from_config(shape, dtype=DTYPES[config.dtype], attn_implementation=wanted)
        except ValueError as error:
            if "scaled_dot_product_attention yet" in str(error):
                raise ValueError(_no_attention(config.attention, shape)) from None
            raise
    if model.config._attn_implementation != wanted:
        raise ValueError(_no_attention(config.attention, shape))
    if getattr(shape, "has_own_head", False):
        _untie_head(model)
    return model


def _untie_head(model: Any) -> None:
    """A checkpoint that holds a head of its own: loading it does not tie that one.

    transformers 5.23.0 ``modeling_utils.py`` ``tie_weights``: both are there and differ. The
    tables of encoder and decoder stay one.
    """
    ties = model._tied_weights_keys
    model._tied_weights_keys = {k: v for k, v in ties.items() if not k.startswith("lm_head")}


def _no_attention(name: str, shape: Any) -> str:
    return f"transformers has no attention {name} for {shape.model_type}: choose attention eager"


def build_model(config: TraceConfig) -> Any:
    """The model on ``meta``, wrapped by its method, in training mode."""
    model = bare_model(config)
    task = task_of(model.config, config.task)
    model.tie_weights()  # skipped together with the initialization
    model.train()
    policy = enable_checkpointing(model, config)
    if config.quantization != "none":
        compute = config.autocast or config.compute_dtype or config.dtype
        model = quantize_layers(model, config, DTYPES[compute])
    install_loss(model, config.loss)
    own = {id(module) for module in model.modules()}
    model = apply_method(model, config, task)
    if config.checkpointing != "none" and config.method not in {"full", "freeze", "bitfit"}:
        _input_gradients(model)
    if policy is not None:
        policy.watch_added(model, own)
    return model.train()


def _input_gradients(model: torch.nn.Module) -> None:
    enable = getattr(model, "enable_input_require_grads", None)
    if enable is not None:
        enable()


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters of a model still on ``meta``, quantized ones in full."""
    return sum(parameter.numel() for parameter in model.parameters())


def materialize(model: torch.nn.Module, make: Any) -> None:
    """Replace every ``meta`` parameter and buffer, keeping shared ones shared.

    Args:
        model: the model.
        make: makes a tensor of a shape and a type.
    """
    done: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = _swapped(parameter, make, done)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = _swapped(buffer, make, done)


def _swapped(old: Any, make: Any, done: dict[int, Any]) -> Any:
    if id(old) not in done:
        new = quantized_parameter(old, make)
        if new is None:
            new = sharded_parameter(old, make)
        if new is None:
            new = make(tuple(old.shape), old.dtype)
            if isinstance(old, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
        done[id(old)] = (new, old)  # the old one is kept so that its id stays its own
    return done[id(old)][0]
