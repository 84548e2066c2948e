"""From what files say to the plan's options: what follows from several keys together.

Beside the plan's options, facts may say ``mixed_precision`` (autocast's dtype or "no"),
``model_dtype`` (in which weights are loaded), ``adapter_cast`` (PEFT's ``autocast_adapter_dtype``),
``activation_offloading``, ``data_parallel`` (ranks), ``learning_layers`` (of a frozen model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vram_plan.app.exchange.facts import Fact, Weight
from vram_plan.app.exchange.peft_config import DEFAULT_TARGETS
from vram_plan.estimator import choices
from vram_plan.estimator.methods.targets import QUERY_VALUE
from vram_plan.profiles.model import ModelSpec

Facts = dict[str, Fact]
_SHARDING = ("engine", "fsdp", "zero", "ds_config", "offload", "offload_device", "data_parallel")
_ADAPTERS = (
    "quantization",
    "double_quant",
    "kbit_preparation",
    "modules_to_save",
    "adapter_cast",
    "lora_targets",
)
_SPLITS = ("tp", "pp", "cp", "ep")


def settle(
    model: ModelSpec, facts: Facts, given: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options for ``resolve``, and warnings.

    Args:
        model: the architecture.
        facts: what the files say.
        given: options of the command line, which win.
    """
    facts = _yield(facts, given)
    warnings: list[str] = []
    _drop_unfit(model, facts, warnings)
    values = {name: fact.value for name, fact in facts.items() if name != "model"}
    _settle_ranks(values, given)
    _settle_method(model, values)
    _settle_offload(values)
    _settle_precision(values, given)
    return values | dict(given), tuple(warnings)


def _yield(facts: Facts, given: Mapping[str, Any]) -> Facts:
    """Drop what an option of the command line makes meaningless."""
    dropped: set[str] = set()
    if given.keys() & {"engine", "zero", "fsdp", "ds_config"}:
        dropped |= {"engine"}
        engine = given.get("engine", "")
        sharded = "fsdp" in given or engine in {"fsdp1", "fsdp2"}
        dropped |= {"zero", "ds_config"} if sharded else {"fsdp"}
        if engine and engine != "deepspeed":
            dropped |= set(_SHARDING) - ({"fsdp"} if sharded else set())
    if "gpus" in given:
        dropped |= {"data_parallel", "gpus_per_node"}
    if given.get("method") in choices.WHOLE_MODEL:
        dropped |= set(_ADAPTERS)
    if given.keys() & {"precision", "weights_dtype", "amp"}:
        dropped |= {"mixed_precision", "model_dtype", "fp8_recipe"}
    return {name: fact for name, fact in facts.items() if name not in dropped}


def _drop_unfit(model: ModelSpec, facts: Facts, warnings: list[str]) -> None:
    """Kernels that a library would skip for this model; a default that does not suit it."""
    kernels = facts.get("fused_kernels")
    if kernels and kernels.value and model.model_type not in choices.FUSED_FAMILIES:
        warnings.append(f"{kernels}: fused kernels are not planned for {model.model_type}")
        del facts["fused_kernels"]
    attention = facts.get("attention")
    lacks = choices.EAGER_ONLY | choices.WITHOUT_SDPA
    if attention and attention.weight == Weight.IMPLIED and model.model_type in lacks:
        del facts["attention"]
    loss = facts.get("loss")
    if loss and loss.weight == Weight.IMPLIED and (not model.is_causal or model.is_encoder_decoder):
        del facts["loss"]


def _settle_ranks(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    ranks = values.pop("data_parallel", None)
    degrees = {**values, **given}
    if ranks is not None:
        for name in _SPLITS:
            ranks *= degrees.get(name, 1)
        values.setdefault("gpus", ranks)
    gpus = degrees.get("gpus", values.get("gpus", 1))
    if values.get("engine") == "ddp" and gpus == 1:
        values["engine"] = "torch"
    loop = values["stack"].loop if "stack" in values else ""
    if loop == "torchtune" and gpus > 1 and "engine" not in given:
        values["engine"] = "fsdp2"  # torchtune has no other for several GPUs
    if loop == "torchtune" and gpus == 1 and values.get("engine") == "fsdp2":
        if "gpus" not in given:
            raise ValueError("the torchtune recipe is one for several GPUs: add --gpus N")
        for name in ("engine", "fsdp", "tp", "offload"):
            values.pop(name, None)


def _settle_method(model: ModelSpec, values: dict[str, Any]) -> None:
    packed = values.get("quantization") in choices.FOUR_BIT
    if values.get("method") == "lora" and packed:
        values["method"] = "qlora"
    if values.get("lora_targets") == DEFAULT_TARGETS:
        names = QUERY_VALUE.get(model.model_type)
        if names is None:
            raise ValueError(
                f"PEFT has no target modules of its own for {model.model_type}; give --lora-targets"
            )
        values["lora_targets"] = names
    learning = values.pop("learning_layers", None)
    if learning is not None and values.get("method") == "freeze":
        values["freeze_layers"] = max(0, model.num_blocks - learning)
    if values.get("method") not in choices.LORA_FAMILY:
        for name in ("lora_rank", "lora_targets", "lora_dropout"):
            values.pop(name, None)


def _settle_offload(values: dict[str, Any]) -> None:
    """Offloaded activations of a checkpointed model are its checkpoints."""
    if not values.pop("activation_offloading", False):
        return
    if values.get("checkpointing") == "full":
        values["checkpointing"] = "offload"
    elif values.get("checkpointing", "none") == "none":
        values.setdefault("offload", "activations")


def _engine(values: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """DeepSpeed's, FSDP's or any other regime of precision; empty where nothing says one."""
    for said in (given, values):
        if "engine" in said:
            return str(said["engine"])
        if said.keys() & {"zero", "ds_config"}:
            return "deepspeed"
        if said.get("fsdp"):
            return "fsdp2"
    return ""


def _settle_precision(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Dtypes of weights and matrix products from autocast's and the loaded one."""
    mixed, dtype = values.pop("mixed_precision", None), values.pop("model_dtype", None)
    cast = values.pop("adapter_cast", None)
    engine = _engine(values, given)
    if engine == "deepspeed":
        if mixed is not None:
            values["precision"] = "fp32" if mixed == "no" else mixed
        return
    if mixed in {"bf16", "fp16", "fp8"}:
        values["precision"] = mixed
        whole = {**values, **given}.get("method", "full") in choices.WHOLE_MODEL
        sharded = engine in {"fsdp1", "fsdp2"}
        if not sharded:
            # transformers 5 loads the checkpoint's dtype: 16 bits for what people fine-tune
            values["weights_dtype"] = dtype or ("bf16" if mixed == "fp8" else mixed)
            values["amp"] = None if values["weights_dtype"] == "fp32" else True
        elif dtype == "fp32" or (dtype is not None and not whole):
            # accelerate holds in fp32 what learns under FSDP
            values["weights_dtype"] = dtype
    elif dtype is not None:
        values["precision"] = values["weights_dtype"] = dtype
    if cast is not None:
        base = values.get("weights_dtype", values.get("precision", "bf16"))
        values["adapter_dtype"] = "fp32" if cast else base
