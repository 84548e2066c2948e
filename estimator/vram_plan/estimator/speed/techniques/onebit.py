"""1-bit Adam after its warm-up: momentum travels as signs instead of gradients in 16 bits.

Every rank sends each other rank the signs of the part it serves (all-to-all), and the served parts
are gathered again: two passes of one bit an element, a sixteenth of an all-reduce in 16 bits; each
tensor adds one fp32 scale a rank. Sources: arXiv:2102.02888 section 4; DeepSpeed ≤ 0.18
``deepspeed/runtime/comm/nccl.py`` ``compressed_allreduce``, called weight by weight in the step
(``runtime/fp16/onebit/adam.py``), so nothing hides it.
"""

from __future__ import annotations

from collections import Counter

from vram_plan.estimator.sharding.onebit import padded
from vram_plan.estimator.sharding.zero_parts import FP32, Shares
from vram_plan.estimator.speed.payload import collective, data_group
from vram_plan.estimator.speed.transfer import Transfer

BITS_PER_BYTE = 8


def transfers(shares: Shares) -> tuple[Transfer, ...]:
    """Signs to the servers, scales, and signs back."""
    group = data_group(shares.config)
    sizes = Counter(padded(piece.numel, shares.ranks) / BITS_PER_BYTE for piece in shares.trained)
    signs = list(sizes.items())
    scales = [(float(FP32 * shares.ranks), 2 * len(shares.trained))]
    return (
        collective("signs of the momentum", "all-to-all", signs, group),
        collective("signs of the served momentum", "all-gather", signs, group),
        collective("scales of the momentum", "all-gather", scales, group),
    )
