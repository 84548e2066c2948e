"""A forward pass through one segment of a model: the tape plus what the configuration decides."""

from __future__ import annotations

from functools import partial
from math import prod

from vram_plan.estimator.early import Returned
from vram_plan.estimator.eight import casts, eight_product
from vram_plan.estimator.frames import Frame
from vram_plan.estimator.kernels import attend
from vram_plan.estimator.late import Late
from vram_plan.estimator.ops import activations, elementwise, fused, norm
from vram_plan.estimator.ops.attention import Heads
from vram_plan.estimator.ops.embedding import LeafVariable, embedding
from vram_plan.estimator.ops.linear import AutocastWeight, cached_cast, linear
from vram_plan.estimator.ops.quantized import dequantized_linear, int8_linear
from vram_plan.estimator.quantization import packs
from vram_plan.estimator.tape import Param, Tape, Tensor
from vram_plan.estimator.tied import waits_as_view
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.model import ModelSpec

LOW_BYTES = 2


class Forward:
    """What a composition calls: modules by name, with the treatment applied to each."""

    __slots__ = (
        "batch",
        "cache",
        "checkpointed",
        "frame",
        "held",
        "how",
        "input_gradients",
        "keeps_gradients",
        "late",
        "layer",
        "params",
        "prefix",
        "produced",
        "repeats",
        "returned",
        "seq",
        "source_seq",
        "spec",
        "stack",
        "t",
    )

    def __init__(
        self, spec: ModelSpec, how: Treatment, *, batch: int, seq: int, layer: int = -1
    ) -> None:
        self.spec = spec
        self.how = how
        self.batch = batch
        self.seq = seq
        self.source_seq = 0
        self.stack = "decoder"
        self.checkpointed = False
        self.input_gradients = False
        self.repeats = False
        self.layer = layer
        self.prefix = ""
        self.t = Tape(training=how.training)
        self.params: dict[str, Param] = {}
        self.keeps_gradients = True
        self.cache: dict[str, Tensor] = {}
        self.produced: dict[str, Tensor] = {}
        self.held: Tensor | None = None
        self.late = Late()
        self.frame = Frame()
        self.returned = Returned()

    @property
    def tokens(self) -> int:
        """Tokens on this rank: batch · seq."""
        return self.batch * self.seq

    def param(self, name: str, shape: int | tuple[int, ...], kind: str) -> Param:
        """The base weight ``name`` (made on first use, the same afterwards)."""
        found = self.params.get(name)
        if found is None:
            how = self.how
            dims = (shape,) if isinstance(shape, int) else shape
            packed = kind == "linear" and packs(self.spec, how, self.layer, name)
            beside = kind == "linear" and how.quantization != "none" and not packed
            found = self.params[name] = Param(
                name=name,
                numel=prod(dims),
                shape=dims,
                itemsize=how.held_bytes("norm" if beside else kind),
                trainable=how.training and how.method.trains(name, kind, self.layer),
                accumulates=not self.keeps_gradients,
                packed=packed,
            )
        return found

    def added_param(self, name: str, shape: tuple[int, ...], *, trainable: bool = True) -> Param:
        """A weight that the training method adds."""
        found = self.params.get(name)
        if found is None:
            found = self.params[name] = Param(
                name=name,
                numel=prod(shape),
                shape=shape,
                itemsize=self.how.adapter_bytes,
                trainable=trainable and self.how.training,
                accumulates=not self.keeps_gradients or self.how.method.regularizes(self, name),
                added=True,
            )
        return found

    def added_linear(
        self, name: str, x: Tensor, shape: tuple[int, int], *, bias: bool = False
    ) -> Tensor:
        """A linear layer [inputs, outputs] that the training method adds."""
        inputs, outputs = shape
        weight = self.added_param(f"{name}.weight", (outputs, inputs))
        offset = self.added_param(f"{name}.bias", (outputs,)) if bias else None
        return self.product(x, weight, offset, outputs)

    def linear(
        self, name: str, x: Tensor, shape: tuple[int, int], *, bias: bool = False, split: str = ""
    ) -> Tensor:
        """A linear layer [inputs, outputs] under its module name.

        ``split``: tensor parallelism cuts it by ``column`` (outputs) or ``row`` (inputs; x too).
        """
        inputs, outputs = shape
        if split == "column":
            outputs //= self.how.tensor
        elif split == "row":
            inputs //= self.how.tensor
        base = partial(self.base_linear, name, (inputs, outputs), bias)
        return self.how.method.linear(self, name, x, (inputs, outputs), base)

    def base_linear(self, name: str, shape: tuple[int, int], bias: bool, x: Tensor) -> Tensor:
        """A linear layer of the base model as the method leaves it."""
        inputs, outputs = shape
        weight = self.param(f"{name}.weight", (outputs, inputs), "linear")
        offset = self.param(f"{name}.bias", outputs, "bias") if bias else None
        if weight.packed:
            return self.packed_product(x, weight, offset, outputs)
        return self.product(x, weight, offset, outputs)

    def packed_product(
        self, x: Tensor, weight: Param, offset: Param | None, outputs: int
    ) -> Tensor:
        """The product with a quantized weight, in 16 bits, cast back to the input's dtype."""
        how, itemsize = self.how, x.itemsize
        eight = how.quantization == "int8"
        if offset is not None:  # cast for good at its first use (bitsandbytes nn/modules.py)
            offset.itemsize = itemsize if eight else how.matmul_bytes
        if eight:
            return int8_linear(self.t, x, weight, outputs, half=how.half)
        x = elementwise.cast(self.t, x, how.matmul_bytes)
        nested, old = how.double_quant, how.four_bit
        out = dequantized_linear(self.t, x, weight, outputs, nested=nested, old=old)
        return elementwise.cast(self.t, out, itemsize)

    def product(
        self, x: Tensor, weight: Param, offset: Param | None, outputs: int, *, keeps: bool = False
    ) -> Tensor:
        """``x @ W.T + b``; autocast casts from the last argument to the first, as GCC evaluates."""
        if (eight := self.how.eight) is not None and casts(eight, weight):
            return eight_product(self.t, eight, x, weight, offset, compiled=self.how.compiled)
        if self.how.autocast:
            offset = self.low(offset) if offset else None
            weight = self.low(weight)
            x = elementwise.cast(self.t, x, LOW_BYTES)
        return linear(self.t, x, weight, offset, outputs, keeps=keeps or self.how.keeps_inputs)

    def head_linear(self, x: Tensor, shape: tuple[int, int], *, name: str = "lm_head") -> Tensor:
        """The projection to the vocabulary; its weight may be the token embedding's."""
        inputs, rows = shape
        outputs = -(-rows // self.how.tensor)
        tied = self.spec.tie_word_embeddings
        weight = self.param(f"{'embed_tokens' if tied else name}.weight", (outputs, inputs), "head")
        offset = self.param(f"{name}.bias", outputs, "bias") if self.spec.lm_head_bias else None
        return self.product(x, weight, offset, outputs, keeps=self.how.keeps_head_input)

    def low(self, weight: Param) -> Param:
        """The weight in the compute precision of autocast; a repeated one was cast before."""
        if weight.itemsize == LOW_BYTES:
            return weight
        if self.repeats and weight.trainable:
            return AutocastWeight(weight, Tensor(weight.numel, LOW_BYTES, None), self.t)
        return cached_cast(self.t, weight, LOW_BYTES, self.cache)

    def rms_norm(self, name: str, x: Tensor, width: int) -> Tensor:
        """An RMS norm as LlamaRMSNorm writes it, or a fused kernel."""
        weight = self.param(f"{name}.weight", width, "norm") if self.spec.norm_affine else None
        if self.fuses("rmsnorm"):
            return fused.rms_norm(self.t, x, weight, width)
        return norm.rms_norm(self.t, x, weight, width)

    def fuses(self, kernel: str) -> bool:
        """Whether a fused ``kernel`` replaces written-out operations; ``liger`` has them all."""
        return kernel in self.how.fused or "liger" in self.how.fused

    def rms_norm_wide(self, name: str, x: Tensor, width: int, *, centered: bool = False) -> Tensor:
        """An RMS norm whose weight is applied in fp32 (OLMo 2; ``centered``: Gemma)."""
        weight = self.param(f"{name}.weight", width, "norm")
        return norm.rms_norm_wide(self.t, x, weight, width, centered=centered)

    def rms_norm_mixed(self, name: str, x: Tensor, width: int, *, wide: bool) -> Tensor:
        """An RMS norm that multiplies 16-bit inputs by an fp32 factor (Baichuan, ChatGLM)."""
        weight = self.param(f"{name}.weight", width, "norm")
        return norm.rms_norm_mixed(self.t, x, weight, width, wide=wide)

    def layer_norm_wide(self, name: str, x: Tensor, width: int) -> Tensor:
        """A LayerNorm without bias, written out in fp32 (Cohere); ``width`` elements at once."""
        weight = self.param(f"{name}.weight", width, "norm")
        return norm.layer_norm_wide(self.t, x, weight, width)

    def head_norm(self, name: str, x: Tensor, width: int) -> Tensor:
        """The same over each head, with a weight of all heads' ``width`` together."""
        weight = self.param(f"{name}.weight", width // self.how.tensor, "norm")
        return norm.layer_norm_wide(self.t, x, weight, self.spec.head_dim)

    def layer_norm(self, name: str, x: Tensor, width: int, *, bias: bool = True) -> Tensor:
        """``torch.nn.LayerNorm``; autocast runs it in fp32."""
        weight = self.param(f"{name}.weight", width, "norm") if self.spec.norm_affine else None
        offset = self.param(f"{name}.bias", width, "norm") if weight and bias else None
        if self.how.autocast:
            x = elementwise.cast(self.t, x, elementwise.FP32_BYTES)
        return norm.layer_norm(self.t, x, weight, offset, width)

    def embedding(
        self, name: str, ids: Tensor, rows: int, width: int, *, again: str = ""
    ) -> Tensor:
        """A table of ``rows`` vectors looked up by ``ids``.

        ``again`` says that the table's gradient is there already when the lookup goes back: from
        the ``head`` (tied weights) or from another ``lookup`` (encoder and decoder share a table).
        """
        kind = "position" if "position" in name or "wpe" in name else "embedding"
        table = self.param(f"{name}.weight", (rows, width), kind)
        if not again and name == "embed_tokens" and self.spec.tie_word_embeddings:
            again = "head"
        table.accumulates |= bool(again)
        joins = again == "head" and waits_as_view(self.how, table, self.tokens - self.batch)
        out = embedding(self.t, ids, table, width, joins=joins)
        if self.input_gradients and out.node is None and name.endswith("embed_tokens"):
            out.node = LeafVariable(out.storage)
        return out

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """``a + b``."""
        return elementwise.add(self.t, a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """``a * b``."""
        return elementwise.mul(self.t, a, b)

    def act(self, x: Tensor, name: str = "") -> Tensor:
        """The model's activation function."""
        autocast = self.how.autocast
        return activations.activation(self.t, x, name or self.spec.hidden_act, autocast=autocast)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """Dropout in training."""
        return elementwise.dropout(self.t, x, probability)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, **shape: int | float | bool) -> Tensor:
        """The attention kernel of the configuration on per-rank heads."""
        capped = self.spec.attn_logit_softcapping
        heads = self.heads(**shape)
        out, self.held = attend(self.t, self.how, (q, k, v), heads, capped=capped)
        return out

    def heads(self, **shape: int | float | bool) -> Heads:
        """The shape of an attention call on this rank; ``shape`` overrides the model's."""
        spec = self.spec
        defaults: dict[str, int | float | bool] = {
            "batch": self.batch,
            "seq": self.seq,
            "kv_seq": self.seq + self.how.method.prefix_tokens,
            "heads": spec.num_attention_heads // self.how.tensor,
            "kv_heads": max(1, spec.num_key_value_heads // self.how.tensor),
            "head_dim": spec.head_dim,
            "value_dim": spec.head_dim,
            "dropout": spec.attention_dropout if self.how.training else 0.0,
            "mask_bytes": self.how.stream_bytes,
            "half": self.how.half,
            "autocast": self.how.autocast,
        }
        return Heads(**(defaults | shape))  # type: ignore[arg-type]

    def produce(self, name: str, x: Tensor) -> Tensor:
        """Make ``x`` known under ``name`` to the segments that read or hold it."""
        self.produced[name] = x
        return x

    def sublayer(self, where: str, x: Tensor, entered: Tensor) -> Tensor:
        """Let the method change the output of ``attention`` or ``mlp``."""
        return self.how.method.sublayer(self, where, x, entered)
