"""Every combination of options gives a plan or one line that says what is wrong."""

import csv
import json
import random

import pytest

from vram_plan.app.main import main
from vram_plan.estimator import choices
from vram_plan.estimator.ledger import COMPONENTS

LINES = 5_000
PARTS = 10
MODELS = (
    "7b",
    "0.5b",
    "llama-2-7b",
    "qwen2.5-0.5b",
    "gpt2",
    "opt-1.3b",
    "bloomz-560m",
    "falcon-7b",
    "gemma-2b",
    "gpt-j-6b",
    "pythia-1b",
    "mixtral-8x7b",
    "bert-base-uncased",
    "t5-small",
    "chatglm3-6b",
    "deepseek-v2-lite",
    "nobody/knows-this",
)
DEGREES = ("1", "2", "3", "4", "8", "16", "0", "-1")
VALUES: dict[str, tuple[str, ...]] = {
    "--task": choices.TASKS,
    "--method": choices.METHODS,
    "--lora-rank": ("1", "8", "64", "0"),
    "--lora-targets": ("all-linear", "attention", "q_proj,v_proj", "nothing_like_this"),
    "--adapter-dtype": choices.ADAPTER_DTYPES,
    "--adapter-size": ("16", "256"),
    "--freeze-layers": ("0", "1", "4", "1000"),
    "--virtual-tokens": ("1", "20", "100"),
    "--prompt-encoder": choices.PROMPT_ENCODERS,
    "--prompt-encoder-size": ("64", "512"),
    "--gpus": ("1", "2", "3", "4", "8", "16", "64", "0", "1000000000"),
    "--gpus-per-node": ("1", "2", "4", "8"),
    "--gpu": ("a100-80gb", "rtx-4090", "t4", "v100-32gb", "mi300x", "h100", "no-such-gpu"),
    "--engine": choices.ENGINES,
    "--zero": ("0", "1", "2", "3", "4"),
    "--fsdp": choices.FSDP_STRATEGIES,
    "--tp": DEGREES,
    "--pp": DEGREES,
    "--cp": DEGREES,
    "--ep": DEGREES,
    "--pp-schedule": choices.PIPELINE_SCHEDULES,
    "--virtual-pipeline": ("1", "2", "5"),
    "--offload": choices.OFFLOADS,
    "--offload-device": choices.OFFLOAD_DEVICES,
    "--precision": choices.PRECISIONS,
    "--weights-dtype": choices.WEIGHTS_DTYPES,
    "--quantization": choices.QUANTIZATIONS,
    "--optimizer": choices.OPTIMIZERS,
    "--micro-batch": ("1", "2", "7", "0"),
    "--seq-len": ("1", "128", "512", "2048", "100000", "-5"),
    "--source-len": ("64", "512"),
    "--gptq-group-size": ("-1", "64", "0"),
    "--lengths": ("fixed", "800,600", "300,900,50", "x", "-1,2"),
    "--grad-accum": ("1", "4"),
    "--checkpointing": choices.CHECKPOINTINGS,
    "--attention": choices.ATTENTIONS,
    "--attention-density": ("0.1", "1", "2"),
    "--loss": choices.LOSSES,
    "--kv-dtype": choices.KV_DTYPES,
    "--fused-kernels": (*choices.FUSED_KERNELS, "rope,rmsnorm", "warp"),
    "--lora-dropout": ("0", "0.05", "1", "-1"),
    "--modules-to-save": ("embeddings", "embeddings,lm_head", "nothing"),
    "--stack": ("transformers=4.48.1,peft=0.11.1", "loop=litgpt", "torch=x", "numpy=2", "torch"),
}
FLAGS = (
    "--sequence-parallel",
    "--double-quant",
    "--no-double-quant",
    "--amp",
    "--no-amp",
    "--compile",
    "--optimizer-in-backward",
)
JSON_PARTS = 1
"""JSON has what the allocator reserves, a replay of the whole run for each plan."""


def _line(random_: random.Random, *, as_json: bool) -> list[str]:
    line = ["plan", "--model", random_.choice(MODELS), "--format", "json" if as_json else "csv"]
    for name in random_.sample(sorted(VALUES), random_.randint(0, 7)):
        line += [name, random_.choice(VALUES[name])]
    if random_.random() < 0.1:
        line.append(random_.choice(FLAGS))
    return line


def _adds_up(out: str, said: str, *, as_json: bool) -> None:
    """The components sum to the peak."""
    if as_json:
        memory = json.loads(out)["memory"]
        assert tuple(memory["components"]) == COMPONENTS
        assert sum(memory["components"].values()) == memory["allocated_bytes"], said
        return
    rows = {name: float(value) for name, value in list(csv.reader(out.splitlines()))[1:]}
    assert sum(rows[name] for name in COMPONENTS) == rows["allocated_bytes"], said


@pytest.mark.parametrize("part", range(PARTS))
def test_a_plan_or_one_line(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    random_ = random.Random(part)
    planned = 0
    for _ in range(LINES // PARTS):
        line = _line(random_, as_json=part < JSON_PARTS)
        try:
            main(line)
            code: object = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        said = f"vram-plan {' '.join(line)}\n{err}"
        if code == 0:
            planned += 1
            _adds_up(out, said, as_json=part < JSON_PARTS)
        else:
            assert code == 2, said
            assert not out, said
            assert err.startswith("Error: "), said
            assert err.count("\n") == 1, said
    assert planned > LINES // PARTS // 10, "too few lines made a plan: the test sees nothing"
