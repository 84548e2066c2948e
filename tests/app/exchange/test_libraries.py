"""The libraries themselves load what is written for them, and train.py runs."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from vram_plan.app.exchange.export import export_plan
from vram_plan.app.exchange.known_keys import known_keys
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.models import resolve_model


def written(folder: Path, model: str = "llama-2-7b", **options: Any) -> Path:
    export_plan(resolve(resolve_model(model), options), folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"zero": 0, "optimizer": "one-bit-adam"},
        {"zero": 1, "precision": "fp16", "gpus": 2},
        {"zero": 2, "gpus": 8, "offload": "optimizer"},
        {"zero": 3, "offload": "optimizer+params", "offload_device": "nvme", "grad_accum": 4},
    ],
    ids=str,
)
def test_deepspeed_loads_its_file(options: dict[str, Any], tmp_path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    raw = json.loads((written(tmp_path, **options) / "ds_config.json").read_text())
    # one rank loads it here; DeepSpeed checks total = micro-batch · accumulation · ranks
    raw["train_batch_size"] = options.get("grad_accum", 1)
    found = DeepSpeedConfig(raw)
    assert found.zero_optimization_stage == options["zero"]
    assert found.gradient_accumulation_steps == options.get("grad_accum", 1)
    assert found.float16_config.enabled == (options.get("precision") == "fp16")
    assert found.bfloat16_config.enabled == (options.get("precision") != "fp16")
    offload = found.zero_config.offload_optimizer
    if "offload" in options:
        assert str(offload.device) == options.get("offload_device", "cpu")
    else:
        assert offload is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amp": True, "optimizer": "paged-adamw-8bit", "micro_batch": 4},
        {"checkpointing": "full", "compile": True},
        {"fsdp": "full-shard", "gpus": 8, "checkpointing": "full"},
        {"engine": "fsdp1", "fsdp": "hybrid-shard", "gpus": 16},
        {"loss": "liger"},
    ],
    ids=str,
)
def test_transformers_parses_its_file(options: dict[str, Any], tmp_path: Path) -> None:
    from transformers import HfArgumentParser, TrainingArguments

    values = yaml.safe_load((written(tmp_path, **options) / "training_args.yaml").read_text())
    parser: Any = HfArgumentParser
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # gradient_checkpointing has a new name
        (found,) = parser(TrainingArguments).parse_dict(values | {"use_cpu": True})
    assert found.per_device_train_batch_size == options.get("micro_batch", 1)
    assert found.bf16 == (options.get("amp", False) or "fsdp" in options)
    assert found.torch_compile == options.get("compile", False)
    if "fsdp" in options:
        version = 1 if options.get("engine") == "fsdp1" else 2
        assert found.fsdp_plugin_args["fsdp_version"] == version
        wants = options.get("checkpointing") == "full"
        assert found.fsdp_plugin_args["activation_checkpointing"] == wants
    else:
        assert found.gradient_checkpointing == (options.get("checkpointing") == "full")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "NO"),
        ({"gpus": 8}, "MULTI_GPU"),
        ({"gpus": 16, "zero": 3}, "DEEPSPEED"),
        ({"gpus": 16, "fsdp": "hybrid-shard"}, "FSDP"),
        ({"gpus": 8, "fsdp": "grad-op", "offload": "optimizer+params"}, "FSDP"),
    ],
    ids=str,
)
def test_accelerate_loads_its_file(options: dict[str, Any], kind: str, tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(written(tmp_path, **options) / "accelerate.yaml"))
    assert found.distributed_type.value == kind
    assert found.num_processes == options.get("gpus", 1)
    assert found.num_machines == max(1, options.get("gpus", 1) // 8)


def test_accelerate_takes_its_sections(tmp_path: Path) -> None:
    """Keys in sections are options of its launcher, which refuses others."""
    from accelerate.commands.launch import launch_command_parser

    options: dict[str, Any] = {"gpus": 16, "fsdp": "hybrid-shard", "compile": True}
    values = yaml.safe_load((written(tmp_path, **options) / "accelerate.yaml").read_text())
    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "parallelism_config", "dynamo_config"):
        assert values[section].keys() <= known, section


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"method": "lora", "lora_targets": "attention"}, "LoraConfig"),
        ({"method": "dora", "lora_rank": 64, "lora_dropout": 0.05}, "LoraConfig"),
        ({"method": "lora", "modules_to_save": "embeddings,lm_head"}, "LoraConfig"),
        ({"method": "adalora"}, "AdaLoraConfig"),
        ({"method": "ia3"}, "IA3Config"),
        ({"method": "prompt"}, "PromptTuningConfig"),
        ({"method": "prefix", "virtual_tokens": 7}, "PrefixTuningConfig"),
        ({"method": "p-tuning", "prompt_encoder": "lstm"}, "PromptEncoderConfig"),
    ],
    ids=str,
)
def test_peft_loads_its_file(options: dict[str, Any], kind: str, tmp_path: Path) -> None:
    from peft import PeftConfig

    found: Any = PeftConfig.from_pretrained(str(written(tmp_path, **options)))
    assert type(found).__name__ == kind
    if kind == "LoraConfig":
        assert found.r == options.get("lora_rank", 16)
        assert found.use_dora == (options["method"] == "dora")
        saved = ["embed_tokens", "lm_head"] if "modules_to_save" in options else None
        assert found.modules_to_save == saved
    if "virtual_tokens" in options:
        assert found.num_virtual_tokens == options["virtual_tokens"]


@pytest.mark.parametrize("model", ["gpt2", "pythia-1b", "bloom-560m", "opt-125m", "t5-small"])
def test_saved_modules_have_the_models_own_names(model: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from vram_plan.app.exchange.peft_config import saved_names
    from vram_plan.bench.translate import model_fields

    config = resolve(resolve_model(model), {"method": "lora", "modules_to_save": "embeddings"})
    fields = model_fields(config.model)
    kind: Any = AutoModelForSeq2SeqLM if model == "t5-small" else AutoModelForCausalLM
    with torch.device("meta"):
        raw = AutoConfig.for_model(**{**fields, "num_hidden_layers": 1, "num_layers": 1})
        built = kind.from_config(raw)
    (name,) = saved_names(config)
    assert any(one.rpartition(".")[2] == name for one, _ in built.named_modules())


@pytest.mark.parametrize(
    "options",
    [{"zero": 2}, {"zero": 3, "offload": "optimizer+params", "grad_accum": 2, "micro_batch": 3}],
    ids=str,
)
def test_transformers_and_deepspeed_agree(options: dict[str, Any], tmp_path: Path) -> None:
    """transformers compares the two files, and refuses those that differ."""
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    folder = written(tmp_path, **options)
    values = yaml.safe_load((folder / "training_args.yaml").read_text())
    assert values.pop("deepspeed") == "ds_config.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        arguments: Any = TrainingArguments(**values, use_cpu=True)
    kind: Any = HfTrainerDeepSpeedConfig
    both = kind(str(folder / "ds_config.json"))
    both.trainer_config_process(arguments)
    both.trainer_config_finalize(arguments, None, 10)
    assert not both.mismatches
    assert both.is_zero3() == (options["zero"] == 3)
    assert both.config["optimizer"]["params"]["lr"] == arguments.learning_rate


@pytest.mark.parametrize("tool", ["axolotl", "llama_factory"])
def test_keys_for_other_tools_are_theirs(tool: str, tmp_path: Path) -> None:
    """Neither is installed: each key stands in the list made from its source."""
    from vram_plan.app.exchange.document import load
    from vram_plan.app.exchange.recognise import read

    lists = known_keys(tool)
    for options in (
        {"method": "qlora", "checkpointing": "full"},
        {"fsdp": "grad-op", "gpus": 8},
        {"zero": 2, "gpus": 8, "method": "dora"},
        {"loss": "liger", "fused_kernels": ("rmsnorm", "rope", "swiglu"), "compile": True},
        {"method": "lora", "modules_to_save": "lm_head", "quantization": "int8"},
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        path = written(folder, **options) / f"{tool}.yaml"
        assert yaml.safe_load(path.read_text()).keys() <= lists.harmless | lists.memory
        assert not read(load(str(path))).unknown


def test_train_py_runs(tmp_path: Path) -> None:
    """One step of LoRA on a tiny model, with random tokens and weights, on the CPU."""
    shape = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "max_position_embeddings": 64,
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(shape))
    model = str(tmp_path / "model")
    options = {"method": "lora", "checkpointing": "full", "attention": "sdpa", "seq_len": 16}
    run = written(tmp_path / "run", model, **options)
    for name, more in (
        ("training_args.yaml", {"max_steps": 1, "use_cpu": True, "save_strategy": "no"}),
        ("model_args.yaml", {"random_weights": True, "dtype": "float32"}),
    ):
        values = yaml.safe_load((run / name).read_text())
        (run / name).write_text(yaml.safe_dump(values | more))
    line = (run / "launch.sh").read_text().splitlines()[-1]
    assert line == "python train.py training_args.yaml model_args.yaml"
    command = [sys.executable, *line.split()[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=run, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = json.loads(done.stdout.strip().splitlines()[-1].replace("'", '"'))
    assert last["train_loss"] > 0
