"""Files as people have them are read: what they say, what they do not, and what is refused."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from vram_plan.app.exchange.merge import read_files
from vram_plan.app.main import main
from vram_plan.profiles.gpus import find_gpu

FILES = Path(__file__).parent / "files"
LLAMA_2 = "meta-llama/Llama-2-7b-hf"


def read(*names: str, model: str | None = None, **options: Any) -> Any:
    return read_files([str(FILES / name) for name in names], model, options)


CASES: list[tuple[tuple[str, ...], str | None, dict[str, Any], dict[str, Any]]] = [
    (
        ("zero3_auto.json",),
        "7b",
        {"gpus": 8, "micro_batch": 4},
        {"engine": "deepspeed", "zero": 3, "offload": "optimizer", "optimizer": "adamw"},
    ),
    (
        ("zero2_numbers.json",),
        "7b",
        {},
        {"gpus": 8, "micro_batch": 4, "grad_accum": 2, "precision": "fp16", "zero": 2},
    ),
    (
        ("fsdp.yaml",),
        "7b",
        {},
        {
            "engine": "fsdp1",
            "fsdp": "grad-op",
            "gpus": 16,
            "gpus_per_node": 8,
            "precision": "bf16",
            "weights_dtype": "fp32",
        },
    ),
    (
        ("accelerate_zero.yaml", "training_args.json"),
        "7b",
        {"grad_accum": 4, "optimizer": "adamw"},
        {
            "zero": 2,
            "offload": "optimizer",
            "gpus": 4,
            "micro_batch": 2,
            "grad_accum": 4,
            "optimizer": "adamw",
            "checkpointing": "full",
        },
    ),
    (
        ("megatron.yaml",),
        "7b",
        {},
        {
            "engine": "megatron",
            "tp": 2,
            "pp": 2,
            "sequence_parallel": True,
            "zero": 1,
            "grad_accum": 2,
            "checkpointing": "selective",
        },
    ),
    (
        ("training_args.json",),
        "7b",
        {},
        {
            "micro_batch": 2,
            "grad_accum": 16,
            "optimizer": "adafactor",
            "checkpointing": "full",
            "precision": "bf16",
            "weights_dtype": "bf16",
            "amp": True,
            "engine": "torch",
        },
    ),
    (
        ("trl_sft.yaml",),
        None,
        {},
        {
            "method": "qlora",
            "lora_rank": 32,
            "lora_dropout": 0.05,
            "quantization": "nf4",
            "double_quant": True,
            "seq_len": 1024,
            "micro_batch": 4,
            "checkpointing": "full",
            "attention": "flash",
            "loss": "hf",
            "amp": True,
        },
    ),
    (
        ("adapter_config.json",),
        None,
        {},
        {
            "method": "rslora",
            "lora_rank": 64,
            "lora_targets": "q_proj,v_proj",
            "lora_dropout": 0.1,
            "modules_to_save": "embeddings,lm_head",
        },
    ),
    (
        ("axolotl_qlora.yml",),
        "llama-3-8b",
        {},
        {
            "method": "qlora",
            "lora_rank": 32,
            "double_quant": True,
            "seq_len": 4096,
            "micro_batch": 2,
            "grad_accum": 4,
            "optimizer": "paged-adamw",
            "attention": "flash",
            "checkpointing": "full",
            "amp": True,
            "kbit_preparation": True,
        },
    ),
    (
        ("axolotl_fsdp.yml",),
        None,
        {"gpus": 8},
        {
            "engine": "fsdp2",
            "fsdp": "full-shard",
            "loss": "liger",
            "checkpointing": "full",
            "fused_kernels": ("rmsnorm", "rope", "swiglu"),
            "weights_dtype": "fp32",
        },
    ),
    (
        ("llama_factory_lora.yaml",),
        None,
        {},
        {
            "method": "lora",
            "lora_rank": 8,
            "lora_targets": "all-linear",
            "checkpointing": "full",
            "attention": "sdpa",
            "adapter_dtype": "fp32",
            "grad_accum": 8,
            "amp": True,
        },
    ),
    (
        ("llama_factory_full.yaml",),
        None,
        {"gpus": 8},
        {
            "task": "pretrain",
            "method": "full",
            "zero": 3,
            "offload": "optimizer",
            "seq_len": 4096,
            "precision": "bf16",
            "micro_batch": 2,
        },
    ),
    (
        ("torchtune_lora.yaml",),
        None,
        {},
        {
            "method": "lora",
            "lora_rank": 64,
            "lora_targets": "all-linear",
            "engine": "torch",
            "optimizer": "adamw-fused",
            "checkpointing": "full",
            "seq_len": 4096,
            "amp": None,
        },
    ),
    (
        ("torchtune_full.yaml",),
        None,
        {"gpus": 8},
        {
            "engine": "fsdp2",
            "offload": "optimizer+params",
            "weights_dtype": "bf16",
            "optimizer": "adamw-fused",
            "micro_batch": 2,
        },
    ),
]


@pytest.mark.parametrize(("names", "model", "options", "expected"), CASES, ids=str)
def test_what_files_say(
    names: tuple[str, ...], model: str | None, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = read(*names, model=model, **options).config
    assert {name: getattr(config, name) for name in expected} == expected
    assert any("from " in text and names[0] in text for text in config.assumptions)


@pytest.mark.parametrize(
    ("name", "model", "line", "key"),
    [
        ("zero3_auto.json", "7b", 19, "zero_optimization.zero_quantized_weights"),
        ("zero3_auto.json", "7b", 25, "communication_data_type"),
        ("fsdp.yaml", "7b", 7, "fsdp_config.fsdp_backward_prefetch"),
        ("training_args.json", "7b", 13, "eval_strategy"),
        ("trl_sft.yaml", None, 13, "packing"),
        ("adapter_config.json", None, 8, "layers_to_transform"),
        ("axolotl_qlora.yml", "llama-3-8b", 18, "sample_packing"),
        ("axolotl_qlora.yml", "llama-3-8b", 38, "lora_mlp_kernel"),
        ("llama_factory_full.yaml", None, 8, "use_galore"),
        ("torchtune_lora.yaml", None, 22, "dataset.packed"),
    ],
)
def test_keys_that_change_memory_are_named(
    name: str, model: str | None, line: int, key: str
) -> None:
    ranks = {"gpus": 8} if name in {"zero3_auto.json", "llama_factory_full.yaml"} else {}
    warnings = read(name, model=model, **ranks).warnings
    assert any(f"{name}:{line}: {key} changes memory" in text for text in warnings), warnings


def test_harmless_and_unknown_keys_are_listed_once() -> None:
    notes = read("training_args.json", model="7b").notes
    (harmless,) = [text for text in notes if "change no memory" in text]
    assert "learning_rate" in harmless
    assert "warmup_ratio" in harmless
    (unknown,) = [text for text in notes if "not known to have" in text]
    assert "per_device_train_batchsize (per_device_train_batch_size?)" in unknown


def test_options_win() -> None:
    found = read(
        "zero3_auto.json", "training_args.json", model="7b", zero=2, micro_batch=7, gpus=4
    ).config
    assert (found.zero, found.micro_batch, found.gpus) == (2, 7, 4)
    assert found.zero_sizes.overlap_comm
    assert read("fsdp.yaml", model="7b", engine="ddp").config.engine == "ddp"
    assert read("fsdp.yaml", model="7b", zero=1).config.engine == "deepspeed"
    assert read("zero2_numbers.json", model="7b", fsdp="grad-op").config.engine == "fsdp2"
    assert read("trl_sft.yaml", method="full").config.quantization == "none"
    assert read("training_args.json", model="7b", precision="fp32").config.precision == "fp32"
    assert read("trl_sft.yaml", model="7b").config.model.name == "7b"


def test_an_engine_of_the_command_line_brings_its_own_precision() -> None:
    zero = read("training_args.json", model="7b", zero=2, gpus=4).config
    assert (zero.precision, zero.weights_dtype, zero.amp) == ("bf16", "bf16", None)
    fsdp = read("training_args.json", model="7b", fsdp="full-shard", gpus=4).config
    assert (fsdp.precision, fsdp.weights_dtype, fsdp.amp) == ("bf16", "fp32", None)
    lora = read("fsdp.yaml", model="7b", method="lora").config
    assert (lora.weights_dtype, lora.adapter_dtype) == ("bf16", "fp32")


JUNK: tuple[Any, ...] = (
    None,
    [],
    {},
    "x",
    -1,
    0,
    1e400,
    float("nan"),
    True,
    {"a": {"b": 1}},
    "auto",
    "${x}",
    [1, 2],
    ["q_proj", 3],
    "",
    3.7,
    10**30,
    [{}],
    {"version": 9},
    "none",
)


def _paths(values: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(values, dict):
        return []
    inner = [path for key, value in values.items() for path in _paths(value, (*above, key))]
    return [(*above, key) for key in values] + inner


def test_damaged_files_are_one_line_each(tmp_path: Path) -> None:
    """Any key with any value: a configuration, or one line that says what is wrong."""
    random = Random(7)
    readable = 0
    for _ in range(300):
        source = random.choice(sorted(FILES.iterdir()))
        values = yaml.safe_load(source.read_text().replace("\t", " "))
        path = random.choice(_paths(values))
        target = values
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = random.choice(JUNK)
        damaged = write(tmp_path, source.name, yaml.safe_dump(values, sort_keys=False))
        if source.suffix == ".json":
            write(tmp_path, source.name, json.dumps(values))
        said = _said(damaged)
        assert "\n" not in said, path
        readable += not said
    assert readable > 50


def _said(name: str) -> str:
    """Why a file is refused; empty where it is read."""
    try:
        read_files([name], "llama-2-7b", {"gpus": 16})
    except ValueError as error:
        return str(error)
    return ""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


REFUSED = [
    ("a.json", '{\n "zero_optimization": {"stage": 2,}\n}', ":2: not valid JSON"),
    ("a.yaml", "bf16: true\nfp16: [1,\noutput_dir: x\n", "not valid YAML"),
    ("a.json", '{"bf16": {}, "bf16": {}}', "the key 'bf16' is there twice"),
    ("a.yaml", "bf16: true\nbf16: false\n", ":2: the key 'bf16' is there twice"),
    ("a.yaml", "", ":1: empty"),
    ("a.yaml", "- one\n- two\n", ":1: not a configuration"),
    ("a.json", '{\n "zero_optimization": {\n  "stage": 7\n }\n}', ":3: zero_optimization.stage"),
    ("a.json", '{\n "architectures": ["X"],\n "model_type": "llama"\n}', ":2: architectures"),
    ("a.yaml", "hello: 1\nworld: 2\n", ":1: hello is no key of a configuration"),
    (
        "a.yaml",
        "base_model: gpt2\npeft_type: LORA\n",
        ":1: base_model is axolotl's, but peft_type on line 2 is PEFT's",
    ),
    ("a.yaml", "output_dir: x\nper_device_train_batch_size: many\n", ":2: per_device_train_batch"),
    ("a.yaml", "output_dir: x\nper_device_train_batch_size: 0\n", ":2: per_device_train_batch"),
    ("a.yaml", "output_dir: x\nbf16: maybe\n", ":2: bf16 must be true or false"),
    ("a.yaml", "distributed_type: TPU\n", ":1: distributed_type must be one of"),
    ("a.yaml", "compute_environment: LOCAL_MACHINE\n", "distributed_type is missing"),
    ("a.json", '{"peft_type": "OFT"}', ":1: peft_type must be one of"),
    ("a.yaml", "base_model: gpt2\nrl: dpo\n", ":2: rl preference training is not planned"),
    ("a.yaml", "template: x\nstage: dpo\n", ":2: stage must be pt or sft"),
    ("a.yaml", "output_dir: x\ndeepspeed: gone.json\n", ":2 deepspeed names gone.json"),
    (
        "a.json",
        '{"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2, '
        '"gradient_accumulation_steps": 2, "zero_optimization": {"stage": 1}}',
        "train_batch_size 7",
    ),
    ("a.yaml", "a: &a {b: 1}\n" + "c: !!python/object:os.system {}\n", ":2: not valid YAML"),
    ("a.json", "[" * 5000, "nested too deeply"),
]


@pytest.mark.parametrize(("name", "text", "said"), REFUSED, ids=[case[2] for case in REFUSED])
def test_what_is_not_what_it_claims_is_refused(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(SystemExit) as stop:
        main(["--model", "7b", "--from", path])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert not out
    assert err.count("\n") == 1
    assert said in err
    assert path in err


def test_files_that_differ_are_named(tmp_path: Path) -> None:
    one = write(tmp_path, "one.yaml", "output_dir: x\nper_device_train_batch_size: 2\n")
    two = write(tmp_path, "two.yaml", "template: x\nper_device_train_batch_size: 4\n")
    with pytest.raises(ValueError, match=r"one.yaml:2 per_device.* says 2, .*two.yaml:2 .* says 4"):
        read_files([one, two], "7b")
    assert read_files([one, two], "7b", {"micro_batch": 3}).config.micro_batch == 3


def test_the_command_reads_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["--from", str(FILES / "trl_sft.yaml"), "--gpu", "rtx-4090", "--format", "json"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--export", str(run)])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    first = json.loads(out)
    assert first["config"]["method"] == "qlora"
    assert "Warning: " in err
    assert "wrote training_args.yaml, model_args.yaml, adapter_config.json" in err
    assert "transformers: not said: --gpu rtx-4090-24gb" in err
    again = [
        "--from",
        *" --from ".join(
            str(run / name)
            for name in (
                "training_args.yaml",
                "model_args.yaml",
                "adapter_config.json",
                "accelerate.yaml",
            )
        ).split(),
    ]
    with pytest.raises(SystemExit):
        main([*again, "--gpu", find_gpu("rtx-4090").name, "--format", "json"])
    second = json.loads(capsys.readouterr().out)
    assert second["memory"] == first["memory"]
    assert second["config"] == first["config"]


def test_search_writes_its_winner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "--model", "gpt2", "--gpus", "1", "--seq-len", "64", "--zero", "none"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--export", str(tmp_path / "run"), "--format", "json"])
    out = capsys.readouterr().out
    assert not stop.value.code
    best = json.loads(out)["plans"][0]
    found = read_files([str(tmp_path / "run" / "training_args.yaml")], "gpt2").config
    assert found.micro_batch == best["config"]["micro_batch"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--export", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Missing option '--model'"),
        (["--model", "7b", "--force"], "--force needs --export DIR"),
        (["--from", str(FILES / "fsdp.yaml")], "--model is missing, and no file names one"),
        (["--model", "7b", "--from", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["--model", "7b", "--from", str(FILES)], "a folder; name the files in it"),
    ],
)
def test_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *words])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
