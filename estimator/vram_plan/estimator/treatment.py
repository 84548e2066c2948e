"""What a configuration decides about the modules of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from vram_plan.estimator.fp8 import Eight
from vram_plan.estimator.methods.base import Method
from vram_plan.estimator.ops.quantized import FourBit


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What a configuration decides about the modules of a model.

    Attributes:
        method: the training method.
        compute_bytes: bytes per element of activations outside autocast (4 for fp32 weights).
        adapter_bytes: bytes per element of weights that the method adds.
        weights_bytes: bytes per element of the base weights as held.
        norm_bytes: the same for norms, biases, embeddings and head, which stay unquantized
            (fp32 after k-bit preparation).
        buffer_bytes: bytes per element of floating-point buffers.
        autocast: ``torch.autocast`` casts the inputs of matrix products to 16 bits.
        half: 16 bits means fp16, not bf16.
        eight: how linear layers cast to 8 bits, None where they do not.
        quantization: of the blocks' linear layers; ``none`` or one of ``choices.QUANTIZATIONS``.
        double_quant: the scales of 4-bit weights are quantized too.
        matmul_bytes: bytes per element inside products with quantized weights.
        attention: ``flash``, ``sdpa``, ``eager`` or ``block-sparse``.
        attention_density: share of the scores that block-sparse attention computes.
        loss: ``hf``, ``fused-ce``, ``chunked`` or ``liger``.
        loss_code: how transformers shifts logits against labels (``loss/loss_utils.py``):
            ``padded`` labels (from 4.49), ``shifted`` logits, copied (4.46 to 4.48), ``rebound``
            (until 4.45: the same, the 16-bit logits gone).
        four_bit: what older libraries do around 4-bit products.
        repeats_heads: keys and values are written out for every query head before flash attention.
        reentrant: recomputation runs inside the checkpoint's own backward function, which holds
            the block's output and its gradient until it is through.
        alternates: selective checkpointing keeps every second matrix product of a block alone.
        compiled: blocks are partitioned by a compiler, which keeps nothing that nobody reads.
        recomputes_core: attention between q, k, v and the context is made again going back.
        keeps_presents: checkpointed blocks hand out keys and values, kept until the loss is there.
        widens_outputs: 16-bit logits are copied to fp32 when the model returns.
        keeps_outputs: the logits that the model returns live until the backward pass is over.
        lora_dropout: probability with which inputs of low-rank pairs are dropped.
        packs_subclasses: bitsandbytes quantizes subclasses of ``torch.nn.Linear`` too.
        tensor: ranks that split heads, feed-forward and vocabulary (tensor parallelism).
        expert: ranks that divide the experts of a sparse layer (expert parallelism).
        expert_tensor: ranks that divide each expert, in Megatron-LM's layers.
        groups_experts: Megatron-LM's experts are one grouped product, not one after the other.
        exchanges_tokens: tokens travel to Megatron-LM's experts; else all ranks' are gathered.
        sequence_parallel: norms and residuals are split over the tensor ranks too.
        fused: kernels that replace written-out operations (``rmsnorm``, ``rope``, ``swiglu``).
        keeps_inputs: linear layers save their input for the backward pass though they are frozen.
        keeps_head_input: the projection to the vocabulary does.
        leaves: gradients of a sparse feed-forward part wait until all of it has gone back.
        training: dropout is on and gradients are recorded.
    """

    method: Method = field(default_factory=Method)
    compute_bytes: int = 2
    adapter_bytes: int = 4
    weights_bytes: int = 2
    norm_bytes: int = 2
    buffer_bytes: int = 2
    autocast: bool = False
    half: bool = False
    eight: Eight | None = None
    quantization: str = "none"
    double_quant: bool = False
    matmul_bytes: int = 2
    attention: str = "flash"
    attention_density: float = 1.0
    loss: str = "hf"
    loss_code: str = "padded"
    table_bytes: int = 0
    stacked_experts: bool = True
    packs_subclasses: bool = False
    four_bit: FourBit = field(default_factory=FourBit)
    repeats_heads: bool = False
    reentrant: bool = False
    widens_outputs: bool = False
    keeps_outputs: bool = False
    keeps_presents: bool = False
    lora_dropout: float = 0.0
    tensor: int = 1
    expert: int = 1
    expert_tensor: int = 1
    groups_experts: bool = True
    exchanges_tokens: bool = False
    sequence_parallel: bool = False
    alternates: bool = False
    compiled: bool = False
    recomputes_core: bool = False
    fused: frozenset[str] = frozenset()
    keeps_inputs: bool = False
    keeps_head_input: bool = False
    leaves: bool = False
    training: bool = True

    @property
    def stream_bytes(self) -> int:
        """Bytes per element of what the embedding hands on; masks and tables take its dtype."""
        return self.held_bytes("embedding")

    def held_bytes(self, kind: str) -> int:
        """Bytes per element of an unquantized base weight of this kind."""
        if kind == "linear":
            return self.weights_bytes
        tables = kind in {"embedding", "position", "head"}
        return (self.table_bytes if tables else 0) or self.norm_bytes
