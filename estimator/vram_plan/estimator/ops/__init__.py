"""Operators of a block: what each allocates, saves for the backward pass and frees."""
