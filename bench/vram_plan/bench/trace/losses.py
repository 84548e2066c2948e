"""Losses that do not keep all logits: a fused kernel, chunks, and chunks fused with the head.

Triton kernels cannot run on fake tensors (nor on a CPU); what they allocate around them can.
Sources: linkedin/Liger-Kernel 0.6.2 ``ops/cross_entropy.py`` and
``ops/fused_linear_cross_entropy.py``; huggingface/trl ``trainer/sft_trainer.py``
(``_chunked_cross_entropy_loss``, 256 tokens).
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vram_plan.bench.trace.roles import made_for

__all__ = ["install_loss", "last_before_loss", "unwrapped"]

_CHUNK_TOKENS = 256


def unwrapped(model: Any) -> Any:
    """The transformers model below PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def last_before_loss(model: Any, loss: str) -> Any:
    """The module after which the loss begins."""
    base = unwrapped(model)
    if loss in ("chunked", "liger"):
        return base.base_model
    return base.get_output_embeddings()


def install_loss(model: Any, loss: str) -> None:
    """Give a transformers model another loss; ``hf`` leaves it alone."""
    if loss == "hf":
        return
    if loss == "fused-ce":
        plain = model.forward

        def with_fused_kernel(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _fused_kernel():
                return plain(*args, **kwargs)

        model.forward = types.MethodType(with_fused_kernel, model)
        return
    if model.config.is_encoder_decoder or model.base_model is model:
        raise ValueError(f"loss {loss} is for decoder-only language models: choose loss hf")
    compute = _liger_loss if loss == "liger" else _chunked_loss

    def forward(self: Any, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        kwargs.pop("use_cache", None)
        hidden = self.base_model(input_ids=input_ids, use_cache=False, **kwargs)[0]
        return CausalLMOutputWithPast(loss=compute(self, hidden, labels))

    model.forward = types.MethodType(forward, model)


class _FusedCrossEntropy(torch.autograd.Function):
    """LigerCrossEntropyFunction: the gradient overwrites the logits during forward."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses = torch.zeros(logits.shape[0], dtype=logits.dtype, device=logits.device)
        mask = target != -100
        mask.sum()
        del mask
        ctx.save_for_backward(logits.detach())
        return torch.sum(losses)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (logits,) = ctx.saved_tensors
        return logits, None


@contextmanager
def _fused_kernel() -> Iterator[None]:
    apply: Any = _FusedCrossEntropy.apply

    def cross_entropy(logits: torch.Tensor, target: torch.Tensor, **_: Any) -> Any:
        return apply(logits, target)

    with mock.patch.object(functional, "cross_entropy", cross_entropy):
        yield


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """LigerFusedLinearCrossEntropyFunction: all gradients are made during forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        tokens, width = hidden.shape
        rows = _liger_chunk(tokens, weight.shape[0], width)
        grad_input = torch.zeros_like(hidden)
        with made_for("gradients"):
            grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
            grad_bias = torch.zeros_like(bias) if bias is not None else None
        losses = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
        mask = target != -100
        mask.sum()
        for start in range(0, tokens, rows):
            part = hidden[start : start + rows]
            logits = part @ weight.t()
            if bias is not None:
                logits = logits + bias
            grad_input[start : start + rows] = logits @ weight
            if grad_weight is not None:
                grad_weight += torch.mm(logits.t(), part).float()
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0)
        ctx.save_for_backward(grad_input, grad_weight, grad_bias)
        return torch.sum(losses)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        grad_input, grad_weight, grad_bias = ctx.saved_tensors
        return grad_input, grad_weight, None, grad_bias


def _liger_chunk(tokens: int, vocabulary: int, width: int) -> int:
    """Rows of a chunk: the next power of two of tokens · width / vocabulary."""
    rows = -(-tokens // -(-vocabulary // width))
    return 1 << (rows - 1).bit_length()


def _shifted(labels: torch.Tensor) -> torch.Tensor:
    return functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous().view(-1)


def _liger_loss(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> Any:
    head = model.get_output_embeddings()
    flat = hidden.view(-1, hidden.shape[-1])
    apply: Any = _FusedLinearCrossEntropy.apply
    return apply(flat, head.weight, _shifted(labels), head.bias)


def _chunk(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """One chunk's summed loss, correct predictions and entropy, all in fp32."""
    logits = hidden.float() @ weight.float().t()
    if bias is not None:
        logits = logits + bias.float()
    log_p = functional.log_softmax(logits, dim=-1)
    loss = functional.nll_loss(log_p, labels, ignore_index=-100, reduction="sum")
    valid = labels != -100
    correct = ((logits.argmax(dim=-1) == labels) & valid).sum().float()
    entropy = (-(log_p.exp() * log_p).sum(dim=-1) * valid).sum()
    return loss, correct, entropy


def _chunked_loss(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    head = model.get_output_embeddings()
    hidden = hidden[..., :-1, :].reshape(-1, hidden.shape[-1])
    labels = labels[..., 1:].reshape(-1)
    valid = labels != -100
    count = valid.sum()
    order = valid.to(torch.int8).argsort(descending=True, stable=True)
    hidden, labels = hidden[order], labels[order]
    total = hidden.new_zeros((), dtype=torch.float32)
    correct, entropy = torch.zeros_like(total), torch.zeros_like(total)
    for start in range(0, labels.shape[0], _CHUNK_TOKENS):
        rows = slice(start, start + _CHUNK_TOKENS)
        parts = checkpoint(
            _chunk, hidden[rows], head.weight, head.bias, labels[rows], use_reentrant=False
        )
        total, correct, entropy = total + parts[0], correct + parts[1], entropy + parts[2]
    return total / count
