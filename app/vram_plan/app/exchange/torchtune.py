"""torchtune's recipes: pytorch/torchtune @ bd2a0fc7c31430972728494fa01aaeeb0ebf1ba1.

``recipes/configs/**/*.yaml`` and the recipes that read them. torchtune runs in one dtype without
autocast, shards by FSDP 2 on several GPUs, and has 4-bit weights of torchao's NF4 kind.
"""

from __future__ import annotations

import re

from vram_plan.app.exchange.document import Document
from vram_plan.app.exchange.facts import Reading, Weight
from vram_plan.app.exchange.reader import Reader
from vram_plan.app.exchange.words import DTYPES
from vram_plan.profiles.stack import Stack

FORM = "torchtune"
_OPTIMIZERS = {
    "torch.optim.AdamW": "adamw",
    "torch.optim.SGD": "sgd",
    "torch.optim.Adafactor": "adafactor",
    "torch.optim.RMSprop": "rmsprop",
    "bitsandbytes.optim.AdamW8bit": "adamw-8bit",
    "bitsandbytes.optim.PagedAdamW": "paged-adamw",
    "bitsandbytes.optim.PagedAdamW8bit": "paged-adamw-8bit",
}
_PLAIN_LOSSES = ("torch.nn.CrossEntropyLoss",)
_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_MLP = ("gate_proj", "up_proj", "down_proj")
_NAMES = {
    "code_llama2": "codellama/CodeLlama-{}-hf",
    "llama2": "meta-llama/Llama-2-{}-hf",
    "llama3": "meta-llama/Meta-Llama-3-{}",
    "llama3_1": "meta-llama/Llama-3.1-{}",
    "llama3_2": "meta-llama/Llama-3.2-{}",
    "llama3_3": "meta-llama/Llama-3.3-{}-Instruct",
    "mistral": "mistralai/Mistral-{}-v0.1",
    "gemma": "google/gemma-{}",
    "gemma2": "google/gemma-2-{}",
    "qwen2": "Qwen/Qwen2-{}",
    "qwen2_5": "Qwen/Qwen2.5-{}",
    "qwen3": "Qwen/Qwen3-{}",
}
"""Family of a builder → hub id with the size in it."""
_OTHER_NAMES = {
    "phi3_mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi4_14b": "microsoft/phi-4",
}
_SHARDED = ("fsdp_cpu_offload", "custom_sharded_layers", "tensor_parallel_dim")
"""Keys that only the recipes for several GPUs have."""


def read(document: Document) -> Reading:
    """What a torchtune recipe says.

    Raises:
        ValueError: one line with the file, the line and the way out.
    """
    _interpolate(document)
    reader = Reader(document, FORM, "torchtune")
    reader.state("stack", Stack((("loop", "torchtune"),)), "model", "_component_")
    _read_model(reader)
    reader.state("micro_batch", reader.whole("batch_size"), "batch_size")
    steps = reader.whole("gradient_accumulation_steps")
    reader.state("grad_accum", steps, "gradient_accumulation_steps")
    reader.state("seq_len", reader.whole("tokenizer", "max_seq_len"), "tokenizer", "max_seq_len")
    dtype = reader.word(DTYPES, "dtype")
    if dtype:
        reader.state("mixed_precision", "no", "dtype", weight=Weight.OFF)
        reader.state("model_dtype", dtype, "dtype")
    on = reader.flag("enable_activation_checkpointing")
    reader.state("checkpointing", "full" if on else "none", "enable_activation_checkpointing")
    if reader.flag("enable_activation_offloading"):
        reader.state("activation_offloading", True, "enable_activation_offloading")
    for option, key in (("compile", "compile"), ("optimizer_in_backward", "optimizer_in_bwd")):
        if reader.flag(key):
            reader.state(option, True, key)
    _read_parts(reader)
    _read_sharding(reader)
    reader.imply("attention", "sdpa", "attention")
    return reader.finish()


