"""FSDP's closed form against the library's own code: fake tensors, a fake process group of N ranks.

PyTorch frees and allocates gathered weights by resizing storages, which no operator sees, so those
functions report to the log here.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest

from vram_plan.bench.trace import TraceConfig
from vram_plan.bench.trace.timeline import Trace
from vram_plan.estimator import plan
from vram_plan.profiles.hf_config import from_hf_config

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1000,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 3001,
}
PHASES = {
    "loss": ("loss",),
    "backward": (
        "loss_backward",
        "backward_last_layer",
        "backward_first_layer",
        "embedding_backward",
    ),
    "clip": ("gradient_clipping",),
    "step": ("optimizer_step",),
}
Wrap = Callable[[Any, Any], Any]


def wrap_fsdp2(model: Any, mesh: Any, *, reshard: bool = True) -> Any:
    """``fully_shard`` on each block, then on the model."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    keywords: dict[str, Any] = {} if reshard else {"reshard_after_forward": False}
    fully_shard(model, mesh=mesh, mp_policy=policy, **keywords)
    return model


def wrap_fsdp1(model: Any, mesh: Any, *, mixed: bool = True, adapters: bool = False) -> Any:
    """As Accelerate wraps: a unit for each block; PEFT's policy for adapters."""
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from torch.distributed.fsdp.wrap import (
        _or_policy,
        lambda_auto_wrap_policy,
        transformer_auto_wrap_policy,
    )

    def is_adapter(module: Any) -> bool:
        weight = getattr(module, "weight", None)
        return not list(module.children()) and weight is not None and weight.requires_grad

    kinds = {type(block) for block in _blocks(model)}
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=kinds)
    if adapters:
        leaves = functools.partial(lambda_auto_wrap_policy, lambda_fn=is_adapter)
        policy = functools.partial(_or_policy, policies=[leaves, policy])
    low = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=policy,
        mixed_precision=low if mixed else None,
        use_orig_params=True,
    )


def _blocks(model: Any) -> list[Any]:
    lists = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    return list(next(lists))


class _Device:
    """What FSDP1 asks of an accelerator, for a device without streams."""

    class Event:
        """Nothing to wait for."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            pass

        record = synchronize = wait = lambda self, *args: self

    class Stream(Event):
        """Everything runs in order."""

        wait_stream = wait_event = lambda self, *args: None

        def record_event(self, *args: Any) -> "_Device.Event":
            """An event that has happened."""
            return _Device.Event()

    def stream(self, stream: Any) -> Any:
        """A stream to work in."""
        return nullcontext()

    def current_stream(self, *args: Any) -> Any:
        """The only stream."""
        return _Device.Stream()

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        """The device."""
        return torch.device("cpu")


@contextmanager
def _reporting(log: Any) -> Iterator[None]:
    """FSDP's own allocations and frees are seen."""
    import torch.distributed.fsdp._flat_param as flat
    import torch.distributed.fsdp._fully_shard._fsdp_param as param
    import torch.distributed.fsdp._fully_shard._fsdp_param_group as group
    import torch.distributed.fsdp._runtime_utils as runtime
    import torch.distributed.fsdp.fully_sharded_data_parallel as fsdp1
    from torch.distributed import utils

    def seen(function: Callable[..., None]) -> Callable[..., None]:
        def call(tensor: Any, *args: Any) -> None:
            function(tensor, *args)
            log.see(tensor, "resize", "")

        return call

    def on_cpu(state: Any, *args: Any) -> Any:
        state._device_handle = _Device()
        return state

    alloc, free = seen(param.alloc_storage), seen(param.free_storage)
    patches = (
        (param, "alloc_storage", alloc),
        (param, "free_storage", free),
        (group, "alloc_storage", alloc),
        (flat, "_alloc_storage", seen(utils._alloc_storage)),
        (flat, "_free_storage", seen(utils._free_storage)),
        (flat, "_no_dispatch_record_stream", lambda *args: None),
        (runtime, "_no_dispatch_record_stream", lambda *args: None),
        (fsdp1, "_init_device_handle", on_cpu),
    )
    with ExitStack() as stack:
        for owner, name, new in patches:
            stack.enter_context(mock.patch.object(owner, name, new))
        yield


