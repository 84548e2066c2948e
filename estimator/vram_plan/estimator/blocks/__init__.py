"""Compositions: the forward pass of each architecture, written on the tape's operators."""
