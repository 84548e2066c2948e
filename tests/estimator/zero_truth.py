"""DeepSpeed's real engine as rank R of N virtual ranks on the CPU: live bytes of every phase.

Runs in a process of its own: ``python zero_truth.py CASES`` with CASES a JSON list; prints one
JSON line for each. The process group is fake: collectives return at once and move nothing, so
values are garbage and norms are not checked; sizes and lifetimes are those of a real rank (two
real gloo ranks give the same bytes). Live bytes are storages followed through the dispatcher,
rounded up to 512 as CUDA's allocator does; host and device memory cannot be told apart here.
"""

import contextlib
import importlib
import json
import os
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from vram_plan.bench.trace.storages import StorageLog, tensors_in


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes the storages of every operator's results."""

    def __init__(self, log: StorageLog) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.device.type != "meta":
                self.log.see(tensor, func.__name__, "")
        return result


def fused_adam() -> Any:
    """DeepSpeed's FusedAdam with PyTorch's fused kernel instead of the one it would compile."""
    from deepspeed.ops.adam import FusedAdam

    class Adam(FusedAdam):  # type: ignore[misc]  # deepspeed has no types
        def __init__(self, params: Any) -> None:
            defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
            torch.optim.Optimizer.__init__(self, params, defaults)

        def zero_grad(self, set_to_none: bool = True) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = None

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                _update([p for p in group["params"] if p.grad is not None], self.state)

    return Adam


def _update(params: Any, state: Any) -> None:
    for p in params:
        if not state[p]:
            state[p]["exp_avg"] = torch.zeros_like(p.data)
            state[p]["exp_avg_sq"] = torch.zeros_like(p.data)
        torch._fused_adamw_(
            [p.data],
            [p.grad],
            [state[p]["exp_avg"]],
            [state[p]["exp_avg_sq"]],
            [],
            [torch.zeros(())],
            lr=1e-3,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )


def build(case: dict[str, Any]) -> Any:
    """A small Llama, with LoRA or checkpointing where the case asks for it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**case["model"])
    config.use_cache = False
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[case["precision"]]
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, dtype=dtype, attn_implementation="eager")
    if case["lora"]:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=case["lora"], target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    if case["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def ds_json(case: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration of a case."""
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": case["accum"],
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": case["stage"], **case["zero"]},
    }
    if case["precision"] == "bf16":
        found["bf16"] = {"enabled": True}
    if case["grad_accum_dtype"]:
        found["data_types"] = {"grad_accum_dtype": case["grad_accum_dtype"]}
    return found


def run(case: dict[str, Any]) -> dict[str, int]:
    """Two steps (the second knows the order of the modules); the second's largest live bytes."""
    import deepspeed
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.fp16 import fused_optimizer
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for module in (bf16_optimizer, fused_optimizer, stage3, stage_1_and_2):
        module.is_invalid_grad_norm = lambda *norm: False
    # Else every fresh machine compiles a kernel no fake collective calls, and waits for ever on
    # the lock that a killed compilation leaves behind.
    comm: Any = importlib.import_module("deepspeed.comm.torch")
    comm.build_shm_op = lambda: None
    log = StorageLog()
    with Recorder(log):
        model = build(case)
        params = [p for p in model.parameters() if p.requires_grad]
        host = "offload_optimizer" in case["zero"]
        adam = torch.optim.AdamW(params, fused=True) if host else fused_adam()(params)
        engine = deepspeed.initialize(model=model, optimizer=adam, config=ds_json(case))[0]
        del params
        if hasattr(engine.optimizer, "overflow_checker"):
            engine.optimizer.overflow_checker.has_overflow = lambda *of: False
        else:
            engine.optimizer._check_overflow = lambda *of: None
        ids = torch.randint(0, case["model"]["vocab_size"], (1, case["seq"]))
        for _ in range(2):
            log.restart()
            for _ in range(case["accum"]):
                log.phase = "forward"
                loss = engine(input_ids=ids, labels=ids).loss
                log.phase = "backward"
                engine.backward(loss)
                del loss
                log.phase = "step"
                engine.step()
            assert engine.was_step_applied(), "the optimizer did not step"
    peaks: dict[str, int] = {}
    for event in log.events:
        peaks[event.phase] = max(peaks.get(event.phase, 0), event.live)
    engine.destroy()
    return {phase: peaks[phase] for phase in ("forward", "backward", "step")}


def main() -> None:
    """Run the cases given as JSON; all must have the same ranks."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    cases = json.loads(sys.argv[1])
    ranks, rank = cases[0]["ranks"], cases[0]["rank"]
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", DS_ACCELERATOR="cpu")
    warnings.filterwarnings("ignore")
    for case in cases:
        with contextlib.redirect_stdout(sys.stderr):
            if not dist.is_initialized():
                dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
            peaks = run(case)
        print(json.dumps(peaks), flush=True)


if __name__ == "__main__":
    main()