def _interpolate(document: Document) -> None:
    """Put OmegaConf's ``${other.key}`` in place."""
    for key, value in document.values.items():
        match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if match and isinstance(document.values.get(match[1]), (int, float, str, bool)):
            document.values[key] = document.values[match[1]]


def _read_model(reader: Reader) -> None:
    builder = (reader.text("model", "_component_") or "").rpartition(".")[2]
    if not builder:
        raise reader.document.wrong(("model", "_component_"), "is missing; torchtune needs it")
    match = re.fullmatch(r"(?:(lora|qlora)_)?(.+)", builder)
    kind, architecture = (match[1], match[2]) if match else (None, builder)
    name = _hub_id(architecture)
    if name is None:
        reader.warn(("model", "_component_"), f"{builder} is not in the catalogue; give --model")
    reader.state("model", name, "model", "_component_")
    if kind is None:
        reader.state("method", "full", "model", "_component_")
        return
    dora = reader.flag("model", "use_dora")
    reader.state("method", "dora" if dora else kind, "model", "_component_")
    if kind == "qlora" or reader.flag("model", "quantize_base"):
        reader.state("quantization", "nf4", "model", "_component_")
    reader.state("lora_rank", reader.whole("model", "lora_rank"), "model", "lora_rank")
    reader.state("lora_dropout", reader.share("model", "lora_dropout"), "model", "lora_dropout")
    reader.get("model", "lora_alpha")
    names = reader.names("model", "lora_attn_modules") or []
    targets = [_ATTENTION.get(one, one) for one in names]
    targets += _MLP if reader.flag("model", "apply_lora_to_mlp") else ()
    every = {*_ATTENTION.values(), *_MLP}
    text = "all-linear" if set(targets) == every else ",".join(targets)
    reader.state("lora_targets", text or None, "model", "lora_attn_modules")


def _hub_id(architecture: str) -> str | None:
    """``llama3_2_1b`` → ``meta-llama/Llama-3.2-1B``; the longest family wins."""
    if architecture in _OTHER_NAMES:
        return _OTHER_NAMES[architecture]
    text = re.sub(r"_(base|instruct)$", "", architecture)
    for family in sorted(_NAMES, key=len, reverse=True):
        if text.startswith(f"{family}_"):
            size = text.removeprefix(f"{family}_").replace("_", ".")
            upper = not family.startswith("gemma") and family not in {"llama2", "code_llama2"}
            return _NAMES[family].format(size.upper() if upper else size)
    return None


def _read_parts(reader: Reader) -> None:
    """Optimizer and loss by the class that is built."""
    name = reader.text("optimizer", "_component_")
    fused = reader.flag("optimizer", "fused")
    if name is not None:
        known = _OPTIMIZERS.get(name)
        if known is None:
            text = f"{name} is not planned; the plan takes adamw, give --optimizer NAME"
            reader.warn(("optimizer", "_component_"), text)
        if known == "adamw" and fused:
            known = "adamw-fused"
        reader.state("optimizer", known, "optimizer", "_component_")
    loss = reader.text("loss", "_component_")
    if loss is not None and loss not in _PLAIN_LOSSES:
        text = f"{loss.rpartition('.')[2]} is not planned; the plan takes the plain loss"
        reader.warn(("loss", "_component_"), text)


def _read_sharding(reader: Reader) -> None:
    for key in _SHARDED:
        if reader.has(key):
            reader.state("engine", "fsdp2", key)
    if reader.flag("fsdp_cpu_offload"):
        reader.state("offload", "optimizer+params", "fsdp_cpu_offload")
    size = reader.whole("tensor_parallel_dim")
    if size and size > 1:
        reader.state("tp", size, "tensor_parallel_dim")
    copies = reader.whole("data_parallel_replicate_dim")
    if copies and copies > 1:
        reader.state("fsdp", "hybrid-shard", "data_parallel_replicate_dim")
    reader.get("data_parallel_shard_dim")
    reader.get("custom_sharded_layers")
