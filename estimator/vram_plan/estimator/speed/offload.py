"""What goes to the host and back, and the update that the processor makes there.

ZeRO-Offload (DeepSpeed 0.19.8 ``zero/stage_1_and_2.py``, ``zero/stage3.py``): a rank's partition
of the gradients goes down after each micro-batch (and up again to be added to, with accumulation),
at the last one in fp32; DeepSpeedCPUAdam updates; new weights come up. ``optimizer+params``
fetches each weight's partition before it is gathered. FSDP's offload moves the same shards, and
PyTorch's own AdamW updates. Everything over the GPU's host link at the rate of pinned memory
(``links``).

How fast the update is depends on the processor's memory and threads. Measured per machine:

* 8 × A100-80GB machines: about 10 s for 72.7·10⁹ parameters on four of them
  (deepspeedai/DeepSpeed issue 6834), so 1.8·10⁹ parameters a second each; an 11.6·10⁹-parameter
  model on a machine of 2021 took 8.2 s (pull request 735), 1.4·10⁹ a second.
* A desktop: ViT-giant (1.1365·10⁹ parameters) takes 3.13 s instead of 1.27 s a step (pytorch/ao @
  36027d82 ``torchao/optim/README.md``), 0.6·10⁹ a second with all its copies.
* PyTorch's AdamW takes 5 to 7 times as long (deepspeed.ai/tutorials/zero-offload) on fp32 tensors;
  it goes over whole tensors once an operator, so 16-bit ones take half of that.

Threads that are not bound to the ranks' cores are slower by 1.3 (DeepSpeed pull request 7474) and
more.

Saved tensors go by ``torch.autograd.graph.save_on_cpu(pin_memory=True)``: so transformers calls it
for checkpoints (5.23.0 ``modeling_utils.py``), FSDP's ``offload_wrapper``, and the script that
``--export`` writes. torch 2.13.0 ``torch/autograd/graph.py``: both copies are ``non_blocking`` and
on the current stream, so the host runs ahead, but the kernels behind a copy wait for it: nothing is
hidden, every byte travels twice, and a weight that an operator saves is a tensor like any other.
Without ``pin_memory`` both copies block and pass through pageable memory, where an A100 writes 1.4
GB/s instead of 12.6 (pytorch/pytorch pull request 138018): not planned. Left out: the copy on the
device that a transposed weight takes on its way.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.sharding.fsdp_states import shard_ranks
from vram_plan.estimator.sharding.zero_parts import FP32, Shares
from vram_plan.estimator.speed.links import host_rate
from vram_plan.estimator.speed.optimizer_step import updated_itemsize
from vram_plan.estimator.speed.payload import fullest_rank
from vram_plan.estimator.speed.techniques import fsdp, zero3
from vram_plan.estimator.speed.transfer import (
    CPU_OPTIMIZER,
    OFFLOAD,
    NotModelled,
    Transfer,
)

__all__ = [
    "cpu_update_seconds",
    "of_activations",
    "of_states",
    "offload_transfers",
    "sends_activations",
]

SERVER_PARAMETERS_PER_S = 72.7e9 / 4 / 10
DESKTOP_PARAMETERS_PER_S = 1.1365e9 / (3.13 - 1.27)
TORCH_SLOWDOWN = 6.0
"""The middle of 5 to 7."""
_STATES = 3
"""fp32 master weights and two moments."""


def offload_transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """Copies over the host link and to disks, and the update on the processor."""
    return (*of_states(config), *(_activations(config) if sends_activations(config) else ()))


def of_states(config: TrainConfig) -> tuple[Transfer, ...]:
    """Copies of weights, gradients and states, and the update: whatever the micro-batch."""
    if config.offload not in {"optimizer", "optimizer+params"}:
        return ()
    if config.engine in {"fsdp1", "fsdp2"}:
        return tuple(_fsdp(config))
    return tuple(_zero(Shares(fullest_rank(config))))


def sends_activations(config: TrainConfig) -> bool:
    """Whether saved tensors go to the host."""
    return config.offload == "activations" or config.checkpointing == "offload"


def cpu_update_seconds(config: TrainConfig, parameters: float) -> float:
    """Seconds of updating ``parameters`` a rank; a machine's ranks share its processor."""
    desktop = config.gpu is not None and config.gpu.kind != "datacentre"
    rate = DESKTOP_PARAMETERS_PER_S if desktop else SERVER_PARAMETERS_PER_S
    seconds = parameters * config.gpus_per_node / rate
    if config.engine in {"fsdp1", "fsdp2"}:
        seconds *= TORCH_SLOWDOWN * updated_itemsize(config) / FP32
    return seconds


