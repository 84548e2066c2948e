"""The command line that starts a run, and the small ``train.py`` that it starts.

torchrun's options: torch 2.13.0 ``torch/distributed/run.py``; DeepSpeed's: 0.19.8
``deepspeed/launcher/runner.py``; axolotl's and LLaMA-Factory's: their READMEs at the commits named
in ``axolotl.py`` and ``llama_factory.py``.
"""

from __future__ import annotations

import os

from vram_plan.estimator.config import TrainConfig

FILE = "launch.sh"
SCRIPT = "train.py"
_TEMPLATE = os.path.join(os.path.dirname(__file__), "train_script.txt")


def script() -> str:
    """The text of ``train.py``."""
    with open(_TEMPLATE, encoding="utf-8") as file:
        return file.read()


def command(config: TrainConfig) -> str:
    """The command that starts ``train.py`` on every GPU."""
    files = "training_args.yaml model_args.yaml"
    nodes = config.gpus // config.gpus_per_node
    if config.engine == "device-map" or config.gpus == 1:
        visible = ",".join(str(index) for index in range(config.gpus))
        prefix = f"CUDA_VISIBLE_DEVICES={visible} " if config.gpus > 1 else ""
        if config.engine != "deepspeed":
            return f"{prefix}python {SCRIPT} {files}"
    mesh = config.engine == "fsdp2" and (config.fsdp == "hybrid-shard" or config.tp * config.cp > 1)
    if mesh:  # torchrun has no place for the device mesh
        return f"accelerate launch --config_file accelerate.yaml {SCRIPT} {files}"
    if config.engine == "deepspeed":
        several = f"--num_nodes {nodes} --hostfile hostfile " if nodes > 1 else ""
        return f"deepspeed {several}--num_gpus {config.gpus_per_node} {SCRIPT} {files}"
    if nodes == 1:
        return f"torchrun --standalone --nproc-per-node {config.gpus} {SCRIPT} {files}"
    return (
        f"torchrun --nnodes {nodes} --nproc-per-node {config.gpus_per_node} --rdzv-backend c10d "
        f'--rdzv-endpoint "$HEAD_NODE:29500" {SCRIPT} {files}'
    )


def write(config: TrainConfig, others: tuple[str, ...], again: str) -> str:
    """``launch.sh``: the command, the other tools' commands as comments, and the plan's own.

    Args:
        config: what is run.
        others: names of files that were written for other tools.
        again: the command that plans the written files.
    """
    lines = ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")"', ""]
    lines += ["# Plan these files again:", f"#   {again}"]
    each = config.gpus_per_node
    if "accelerate.yaml" in others:
        lines += ["# With Accelerate's launcher instead:"]
        names = "training_args.yaml model_args.yaml"
        lines += [f"#   accelerate launch --config_file accelerate.yaml {SCRIPT} {names}"]
    if "axolotl.yaml" in others:
        lines += ["# With axolotl:"]
        lines += [f"#   axolotl train axolotl.yaml --launcher torchrun -- --nproc_per_node={each}"]
    if "llama_factory.yaml" in others:
        lines += ["# With LLaMA-Factory:"]
        if config.engine in {"fsdp1", "fsdp2"}:
            lines += ["#   accelerate launch --config_file accelerate.yaml src/train.py \\"]
            lines += ["#     llama_factory.yaml"]
        else:
            lines += ["#   FORCE_TORCHRUN=1 llamafactory-cli train llama_factory.yaml"]
    return "\n".join([*lines, command(config), ""])
