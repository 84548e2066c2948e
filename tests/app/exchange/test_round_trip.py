"""What is exported is read as the same configuration; what a file cannot say is named."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vram_plan.app.exchange.export import export_plan
from vram_plan.app.exchange.merge import read_files
from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.models import resolve_model

SETS = {
    "transformers": (
        "training_args.yaml",
        "model_args.yaml",
        "adapter_config.json",
        "accelerate.yaml",
        "ds_config.json",
    ),
    "axolotl": ("axolotl.yaml", "ds_config.json"),
    "LLaMA-Factory": ("llama_factory.yaml", "accelerate.yaml", "ds_config.json"),
}
MODELS = ("llama-2-7b", "qwen2.5-0.5b", "mistral-7b", "gpt2", "pythia-1b", "t5-small", "7b")
METHODS = (
    "full",
    "freeze",
    "lora",
    "rslora",
    "dora",
    "adalora",
    "qlora",
    "ia3",
    "prompt",
    "prefix",
    "p-tuning",
    "bitfit",
)


RANGES: dict[str, tuple[Any, ...]] = {
    "task": ("sft", "pretrain"),
    "method": METHODS,
    "lora_rank": (1, 8, 64),
    "lora_targets": ("all-linear", "attention", "q_proj,v_proj"),
    "lora_dropout": (0.0, 0.05),
    "modules_to_save": ("embeddings", "embeddings,lm_head"),
    "adapter_dtype": choices.ADAPTER_DTYPES,
    "freeze_layers": (1, 4),
    "virtual_tokens": (5, 50),
    "prompt_encoder": choices.PROMPT_ENCODERS,
    "prompt_encoder_size": (64,),
    "gpus": (1, 2, 8, 16),
    "gpus_per_node": (2, 4),
    "engine": ("torch", "ddp", "deepspeed", "fsdp1", "fsdp2", "device-map"),
    "zero": choices.ZERO_STAGES,
    "fsdp": choices.FSDP_STRATEGIES,
    "tp": (2,),
    "offload": choices.OFFLOADS,
    "offload_device": choices.OFFLOAD_DEVICES,
    "precision": choices.PRECISIONS,
    "amp": (True, False),
    "weights_dtype": ("bf16", "fp16", "fp32"),
    "quantization": choices.QUANTIZATIONS,
    "double_quant": (True, False),
    "kbit_preparation": (True, False),
    "optimizer": choices.OPTIMIZERS,
    "micro_batch": (1, 3, 16),
    "seq_len": (128, 512),
    "source_len": (64,),
    "grad_accum": (1, 8),
    "checkpointing": choices.CHECKPOINTINGS,
    "attention": choices.ATTENTIONS,
    "loss": choices.LOSSES,
    "fused_kernels": (("rope",), ("rmsnorm", "rope", "swiglu")),
    "compile": (True,),
}


@st.composite
def chosen(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A model and a few options."""
    names = draw(st.lists(st.sampled_from(sorted(RANGES)), max_size=7, unique=True))
    return draw(st.sampled_from(MODELS)), {n: draw(st.sampled_from(RANGES[n])) for n in names}


def same(one: TrainConfig, other: TrainConfig) -> bool:
    """The same run: assumptions are sentences about how it came to be."""
    return replace(one, assumptions=()) == replace(other, assumptions=())


def configuration(model: str, options: dict[str, Any]) -> TrainConfig:
    """A configuration that can be run; single options are dropped until it can."""
    left, spec = dict(options), resolve_model(model)
    while left:
        try:
            return resolve(spec, left)
        except ValueError:
            left.pop(next(iter(left)))
    return resolve(spec, left)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(case=chosen())
def test_export_then_from_is_the_same(case: tuple[str, dict[str, Any]]) -> None:
    model, options = case
    config = configuration(model, options)
    with tempfile.TemporaryDirectory() as folder:
        written = _export(config, folder)
        for tool, unsaid in written.unsaid.items() if written else ():
            paths = [str(Path(folder, name)) for name in SETS[tool] if name in written.files]
            found = read_files(paths, model, unsaid)
            assert same(found.config, config), (tool, unsaid)


def _export(config: TrainConfig, folder: str) -> Any:
    """What was written; None where no tool runs it, which has to be said."""
    try:
        return export_plan(config, folder)
    except ValueError as error:
        if not str(error).startswith("--export: transformers: not written: "):
            raise
        return None


