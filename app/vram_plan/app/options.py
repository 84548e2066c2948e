"""The options of a configuration, shared by every command that takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vram_plan.estimator import choices

if TYPE_CHECKING:
    from vram_plan.profiles.gpus import GpuSpec

Function = TypeVar("Function", bound=Callable[..., Any])
_Spec = tuple[str, dict[str, Any]]


def _choice(words: tuple[str, ...]) -> dict[str, Any]:
    return {"type": click.Choice(words), "metavar": "|".join(words)}


def _number(help_text: str) -> dict[str, Any]:
    return {"type": int, "metavar": "N", "help": help_text}


_OPTIONS: tuple[_Spec, ...] = (
    ("--task", _choice(choices.TASKS) | {"help": "What is run.  [default: sft]"}),
    (
        "--method",
        {
            "metavar": "NAME",
            "type": click.Choice(choices.METHODS),
            "help": f"Training method: {', '.join(choices.METHODS)}.  [default: full]",
        },
    ),
    ("--lora-rank", _number("Rank of the low-rank pairs.  [default: 16]")),
    (
        "--lora-targets",
        {
            "metavar": "NAMES",
            "help": "all-linear, attention or names: q_proj,v_proj.  [default: all-linear]",
        },
    ),
    (
        "--lora-dropout",
        {"type": float, "metavar": "P", "help": "Dropout before the pairs.  [default: 0]"},
    ),
    (
        "--modules-to-save",
        {"metavar": "NAMES", "help": "Trained whole beside the pairs: embeddings,lm_head."},
    ),
    (
        "--adapter-dtype",
        _choice(choices.ADAPTER_DTYPES)
        | {"help": "Dtype of added weights.  [default: fp32, as PEFT holds them]"},
    ),
    ("--adapter-size", _number("Bottleneck of adapters.  [default: 64]")),
    ("--freeze-layers", _number("Blocks at the bottom that do not learn (--method freeze).")),
    ("--virtual-tokens", _number("Tokens of a prompt or prefix.  [default: 20]")),
    (
        "--prompt-encoder",
        _choice(choices.PROMPT_ENCODERS) | {"help": "P-tuning's encoder.  [default: mlp]"},
    ),
    ("--prompt-encoder-size", _number("Its hidden size.  [default: 128]")),
    ("--gpus", _number("GPUs in all.  [default: 1]")),
    ("--gpus-per-node", _number("GPUs in one machine.  [default: the node's, else 8]")),
    ("--gpu", {"metavar": "NAME", "help": "The GPU to judge, for example rtx-4090."}),
    (
        "--calibration",
        {"metavar": "FILE", "help": "A machine that bench calibrate measured; --gpu this: here."},
    ),
    ("--node", {"metavar": "NAME", "help": "The machine, for its host memory: dgx-h100."}),
    (
        "--engine",
        _choice(choices.ENGINES)
        | {"help": "What runs the step.  [default: torch on one GPU, ddp on several]"},
    ),
    (
        "--zero",
        {
            "type": click.Choice(["0", "1", "2", "3"]),
            "metavar": "0|1|2|3",
            "help": "DeepSpeed's ZeRO stage.",
        },
    ),
    ("--ds-config", {"metavar": "FILE", "help": "A DeepSpeed JSON: stage, bucket sizes, offload."}),
    ("--fsdp", _choice(choices.FSDP_STRATEGIES) | {"help": "Fully sharded data parallel."}),
    ("--tp", _number("Tensor-parallel ranks.  [default: 1]")),
    ("--pp", _number("Pipeline stages.  [default: 1]")),
    ("--cp", _number("Context-parallel ranks.  [default: 1]")),
    ("--ep", _number("Expert-parallel ranks.  [default: 1]")),
    (
        "--sequence-parallel/--no-sequence-parallel",
        {"default": None, "help": "Split norms over the tensor ranks too."},
    ),
    (
        "--pp-schedule",
        _choice(choices.PIPELINE_SCHEDULES)
        | {"help": "Order of micro-batches in a pipeline.  [default: 1f1b]"},
    ),
    ("--virtual-pipeline", _number("Interleaved stages per pipeline rank.  [default: 1]")),
    ("--offload", _choice(choices.OFFLOADS) | {"help": "What is held in host memory instead."}),
    ("--offload-device", _choice(choices.OFFLOAD_DEVICES) | {"help": "Where to.  [default: cpu]"}),
    (
        "--precision",
        _choice(choices.PRECISIONS) | {"help": "Dtype of matrix products.  [default: bf16]"},
    ),
    (
        "--fp8-recipe",
        {
            "metavar": "NAME",
            "type": click.Choice(choices.FP8_RECIPES),
            "help": f"Library and scaling of fp8: {', '.join(choices.FP8_RECIPES)}.  [default: the "
            "engine's]",
        },
    ),
    (
        "--amp/--no-amp",
        {"default": None, "help": "torch.autocast over any weights.  [default: over fp32 ones]"},
    ),
    (
        "--weights-dtype",
        _choice(choices.WEIGHTS_DTYPES) | {"help": "Dtype in which weights are held."},
    ),
    (
        "--quantization",
        _choice(choices.QUANTIZATIONS)
        | {"help": "Of frozen weights.  [default: none; nf4 for qlora]"},
    ),
    (
        "--double-quant/--no-double-quant",
        {"default": None, "help": "Quantize the scales of nf4 and fp4 too."},
    ),
    (
        "--gptq-group-size",
        {"type": int, "metavar": "N", "help": "Inputs per scale; -1: all.  [default: 128]"},
    ),
    (
        "--kbit-preparation/--no-kbit-preparation",
        {
            "default": None,
            "help": "PEFT's fp32 embeddings, norms and head over int8, nf4 and fp4.  [default: on]",
        },
    ),
    (
        "--optimizer",
        {
            "metavar": "NAME",
            "type": click.Choice(choices.OPTIMIZERS),
            "help": f"{', '.join(choices.OPTIMIZERS)}.  [default: adamw]",
        },
    ),
    (
        "--state-dtype",
        _choice(choices.STATE_DTYPES)
        | {"help": "Of Megatron's moments (its precision-aware optimizer).  [default: fp32]"},
    ),
    (
        "--optimizer-in-backward/--no-optimizer-in-backward",
        {"default": None, "help": "Update each weight as soon as its gradient is there."},
    ),
    ("--micro-batch", _number("Sequences per GPU in one forward pass.  [default: 1]")),
    ("--seq-len", _number("Tokens per sequence.  [default: 2048]")),
    ("--source-len", _number("Tokens an encoder-decoder reads.  [default: seq-len]")),
    (
        "--lengths",
        {
            "metavar": "MEAN,SD[,N]",
            "help": "Tokens of N sequences that differ, up to seq-len.  [default: fixed]",
        },
    ),
    ("--grad-accum", _number("Micro-batches per optimizer step.  [default: 1]")),
    (
        "--checkpointing",
        _choice(choices.CHECKPOINTINGS)
        | {"help": "Activations recomputed in the backward pass.  [default: none]"},
    ),
    ("--attention", _choice(choices.ATTENTIONS) | {"help": "Attention kernel.  [default: flash]"}),
    (
        "--attention-density",
        {"type": float, "metavar": "SHARE", "help": "Computed share of block-sparse attention."},
    ),
    ("--loss", _choice(choices.LOSSES) | {"help": "How the loss is computed.  [default: hf]"}),
    ("--kv-dtype", _choice(choices.KV_DTYPES) | {"help": "Dtype of the key-value cache."}),
    (
        "--fused-kernels",
        {"metavar": "NAMES", "help": f"Fused kernels in use: {','.join(choices.FUSED_KERNELS)}."},
    ),
    (
        "--compile/--no-compile",
        {"default": None, "help": "torch.compile on every block."},
    ),
    (
        "--stack",
        {"metavar": "KEY=VERSION,…", "help": "Library versions: torch=2.4.1,transformers=4.48.1."},
    ),
)


def configuration(function: Function) -> Function:
    """Add ``--model`` and every option of a configuration to a command."""
    for name, settings in reversed(_OPTIONS):
        function = click.option(name, **settings)(function)
    return model_option(function)


def model_option(function: Function) -> Function:
    """Add ``--model``."""
    return click.option(
        "--model",
        required=True,
        metavar="NAME|SIZE|PATH|HUB-ID",
        help="llama-2-7b, 7b, a config.json, a folder with one, or org/name.",
    )(function)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options a person gave, as the estimator wants them.

    Raises:
        ValueError: for a GPU, a file or a kernel that is not known.
    """
    options = {name: value for name, value in values.items() if value is not None}
    if "zero" in options:
        options["zero"] = int(options["zero"])
    if "calibration" in options or options.get("gpu") == "this":
        options["gpu"] = _measured(options)
    elif "gpu" in options:
        from vram_plan.profiles.gpus import find_gpu

        options["gpu"] = find_gpu(options["gpu"])
    if "node" in options:
        from vram_plan.profiles.nodes import find_node

        options["node"] = find_node(options["node"])
    if "ds_config" in options:
        from vram_plan.estimator.ds_config import read_ds_config

        options["ds_config"] = read_ds_config(options["ds_config"])
    if "stack" in options:
        from vram_plan.profiles.stack import parse_stack

        options["stack"] = parse_stack(options["stack"])
    if "fused_kernels" in options:
        options["fused_kernels"] = _kernels(options["fused_kernels"])
    return options


def _kernels(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in choices.FUSED_KERNELS:
            known = ", ".join(choices.FUSED_KERNELS)
            raise ValueError(f"--fused-kernels {name}: choose from {known}")
    return names


def _measured(options: dict[str, Any]) -> GpuSpec:
    """The card of a profile that ``bench calibrate`` wrote."""
    from vram_plan.profiles.machine import THIS, read_machine

    path = options.pop("calibration", None)
    if options.get("gpu", THIS) != THIS:
        raise ValueError(f"--calibration {path} is the GPU already: leave --gpu out")
    return read_machine(path).gpu
