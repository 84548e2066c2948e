"""The section about FSDP that Accelerate, transformers and axolotl share but for its prefix.

accelerate 1.15.0 ``utils/dataclasses.py`` ``FullyShardedDataParallelPlugin`` and
``utils/constants.py`` ``FSDP_SHARDING_STRATEGY``; transformers 5.23.0 ``training_args.py``
``_process_fsdp_args``.
"""

from __future__ import annotations

from typing import Any

from vram_plan.app.exchange.facts import Weight
from vram_plan.app.exchange.reader import Reader
from vram_plan.estimator.config import TrainConfig

SECTION = "fsdp_config"
STRATEGIES = {
    "full_shard": "full-shard",
    "shard_grad_op": "grad-op",
    "hybrid_shard": "hybrid-shard",
    "true": "full-shard",
    "false": "grad-op",
    "1": "full-shard",
    "2": "grad-op",
    "4": "hybrid-shard",
}
"""``reshard_after_forward`` (a switch in version 2) and ``sharding_strategy``."""
_NAMES = {"full-shard": "FULL_SHARD", "grad-op": "SHARD_GRAD_OP", "hybrid-shard": "HYBRID_SHARD"}


def read_fsdp(reader: Reader, *, prefix: str, version: int, offload: str) -> None:
    """Engine, strategy, offload and checkpointing from the section.

    Args:
        reader: the file, whose section is read.
        prefix: of the section's keys.
        version: where the section names none.
        offload: the key that sends weights and optimizer to the host.
    """
    found = reader.whole(SECTION, f"{prefix}version") or version
    if found not in {1, 2}:
        raise reader.wrong((SECTION, f"{prefix}version"), "must be 1 or 2", found)
    reader.state("engine", f"fsdp{found}", SECTION)
    for key in (f"{prefix}sharding_strategy", f"{prefix}reshard_after_forward"):
        reader.state("fsdp", reader.word(STRATEGIES, SECTION, key), SECTION, key)
    reader.imply("fsdp", "full-shard", f"{prefix}reshard_after_forward")
    if reader.flag(SECTION, offload):
        reader.state("offload", "optimizer+params", SECTION, offload)
    key = f"{prefix}activation_checkpointing"
    on = reader.flag(SECTION, key)
    if on is not None:
        weight = Weight.STATED if on else Weight.OFF
        reader.state("checkpointing", "full" if on else "none", SECTION, key, weight=weight)


def fsdp_section(config: TrainConfig, *, offload: str) -> dict[str, Any]:
    """The section without prefixes; a mesh elsewhere says hybrid sharding of version 2."""
    reshard: bool | str = config.fsdp != "grad-op"
    if config.engine == "fsdp1":
        reshard = _NAMES[config.fsdp]
    return {
        "version": int(config.engine[-1]),
        "reshard_after_forward": reshard,
        offload: config.offload == "optimizer+params",
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "activation_checkpointing": config.checkpointing != "none",
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": True,
    }