def _copy(
    config: TrainConfig, name: str, nbytes: float, count: int, overlaps: str | None
) -> Transfer:
    """``count`` copies of ``nbytes`` over the host link."""
    total = nbytes * count
    seconds = total / host_rate(config)
    return Transfer(
        name=name, part=OFFLOAD, bytes=total, seconds=seconds, overlaps=overlaps, count=count
    )


def _update(config: TrainConfig, parameters: float) -> Transfer:
    seconds = cpu_update_seconds(config, parameters)
    return Transfer(name="update on the processor", part=CPU_OPTIMIZER, bytes=0, seconds=seconds)


def _zero(shares: Shares) -> list[Transfer]:
    config, own = shares.config, float(shares.partition)
    waits = config.grad_accum - 1
    found = [
        _copy(config, "gradients to the host (fp32)", FP32 * own, 1, "backward"),
        _copy(config, "updated weights from the host", shares.width * own, 1, None),
        _update(config, own),
    ]
    if config.grad_accum > 1:
        width = shares.grad_width
        found += [
            _copy(config, "gradients to the host", width * own, config.grad_accum, "backward"),
            _copy(config, "gradients to be added to", width * own, waits, "backward"),
        ]
    if config.offload == "optimizer+params":
        found += _fetched(shares)
    if config.offload_device == "nvme":
        found.append(_swapped(config, own))
    return found


def _fetched(shares: Shares) -> list[Transfer]:
    """A rank's part of every weight, as often as it is gathered."""
    config = shares.config
    return [
        _copy(
            config,
            f"weights from the host ({phase})",
            nbytes / shares.ranks,
            config.grad_accum,
            phase if config.zero_sizes.overlap_comm else None,
        )
        for phase, nbytes in zero3.gathered_bytes(shares).items()
    ]


def _swapped(config: TrainConfig, own: float) -> Transfer:
    """ZeRO-Infinity: master weights and moments are read and written around the update."""
    node = config.node
    if node is None or not node.nvme_read_bytes_per_s or not node.nvme_write_bytes_per_s:
        where = node.name if node else "the machine"
        raise NotModelled(f"the rates of the disks of {where} are not known: give --nvme-gb-s")
    nbytes = _STATES * FP32 * own
    both = 1 / node.nvme_read_bytes_per_s + 1 / node.nvme_write_bytes_per_s
    return Transfer(
        name="optimizer states from the disks and back",
        part=OFFLOAD,
        bytes=2 * nbytes,
        seconds=nbytes * config.gpus_per_node * both,
        count=2,
    )


def _fsdp(config: TrainConfig) -> list[Transfer]:
    """Shards come up for each gather, gradients go down, PyTorch's AdamW updates."""
    ranks, rank = shard_ranks(config), fullest_rank(config)
    root, layers = fsdp.units(rank)
    whole = [(fsdp.unit_bytes(config, unit, ranks), count) for unit, count in layers]
    blocks = sum(nbytes * count for nbytes, count in whole) / ranks
    outside = fsdp.unit_bytes(config, root, ranks) / ranks
    gradients = sum(
        fsdp.gradient_unit_bytes(unit, ranks) * count for unit, count in [(root, 1), *layers]
    )
    times = config.grad_accum
    found = [
        _copy(config, "shards from the host (forward)", blocks + outside, times, "forward"),
        _copy(config, "gradients to the host", gradients / ranks, times, "backward"),
        _update(config, rank.trainable / ranks),
    ]
    if config.fsdp != "grad-op":
        found.append(_copy(config, "shards from the host (backward)", blocks, times, "backward"))
    return found


def _activations(config: TrainConfig) -> tuple[Transfer, ...]:
    passes = run_passes(config, keeps_gradients=config.grad_accum == 1)
    return of_activations(config, float(passes.host))


def of_activations(config: TrainConfig, nbytes: float) -> tuple[Transfer, ...]:
    """Saved tensors, there and back on the stream that computes: nothing runs beside a copy."""
    names = ("activations to the host", "activations from the host")
    return tuple(_copy(config, name, nbytes, config.grad_accum, None) for name in names)
