"""The evidence: one training step, traced on fake tensors or run on a device."""
