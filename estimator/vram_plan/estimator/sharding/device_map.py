"""Layers spread over GPUs (``device_map``): each GPU holds its layers with all their states."""

from __future__ import annotations

from vram_plan.estimator.sharding.replicated import entries, keeps_gradients

__all__ = ["entries", "keeps_gradients"]
