"""FSDP1 (``FullyShardedDataParallel``)."""

from __future__ import annotations

from vram_plan.estimator.sharding.fsdp2 import entries, keeps_gradients

__all__ = ["entries", "keeps_gradients"]
