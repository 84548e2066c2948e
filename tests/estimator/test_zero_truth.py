"""The closed form of DeepSpeed against DeepSpeed itself, run on virtual ranks (see zero_truth)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vram_plan.estimator import plan
from vram_plan.estimator.config import ZeroSizes
from vram_plan.estimator.ledger import Ledger
from vram_plan.estimator.sharding.zero_parts import REDUCTION
from vram_plan.estimator.step import CLIPPING, FORWARD, LOSS, OPTIMIZER_STEP, PASSES, TRAINING
from vram_plan.profiles.hf_config import from_hf_config

RANKS = 4
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}
BUCKET = {"reduce_bucket_size": 500_000}
TIGHT = {
    **BUCKET,
    "stage3_max_live_parameters": 800_000,
    "stage3_max_reuse_distance": 400_000,
    "stage3_prefetch_bucket_size": 100_000,
    "stage3_param_persistence_threshold": 2_560,
    "sub_group_size": 200_000,
}
HOST = {"device": "cpu", "pin_memory": False}


def case(stage: int, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "stage": stage,
        "model": LLAMA,
        "ranks": RANKS,
        "rank": 0,
        "seq": 16,
        "accum": 1,
        "lora": 0,
        "checkpointing": False,
        "precision": "bf16",
        "zero": BUCKET,
        "grad_accum_dtype": None,
    }
    return base | more


CASES = {
    "stage 0": case(0),
    "stage 1": case(1),
    "stage 1, 2 micro-batches": case(1, accum=2),
    "stage 1, fp32 gradients": case(1, grad_accum_dtype="fp32"),
    "stage 2": case(2),
    "stage 2, 2 micro-batches": case(2, rank=2, accum=2),
    "stage 2, LoRA, checkpointing": case(2, lora=8, checkpointing=True),
    "stage 2, optimizer on the host": case(2, rank=3, zero={**BUCKET, "offload_optimizer": HOST}),
    "stage 3": case(3),
    "stage 3, fp32": case(3, precision="fp32"),
    "stage 3, tight limits": case(3, zero=TIGHT),
    "stage 3, LoRA": case(3, lora=8),
    "stage 3, all on the host": case(
        3, zero={**BUCKET, "offload_optimizer": HOST, "offload_param": HOST}
    ),
}
TOLERANCE = {"stage 3, tight limits": 0.02}
"""Weights come and go within a block there: the plan adds its largest gathering and activations."""
PHASES = {
    "forward": {FORWARD, LOSS},
    "backward": {*PASSES, REDUCTION} - {FORWARD, LOSS},
    "step": {CLIPPING, OPTIMIZER_STEP},
}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    """Peaks of every case on the rank that is its fullest; one process for each such rank."""
    found: dict[str, dict[str, int]] = {}
    for rank in sorted({given["rank"] for given in CASES.values()}):
        names = [name for name, given in CASES.items() if given["rank"] == rank]
        found.update(zip(names, _run([CASES[name] for name in names]), strict=True))
    return found


def _run(cases: list[dict[str, Any]]) -> list[dict[str, int]]:
    script = Path(__file__).with_name("zero_truth.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", str(script), json.dumps(cases)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def predicted(given: dict[str, Any]) -> dict[str, int]:
    """Bytes of one rank by phase, host memory included: on the CPU it is the same memory."""
    sizes = {key: value for key, value in given["zero"].items() if "offload" not in key}
    sizes = {"overlap_comm": given["stage"] == 3, "pin_memory": False, **sizes}
    if given["grad_accum_dtype"]:
        sizes["grad_accum_bytes"] = 4
    offload = "offload_optimizer" in given["zero"], "offload_param" in given["zero"]
    options: dict[str, Any] = {
        "engine": "deepspeed",
        "zero": given["stage"],
        "zero_sizes": ZeroSizes(**sizes),
        "gpus": given["ranks"],
        "gpus_per_node": 1,
        "seq_len": given["seq"],
        "grad_accum": given["accum"],
        "checkpointing": "full" if given["checkpointing"] else "none",
        "attention": "eager",
        "precision": given["precision"],
        "weights_dtype": given["precision"],
    }
    if given["lora"]:
        options |= {"method": "lora", "lora_rank": given["lora"], "adapter_dtype": "bf16"}
    if offload[0]:
        options["offload"] = "optimizer+params" if offload[1] else "optimizer"
    found = plan(from_hf_config(given["model"], name="toy"), **options)
    ledger = Ledger(dict.fromkeys((*TRAINING, REDUCTION)), found.memory.ledger.entries)
    totals = ledger.totals()
    host = ledger.elsewhere("host")
    return {
        phase: host + max(totals[instant] for instant in instants)
        for phase, instants in PHASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_peak_of_the_step(name: str, measured: dict[str, dict[str, int]]) -> None:
    peak = max(predicted(CASES[name]).values())
    assert peak == pytest.approx(max(measured[name].values()), rel=TOLERANCE.get(name, 0.01))


@pytest.mark.parametrize("name", CASES)
def test_forward_and_update(name: str, measured: dict[str, dict[str, int]]) -> None:
    found = predicted(CASES[name])
    for phase in ("forward", "step"):
        assert found[phase] == pytest.approx(measured[name][phase], rel=0.025), phase


@pytest.mark.parametrize("name", CASES)
def test_backward(name: str, measured: dict[str, dict[str, int]]) -> None:
    """Within a block the plan adds largest values that need not be of one moment."""
    found, seen = predicted(CASES[name])["backward"], measured[name]["backward"]
    assert 0.995 * seen <= found <= 1.035 * seen
