"""The closed form: memory of a training step as arithmetic on a ledger of tensors."""
