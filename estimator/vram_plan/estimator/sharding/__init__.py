"""Engines: how weights, gradients and optimizer states are held and moved on one rank."""