SAYABLE = [
    ("7b", {}),
    ("llama-2-7b", {"weights_dtype": "fp32"}),
    ("llama-2-7b", {"amp": True, "checkpointing": "full", "micro_batch": 4, "grad_accum": 2}),
    ("llama-2-7b", {"precision": "fp32"}),
    ("llama-2-7b", {"method": "lora", "gpus": 8, "lora_targets": "q_proj,v_proj"}),
    ("llama-2-7b", {"method": "qlora", "checkpointing": "full", "seq_len": 512}),
    ("llama-2-7b", {"method": "dora", "lora_rank": 64, "adapter_dtype": "bf16"}),
    ("llama-2-7b", {"method": "lora", "modules_to_save": "embeddings,lm_head"}),
    ("llama-2-7b", {"method": "lora", "quantization": "int8", "kbit_preparation": False}),
    ("llama-2-7b", {"method": "lora", "quantization": "gptq4"}),
    ("llama-2-7b", {"method": "adalora", "lora_rank": 24}),
    ("llama-2-7b", {"method": "ia3"}),
    ("llama-2-7b", {"method": "p-tuning", "prompt_encoder": "lstm", "prompt_encoder_size": 64}),
    ("llama-2-7b", {"method": "prefix", "virtual_tokens": 7}),
    ("llama-2-7b", {"method": "freeze", "freeze_layers": 20}),
    ("opt-1.3b", {"method": "bitfit"}),
    ("t5-small", {"source_len": 300}),
    ("llama-2-7b", {"zero": 2, "gpus": 8, "offload": "optimizer"}),
    (
        "llama-2-7b",
        {"zero": 3, "offload": "optimizer+params", "offload_device": "nvme"},
    ),
    ("llama-2-7b", {"zero": 0, "gpus": 8, "optimizer": "one-bit-adam"}),
    ("llama-2-7b", {"zero": 1, "gpus": 4, "precision": "fp16", "optimizer": "adamw-8bit"}),
    ("llama-2-7b", {"fsdp": "grad-op", "gpus": 8, "checkpointing": "full"}),
    ("llama-2-7b", {"fsdp": "hybrid-shard", "gpus": 16}),
    ("llama-2-7b", {"engine": "fsdp1", "fsdp": "hybrid-shard", "gpus": 16}),
    ("llama-2-7b", {"fsdp": "full-shard", "gpus": 8, "offload": "optimizer+params", "tp": 2}),
    ("llama-2-7b", {"loss": "liger", "fused_kernels": ("rmsnorm", "rope", "swiglu")}),
    ("llama-2-7b", {"loss": "fused-ce", "compile": True}),
    ("llama-2-7b", {"offload": "activations", "attention": "sdpa"}),
    ("llama-2-7b", {"optimizer": "paged-adamw-8bit"}),
]


@pytest.mark.parametrize(("model", "options"), SAYABLE, ids=str)
def test_transformers_files_say_it_all(model: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = resolve(resolve_model(model), options)
    written = export_plan(config, tmp_path / "run")
    assert not written.unsaid["transformers"]
    paths = [str(tmp_path / "run" / name) for name in SETS["transformers"] if name in written.files]
    found = read_files(paths)
    assert same(found.config, config)
    assert not found.warnings
    assert not any("not known to have" in note for note in found.notes), found.notes


ATTENTION = {"method": "lora", "lora_targets": "attention"}


@pytest.mark.parametrize(
    ("options", "tool", "word"),
    [
        ({"gpus": 8}, "axolotl", "--gpus 8"),
        (
            {"method": "lora", "lora_targets": "attention"},
            "transformers",
            "--lora-targets attention",
        ),
        ({"method": "adalora"}, "axolotl", "no --method adalora"),
        ({"method": "freeze"}, "axolotl", "no --method freeze"),
        ({"checkpointing": "selective"}, "transformers", "--checkpointing selective"),
        ({"optimizer": "adamw-for-loop"}, "transformers", "--optimizer adamw-for-loop"),
        ({"loss": "chunked"}, "LLaMA-Factory", "--loss chunked"),
        ({"amp": True}, "LLaMA-Factory", "--weights-dtype bf16"),
        ({"stack": "transformers=4.48.1"}, "transformers", "--stack transformers=4.48.1"),
        ({"method": "p-tuning-v2"}, "transformers", "--method p-tuning-v2"),
    ],
    ids=str,
)
def test_what_cannot_be_said_is_named(
    options: dict[str, Any], tool: str, word: str, tmp_path: Path
) -> None:
    written = export_plan(resolve(resolve_model("llama-2-7b"), options), tmp_path)
    assert any(note.startswith(f"{tool}: ") and word in note for note in written.notes), (
        written.notes
    )


@pytest.mark.parametrize(
    "options",
    [{"method": "mam"}, {"engine": "megatron", "gpus": 8, "tp": 2}, {"task": "inference"}],
)
def test_what_no_tool_runs_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    config = resolve(resolve_model("llama-2-7b"), options)
    with pytest.raises(ValueError, match="--export: transformers: not written: "):
        export_plan(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    config = resolve(resolve_model("7b"), {})
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty; name another folder or add --force"):
        export_plan(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    export_plan(resolve(resolve_model("7b"), {"zero": 2}), tmp_path, force=True)
    written = export_plan(config, tmp_path, force=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert "ds_config.json is from before and no part of this" in written.notes
    with pytest.raises(ValueError, match="a file; name a folder"):
        export_plan(config, tmp_path / "mine.txt")


def test_files_need_no_heavy_library(tmp_path: Path) -> None:
    """The bare install reads and writes them too."""
    code = (
        "import sys; from vram_plan.app.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = ('torch', 'numpy', 'pandas', 'transformers', 'peft', 'deepspeed', 'accelerate')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    run = str(tmp_path / "run")
    words = ["--model", "7b", "--zero", "2", "--gpus", "8", "--export", run]
    for more in (words, ["--model", "7b", "--from", f"{run}/training_args.yaml"]):
        command = [sys.executable, "-c", code, *more, "--format", "csv"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]", done.stderr
