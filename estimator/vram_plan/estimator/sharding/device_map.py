"""Blocks spread over GPUs (``device_map``): each GPU holds its blocks with all their states.

accelerate 1.15.0 ``utils/modeling.py`` ``infer_auto_device_map`` with ``balanced`` memory. One
process runs the blocks one after another, so one micro-batch is in flight and no buffer is needed
beside the blocks' own gradients and states; `pipeline` divides the blocks.
"""

from __future__ import annotations

from vram_plan.estimator.sharding.replicated import entries, keeps_gradients

__all__ = ["entries", "keeps_gradients"]
