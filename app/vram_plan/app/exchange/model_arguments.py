"""The ModelArguments of the exported ``train.py``; names are TRL's where TRL has one.

huggingface/trl @ f2cd57710ae345ea6428ae95363267fcf38a3dc8 ``trl/trainer/model_config.py`` and
``trl/trainer/sft_config.py``.
"""

from __future__ import annotations

from typing import Any

from vram_plan.app.exchange.facts import CannotSayError
from vram_plan.app.exchange.peft_config import read_targets, saved_modules
from vram_plan.app.exchange.reader import Reader
from vram_plan.app.exchange.words import (
    ATTENTION_NAMES,
    BNB_BITS,
    DTYPES,
    LONG,
    LORA_METHODS,
    need_trainer,
    read_attention,
    regime,
)
from vram_plan.app.exchange.yaml_text import yaml_text
from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig

FORM = "train.py's arguments"
FILE = "model_args.yaml"
MARK = "finetuning"
"""A key of these arguments that no other format has."""
_FINETUNINGS = {"full": "full", "freeze": "freeze", "bitfit": "bitfit", "adapter": None}
_LOSSES = {"nll": "hf", "chunked_nll": "chunked"}


def read_keys(reader: Reader) -> None:
    """Model, dtype, kernel, quantization, length and adapters."""
    reader.state("model", reader.text("model_name_or_path"), "model_name_or_path")
    for key in ("dtype", "torch_dtype"):
        reader.state("model_dtype", reader.word(DTYPES, key), key)
    read_attention(reader, "attn_implementation")
    for key in ("max_length", "max_seq_length"):
        reader.state("seq_len", reader.whole(key), key)
    reader.state("source_len", reader.whole("max_source_length", least=0), "max_source_length")
    _read_quantization(reader)
    _read_method(reader)
    if reader.flag("activation_offloading"):
        reader.state("activation_offloading", True, "activation_offloading")
    loss = reader.text("loss_type")
    if loss is not None:
        if loss not in _LOSSES:
            reader.warn(("loss_type",), f"{loss} is not planned; the plan takes hf")
        reader.state("loss", _LOSSES.get(loss), "loss_type")
    if str(reader.get("device_map")) in {"auto", "balanced", "sequential"}:
        reader.state("engine", "device-map", "device_map")


def _read_quantization(reader: Reader) -> None:
    if reader.flag("load_in_8bit"):
        reader.state("quantization", "int8", "load_in_8bit")
    if reader.flag("load_in_4bit"):
        kind = reader.word({"nf4": "nf4", "fp4": "fp4"}, "bnb_4bit_quant_type") or "nf4"
        reader.state("quantization", kind, "load_in_4bit")
        nested = bool(reader.flag("use_bnb_nested_quant"))
        reader.state("double_quant", nested, "use_bnb_nested_quant")
    for key in ("load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"):
        reader.get(key)
    bits = reader.whole("gptq_bits")
    if bits is not None:
        if bits not in {4, 8}:
            raise reader.wrong(("gptq_bits",), "must be 4 or 8", bits)
        reader.state("quantization", f"gptq{bits}", "gptq_bits")
    prepared = reader.flag("prepare_for_kbit_training")
    reader.state("kbit_preparation", prepared, "prepare_for_kbit_training")
    cast = reader.flag("autocast_adapter_dtype")
    reader.state("adapter_cast", cast, "autocast_adapter_dtype")


def _read_method(reader: Reader) -> None:
    reader.state("method", reader.word(_FINETUNINGS, MARK), MARK)
    reader.state("freeze_layers", reader.whole("freeze_layers", least=0), "freeze_layers")
    if not reader.flag("use_peft"):
        for key in ("lora_r", "lora_dropout", "lora_target_modules", "lora_modules_to_save"):
            reader.get(key)
        return
    method = "rslora" if reader.flag("use_rslora") else "lora"
    method = "dora" if reader.flag("use_dora") else method
    reader.state("method", method, "use_peft")
    reader.state("lora_rank", reader.whole("lora_r") or 16, "lora_r")
    dropout = reader.share("lora_dropout")
    reader.state("lora_dropout", 0.05 if dropout is None else dropout, "lora_dropout")
    read_targets(reader, "lora_target_modules")
    saved_modules(reader, "lora_modules_to_save")


def write(config: TrainConfig) -> str:
    """``model_args.yaml`` for a configuration.

    Raises:
        CannotSayError: names the option that the exported ``train.py`` does not carry out.
    """
    need_trainer(config, FORM)
    found: dict[str, Any] = {
        "model_name_or_path": config.model.name,
        "dtype": LONG[regime(config).dtype],
        "attn_implementation": ATTENTION_NAMES[config.attention],
        "max_length": config.seq_len,
        MARK: config.method if config.method in choices.WHOLE_MODEL else "adapter",
    }
    if config.model.is_encoder_decoder:
        found["max_source_length"] = config.source_len
    if config.method == "freeze":
        found["freeze_layers"] = config.freeze_layers
    if config.engine == "device-map":
        found["device_map"] = "balanced"
    if config.offload == "activations":
        found["activation_offloading"] = True
    _write_quantization(config, found)
    if config.method not in choices.WHOLE_MODEL:
        found["autocast_adapter_dtype"] = _adapter_cast(config)
    return yaml_text(found)


def _write_quantization(config: TrainConfig, found: dict[str, Any]) -> None:
    kind = config.quantization
    if kind.startswith("gptq"):
        found["gptq_bits"] = int(kind.removeprefix("gptq"))
    elif kind != "none":
        found[f"load_in_{BNB_BITS[kind]}bit"] = True
        if BNB_BITS[kind] == 4:
            found["bnb_4bit_quant_type"] = kind
            found["use_bnb_nested_quant"] = config.double_quant
        found["prepare_for_kbit_training"] = config.kbit_preparation


def _adapter_cast(config: TrainConfig) -> bool:
    """PEFT's ``autocast_adapter_dtype``: fp32 over 16-bit weights, or the base's own dtype."""
    if config.method not in {*LORA_METHODS, "adalora", "ia3"}:
        return True
    if config.adapter_dtype == "fp32":
        return True
    if config.adapter_dtype != config.weights_dtype and config.engine != "deepspeed":
        raise CannotSayError(
            f"PEFT has no --adapter-dtype {config.adapter_dtype} over other weights"
        )
    return False
