"""The loops of a run in this process: what they measure, learn, and are fed."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from vram_plan.bench.engines.filling import checkpoint_folder, load_checkpoint  # noqa: E402
from vram_plan.bench.engines.memory import GpuMemory  # noqa: E402
from vram_plan.bench.engines.plain import check_optimizer  # noqa: E402
from vram_plan.bench.engines.run import run_rank  # noqa: E402
from vram_plan.bench.runs.job import Job  # noqa: E402

ON_CPU = {"seq_len": 32, "attention": "eager", "precision": "fp32", "weights_dtype": "fp32"}
LINES = [
    {"question": "What is two and two?", "answer": "Four, as everybody knows."},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


def run(tiny_model: str, **changes: Any) -> tuple[dict[str, Any], int]:
    """What was measured, and the peak that the plan predicts."""
    options = {**ON_CPU, **changes.pop("options", {})}
    job = Job(model=tiny_model, options=options, warmup_steps=1, **{"steps": 2, **changes})
    planned = job.predict()
    said: list[tuple[str, Any]] = []
    found = run_rank(job, planned.config, lambda stage, **more: said.append((stage, more)))
    assert next(more["number"] for stage, more in said if stage == "step") == 0
    return found, planned.memory.allocated_bytes


def test_the_plain_loop(tiny_model: str) -> None:
    found, predicted = run(tiny_model, options={"grad_accum": 2})
    assert max(found["instants"].values()) == pytest.approx(predicted, rel=0.02)
    assert len(found["step_seconds"]) == 2
    assert found["losses"][1] < found["losses"][0]
    assert found["states"]["weights"] == 4 * found["parameters"]
    assert found["states"]["optimizer_states"] >= 8 * found["parameters"]


def test_the_trainer_allocates_what_the_plan_says(tiny_model: str) -> None:
    found, predicted = run(tiny_model, loop="trainer")
    assert max(found["instants"].values()) == pytest.approx(predicted, rel=0.03)
    assert len(found["step_seconds"]) == 2
    assert found["losses"][1] < found["losses"][0]
    assert found["states"]["weights"] == 4 * found["parameters"]
    assert found["states"]["optimizer_states"] >= 8 * found["parameters"]
    assert {"forward", "loss", "backward", "gradient_clipping", "optimizer_step"} <= set(
        found["instants"]
    )


@pytest.mark.parametrize("padding", ["packing", "padding"])
def test_a_tiny_data_set_is_learnt(tiny_model: str, data: str, padding: str) -> None:
    found, _ = run(tiny_model, data=data, padding=padding, steps=6)
    assert found["losses"][1] < found["losses"][0]
    assert found["data"]["examples"] == 2
    assert found["data"]["tokenizer"] == "bytes"
    assert (found["data"]["real_share"] == 1.0) is (padding == "packing")


def test_a_checkpoint_is_loaded_by_name(tmp_path: Path, tiny_model: str) -> None:
    """LoRA wraps the layers; the folder's names are the library's."""
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(Path(tiny_model).read_text())
    values = {"model.layers.1.mlp.up_proj.weight": torch.full((160, 64), 0.5)}
    save_file(values, str(folder / "model.safetensors"))
    found, _ = run(str(folder), options={"method": "lora"}, weights="checkpoint")
    assert found["losses"]

    inner = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(64, 160, bias=False)})
    tree = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": inner})})
    save_file({"model.layers.up_proj.weight": torch.ones(160, 64)}, str(folder / "m.safetensors"))
    assert load_checkpoint(tree, folder) == 1
    assert inner["up_proj"].weight.detach().sum() == 160 * 64
    save_file({"model.layers.up_proj.weight": torch.ones(3, 64)}, str(folder / "m.safetensors"))
    with pytest.raises(ValueError, match="is it quantized"):
        load_checkpoint(tree, folder)
    with pytest.raises(ValueError, match=r"no \*.safetensors"):
        load_checkpoint(tree, tmp_path)


def test_a_checkpoint_that_is_not_here_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert checkpoint_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match="hf download EleutherAI/pythia-14m"):
        checkpoint_folder("pythia-14m")


def test_steps_that_were_skipped_are_told() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    check_optimizer(optimizer, 1)
    with pytest.raises(RuntimeError, match=r"counts \[1\] steps of 2"):
        check_optimizer(optimizer, 2)


class Counters:
    """A GPU's counters in the words of torch.cuda."""

    now = 5 * 2**20

    def synchronize(self) -> None: ...
    def reset_peak_memory_stats(self) -> None: ...

    def memory_allocated(self) -> int:
        return self.now

    def max_memory_allocated(self) -> int:
        return self.now

    def max_memory_reserved(self) -> int:
        return 2 * self.now

    def memory_stats(self) -> dict[str, int]:
        return {"num_alloc_retries": 2}


def test_a_gpus_memory_is_read_from_its_counters() -> None:
    counters = Counters()
    memory = GpuMemory(counters)
    memory.start()
    memory.begin()
    memory.relay.enter("forward")
    memory.relay.enter("step")
    counters.now *= 2
    memory.end()
    memory.stop()
    memory.relay.enter("forward")  # nobody listens any more
    found = memory.found()
    assert found["instants"] == {"forward": 5 * 2**20, "optimizer_step": 10 * 2**20}
    assert found["reserved_bytes"] == 20 * 2**20
    assert found["alloc_retries"] == 2