@contextmanager
def _ranks(count: int) -> Iterator[Any]:
    """Rank 0 of ``count``, and a mesh of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        torch.distributed.destroy_process_group()


def _local(tensor: Any) -> Any:
    return getattr(tensor, "_local_tensor", tensor)


def _trace(config: TraceConfig, ranks: int, wrap: Wrap) -> Trace:
    """`trace_fake` with a wrapped model."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from vram_plan.bench.trace import recorder
    from vram_plan.bench.trace.build import build_model, materialize
    from vram_plan.bench.trace.cuda import CudaRules
    from vram_plan.bench.trace.fake import _loss_begins, _Watch
    from vram_plan.bench.trace.losses import last_before_loss
    from vram_plan.bench.trace.modules import ModulePaths
    from vram_plan.bench.trace.rules import fake_tensors_count
    from vram_plan.bench.trace.step import TrainingStep, make_batch
    from vram_plan.bench.trace.storages import StorageLog, tensors_in

    log, rules = StorageLog(), CudaRules()

    def local_tensors(value: Any) -> Iterator[Any]:
        return map(_local, tensors_in(value))

    with ExitStack() as stack:
        mesh = stack.enter_context(_ranks(ranks))
        for context in (fake_tensors_count(), rules.installed(), _reporting(log)):
            stack.enter_context(context)
        stack.enter_context(mock.patch.object(recorder, "tensors_in", local_tensors))
        model = build_model(config)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        materialize(model, lambda shape, dtype: torch.empty(shape, dtype=dtype, device="cpu"))
        head = last_before_loss(model, config.loss)
        model = wrap(model, mesh)
        paths = stack.enter_context(ModulePaths(model))
        watch = _Watch(log, paths)
        named = [(name, _local(p)) for name, p in model.named_parameters()]
        watch.see([*named, *model.named_buffers()], "parameter", "weights")
        paths.on_exit = _loss_begins(head, watch)
        stack.enter_context(recorder.Recorder(log, paths, rules))
        step = TrainingStep(config, model, watch, rules.autocast)
        batch = make_batch(config)
        for _ in range(config.steps):
            start, alive = log.restart()
            paths.forget_numbers()
            step.run(batch)
    return Trace(start_bytes=start, start_blocks=alive, events=log.events, marks=watch.marks)


def _compare(
    ranks: int,
    wrap: Wrap,
    *,
    tolerance: float = 0.003,
    skip: tuple[str, ...] = (),
    changes: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Every phase of plan and trace within ``tolerance``."""
    shape = LLAMA | (model or {})
    spec = from_hf_config(shape, name="small", source="test")
    memory = plan(spec, gpus=ranks, micro_batch=2, seq_len=128, **options).memory
    shared = {k: options[k] for k in ("checkpointing", "method", "grad_accum") if k in options}
    config = TraceConfig(
        config=shape,
        batch=2,
        seq=128,
        dtype=options.get("weights_dtype", "fp32"),
        attention="flash",
        **shared,
        **(changes or {}),
    )
    traced = _trace(config, ranks, wrap).phase_peaks
    for phase, instants in PHASES.items():
        if phase in skip:
            continue
        planned = max(memory.instants.get(instant, 0) for instant in instants)
        assert planned == pytest.approx(traced[phase], rel=tolerance), (phase, traced)


@pytest.mark.parametrize("ranks", [2, 8])
def test_fsdp2_equals_the_library(ranks: int) -> None:
    _compare(ranks, wrap_fsdp2, fsdp="full-shard")


def test_fsdp2_with_checkpoints() -> None:
    _compare(4, wrap_fsdp2, fsdp="full-shard", checkpointing="full")


def test_fsdp2_without_resharding() -> None:
    _compare(4, functools.partial(wrap_fsdp2, reshard=False), fsdp="grad-op")


def test_fsdp2_with_frozen_weights() -> None:
    _compare(4, wrap_fsdp2, fsdp="full-shard", method="lora", weights_dtype="bf16")


def test_fsdp2_with_tied_weights_and_accumulation() -> None:
    _compare(2, wrap_fsdp2, fsdp="full-shard", grad_accum=2, model={"tie_word_embeddings": True})


@pytest.mark.parametrize("ranks", [2, 8])
def test_fsdp1_equals_the_library(ranks: int) -> None:
    _compare(ranks, wrap_fsdp1, engine="fsdp1")


def test_fsdp1_with_checkpoints() -> None:
    _compare(4, wrap_fsdp1, engine="fsdp1", checkpointing="full")


def test_fsdp1_with_adapters() -> None:
    """Fake storages have no address, so that the frozen root looks resharded and stays gathered."""
    _compare(
        4,
        functools.partial(wrap_fsdp1, adapters=True),
        engine="fsdp1",
        method="lora",
        weights_dtype="bf16",
        skip=("clip", "step"),
    )
