"""The words that Hugging Face's libraries, axolotl and LLaMA-Factory share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vram_plan.app.exchange.facts import CannotSayError, Weight
from vram_plan.app.exchange.reader import Reader
from vram_plan.estimator.choices import FUSED_KERNELS
from vram_plan.estimator.config import TrainConfig

DTYPES = {
    "bfloat16": "bf16",
    "torch.bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "fp16",
    "torch.float16": "fp16",
    "half": "fp16",
    "fp16": "fp16",
    "float32": "fp32",
    "torch.float32": "fp32",
    "fp32": "fp32",
    "auto": None,
}
"""Spellings of dtypes; "auto" is the checkpoint's."""
LONG = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ATTENTIONS = {
    "flash_attention_2": "flash",
    "flash_attention_3": "flash",
    "sdpa": "sdpa",
    "eager": "eager",
}
"""``attn_implementation`` of transformers."""
ATTENTION_NAMES = {"flash": "flash_attention_2", "sdpa": "sdpa", "eager": "eager"}
OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw-fused",
    "adamw_hf": "adamw",
    "adamw_bnb_8bit": "adamw-8bit",
    "adamw_8bit": "adamw-8bit",
    "paged_adamw_32bit": "paged-adamw",
    "paged_adamw": "paged-adamw",
    "paged_adamw_8bit": "paged-adamw-8bit",
    "adafactor": "adafactor",
    "lion_32bit": "lion",
    "sgd": "sgd",
    "rmsprop": "rmsprop",
}
"""``optim`` of transformers 5.23.0 ``training_args.py`` ``OptimizerNames`` (and names of 4.x)."""
OPTIMIZER_NAMES = {
    "adamw": "adamw_torch",
    "adamw-fused": "adamw_torch_fused",
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw": "paged_adamw_32bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "lion": "lion_32bit",
    "sgd": "sgd",
    "rmsprop": "rmsprop",
}
STRATEGY_WORDS = {
    "full_shard": "full-shard",
    "shard_grad_op": "grad-op",
    "hybrid_shard": "hybrid-shard",
}
"""What ``fsdp`` may say in words."""
LORA_METHODS = {"lora", "rslora", "dora", "qlora"}
"""Methods that PEFT's LoraConfig says."""
BNB_BITS = {"int8": 8, "nf4": 4, "fp4": 4}


class Regime(NamedTuple):
    """A precision as the Trainer is told it: autocast's dtype and that of the loaded weights."""

    mixed: str
    dtype: str


def regime(config: TrainConfig) -> Regime:
    """Mixed precision ("no", bf16, fp16, fp8) and loaded dtype of a configuration.

    DeepSpeed's engine casts every weight; accelerate holds trainable shards of FSDP in fp32 under
    mixed precision (``accelerator.py`` ``prepare_model``), so 16-bit shards mean none.
    """
    precision, weights = config.precision, config.weights_dtype
    if precision == "fp8":
        return Regime("fp8", weights)
    if config.engine == "deepspeed":
        return Regime("no" if precision == "fp32" else precision, weights)
    if config.engine in {"fsdp1", "fsdp2"}:
        return Regime("no" if precision == weights else precision, weights)
    return Regime(precision if config.autocast else "no", weights)


def read_optimizer(reader: Reader, *path: str) -> None:
    """``optim`` or ``optimizer``; a warning for one that is not planned."""
    name = reader.text(*path)
    if name is None:
        return
    known = OPTIMIZERS.get(name.lower())
    if known is None:
        reader.warn(path, f"{name} is not planned; the plan takes adamw, give --optimizer NAME")
    reader.state("optimizer", known, *path)


def read_checkpointing(reader: Reader, *path: str) -> None:
    """A switch that recomputes every block."""
    on = reader.flag(*path)
    if on is not None:
        weight = Weight.STATED if on else Weight.OFF
        reader.state("checkpointing", "full" if on else "none", *path, weight=weight)


def read_attention(reader: Reader, *path: str) -> None:
    """``attn_implementation``; a warning for a kernel that is not planned."""
    name = reader.text(*path)
    if name is None:
        return
    known = ATTENTIONS.get(name.rpartition("/")[2].lower())
    if known is None and "flash" in name:
        known = "flash"
    if known is None:
        reader.warn(path, f"{name} is not planned; give --attention flash, sdpa or eager")
    reader.state("attention", known, *path)


def in_order(kernels: Iterable[str]) -> tuple[str, ...]:
    """Fused kernels in the order in which the plan lists them."""
    found = set(kernels)
    return tuple(name for name in FUSED_KERNELS if name in found)


def need_trainer(config: TrainConfig, form: str) -> None:
    """Refuse what a loop around transformers' Trainer cannot run.

    Raises:
        CannotSayError: names the option.
    """
    if not config.training:
        raise CannotSayError(f"{form} has no --task {config.task}")
    if config.engine not in {"torch", "ddp", "deepspeed", "fsdp1", "fsdp2", "device-map"}:
        raise CannotSayError(f"{form} has no --engine {config.engine}")
    split: tuple[str, ...] = ("tp", "pp", "cp", "ep")
    if config.engine == "device-map":
        split = ("tp", "cp", "ep")
    if config.engine == "fsdp2":
        split = ("pp", "ep")
    for name in split:
        if getattr(config, name) > 1:
            raise CannotSayError(f"{form} has no --{name} with --engine {config.engine}")
    if config.attention == "block-sparse":
        raise CannotSayError(f"{form} has no --attention block-sparse")
