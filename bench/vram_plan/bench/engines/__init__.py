"""The loops of a real run: PyTorch's own, its sharded ones, DeepSpeed's, Hugging Face's Trainer."""
