"""ZeRO 0, 1 and 2: what DeepSpeed 0.19.8 sends, which is not what the paper counts.

* Stage 0 all-reduces every gradient after the last micro-batch's backward pass, 5·10⁸ elements at
  once (``deepspeed/runtime/engine.py`` ``buffered_allreduce_fallback``).
* Stages 1 and 2 all-reduce each bucket too: ``use_multi_rank_bucket_allreduce`` is on
  (``zero/config.py``), so a rank sends twice what a reduce-scatter would; stage 1 after the last
  micro-batch, stage 2 after every one (``engine.py`` ``allreduce_gradients``).
* After the update the weights are all-gathered (``runtime/utils.py`` ``all_gather_dp_groups``).
* Gradients are copied into a bucket (stage 0: into a flat tensor) and out of it again, the flat
  weights of stage 3 into their own tensors (``partition_parameters.py``
  AllGatherCoalescedHandle); every copy reads and writes, at the GPU's own bandwidth at best.
* Gradients travel in the compute dtype (``engine.py`` ``communication_data_type``). Without
  ``overlap_comm`` the backward pass waits for each bucket (``zero/stage_1_and_2.py``
  ``average_tensor``).
"""

from __future__ import annotations

from collections import Counter

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.sharding.zero0 import REDUCED_AT_ONCE
from vram_plan.estimator.sharding.zero_parts import Shares
from vram_plan.estimator.speed.payload import collective, data_group, fullest_rank
from vram_plan.estimator.speed.techniques import onebit, zero3
from vram_plan.estimator.speed.techniques.ddp import COPIED, hidden_reduction
from vram_plan.estimator.speed.transfer import Transfer

COPIES = 2
"""Of every gradient, once it is there and before it is reduced."""


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """Gradients and weights of any stage."""
    if config.shard_ranks == 1:
        return ()
    shares = Shares(fullest_rank(config))
    if config.optimizer == "one-bit-adam":
        return onebit.transfers(shares)
    if config.zero == 3:
        return (*zero3.transfers(shares), _copies(shares))
    found = (*_gradients(shares), _copies(shares))
    if config.zero in {1, 2}:
        whole = float(shares.width * shares.trainable)
        group = data_group(config)
        found += (collective("all-gather of updated weights", "all-gather", [(whole, 1)], group),)
    return found


def _gradients(shares: Shares) -> tuple[Transfer, ...]:
    config = shares.config
    sizes = zero3.bucket_bytes(shares.layout, shares.width, _bucket(config))
    times = config.grad_accum if config.zero == 2 else 1
    if config.zero in {1, 2} and config.zero_sizes.overlap_comm:
        return hidden_reduction(config, sizes, "all-reduce", times=times)
    pieces = [(size, count * times) for size, count in Counter(sizes).items()]
    return (collective("gradient all-reduce", "all-reduce", pieces, data_group(config)),)


def _copies(shares: Shares) -> Transfer:
    """Copies inside the GPU, in and out of the flat tensors that travel."""
    config = shares.config
    times = config.grad_accum if config.zero in {2, 3} else 1
    copied = float(COPIES * shares.width * shares.trainable * times)
    if config.zero == 3:
        copied += sum(zero3.gathered_bytes(shares).values()) * config.grad_accum
    gpu = config.gpu
    rate = gpu.memory_bandwidth_bytes_per_s if gpu else float("inf")
    return Transfer(
        name="copies in and out of flat tensors",
        part=COPIED,
        bytes=0,
        seconds=2 * copied / rate,
    )


def _bucket(config: TrainConfig) -> int:
    return config.zero_sizes.reduce_bucket_size if config.zero in {1, 2} else REDUCED_AT_ONCE
