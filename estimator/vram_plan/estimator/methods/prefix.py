"""Learned keys and values in front of every attention: prefix tuning as PEFT 0.21.2 runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.places import Placed, check_positions, is_cross
from vram_plan.estimator.ops.activations import activation
from vram_plan.estimator.ops.adapters import cut_prefixes
from vram_plan.estimator.ops.elementwise import cast, concat, relayout
from vram_plan.estimator.ops.embedding import embedding
from vram_plan.estimator.tape import Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward
    from vram_plan.profiles.model import ModelSpec

UNSUPPORTED = {
    "albert": "its classes ignore past keys and values",
    "deberta": "its classes take no past keys and values",
    "deberta-v2": "its classes take no past keys and values",
    "deepseek_v2": "PEFT gives latent attention keys of the wrong width",
    "deepseek_v3": "PEFT gives latent attention keys of the wrong width",
    "distilbert": "PEFT does not find its width",
    "mpt": "PEFT does not find its number of heads",
}
"""``model_type`` → why ``PrefixTuningConfig`` fails (PEFT 0.21.2 with transformers 5.23.0)."""

NARROW_QUERIES = frozenset(
    {
        *("bart", "cohere", "gpt2", "gpt_bigcode", "gpt_neo", "gptj"),
        *("marian", "mbart", "olmo", "olmo2", "opt", "pegasus"),
    }
)
"""Queries that reach the kernel as autocast's products made them, in 16 bits.

The others' rotary tables are fp32 under autocast and their queries with them, so that transformers
5.23.0 casts queries, keys and values alike (``modeling_flash_attention_utils.py``).
"""


def prefix_width(spec: ModelSpec) -> int:
    """Width of the keys of one virtual token (``_prepare_prompt_learning_config`` of PEFT).

    Falcon's cache holds a key for every query head, however few are projected.
    """
    return spec.hidden_size if spec.model_type == "falcon" else spec.kv_dim


def prefix_problem(spec: ModelSpec) -> str:
    """Why prefix tuning does not run on a model; empty when it does."""
    reason = UNSUPPORTED.get(spec.model_type, "")
    single = spec.num_key_value_heads == 1 and not spec.new_decoder_architecture
    if spec.model_type == "falcon" and single:
        return "PEFT does not know that its heads share one key"
    if not reason and spec.is_encoder_decoder:
        if spec.kv_dim != spec.hidden_size:
            return "PEFT takes its keys to be as wide as its blocks"
        if (spec.num_decoder_layers or 0) > spec.num_hidden_layers:
            return "PEFT makes prefixes for as many blocks as its encoder has, which are too few"
    return reason


def _meets_wide_keys(config: TrainConfig) -> bool:
    """Whether queries stay in 16 bits while a cache in the model's fp32 widens the keys.

    Quantized linears hand on their input's dtype, so queries are fp32 there.
    """
    plain = config.autocast and config.weights_dtype == "fp32" and config.quantization == "none"
    return plain and config.model.model_type in NARROW_QUERIES


@dataclass(frozen=True, slots=True)
class Prefix(Placed):
    """Prefix tuning (arXiv:2101.00190), and P-tuning v2 (arXiv:2110.07602), which is the same.

    ``PeftModel.get_prompt`` (``peft/peft_model.py``): a table [tokens, layers · 2 · width] is
    looked up for every sequence, cast to the model's dtype and cut into layers, whose caches copy
    their share; attention concatenates it with its own keys and values. An encoder-decoder has
    prefixes in the decoder's self-attention.

    Attributes:
        tokens: prefix length.
        projection: hidden size of an encoder (linear, tanh, linear) in front of the table, 0
            without one (``prefix_projection``).
    """

    tokens: int
    projection: int = 0

    @property
    def prefix_tokens(self) -> int:
        """Keys and values prepended in every attention."""
        return self.tokens

    def check(self, config: TrainConfig) -> None:
        """PEFT refuses checkpointing, and some models do not take past keys."""
        model, method = config.model, config.method
        reason = prefix_problem(model)
        if reason:
            raise ValueError(f"--method {method}: {model.name}: {reason}; choose --method lora")
        check_positions(config, self.tokens, config.seq_len)
        if config.attention == "flash" and _meets_wide_keys(config):
            raise ValueError(
                f"--method {method} with --attention flash: under autocast the prefix makes fp32 "
                f"keys beside {model.name}'s 16-bit queries, and flash attention wants one dtype "
                "(flash_api.cpp); choose --attention sdpa or --weights-dtype bf16"
            )
        if config.checkpointing != "none":
            raise ValueError(
                f"--method {method} with --checkpointing {config.checkpointing}: PEFT's prefixes "
                "are a cache, which checkpointing cannot use; choose --checkpointing none"
            )

    def begin(self, f: Forward, kind: str) -> None:
        """All prefixes are made before the first segment; a block finds its own in the cache."""
        inner = f.spec.is_encoder_decoder and f.stack == "decoder"
        if kind == "embedding" and not inner:
            self._make_all(f)
        elif kind == "layer" and f.stack == "decoder":
            f.late.take(f.t, self._numel(f), f.how.compute_bytes)

    def keys_values(self, f: Forward, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate the layer's prefix with its keys and values."""
        if f.stack == "encoder":
            return k, v
        if is_cross(f):  # the cache copies them, beside its none
            k, v = concat(f.t, (k,)), concat(f.t, (relayout(f.t, v),))
            f.cache |= {"cross keys": k, "cross values": v}
            return k, v
        first, second = self.prefix(f)
        k = concat(f.t, (first, k))
        v = concat(f.t, (second, relayout(f.t, v)))
        # The cache holds both until the model's output is let go (transformers 5.23.0
        # cache_utils.py DynamicLayer.update).
        f.cache |= {"past keys": k, "past values": v}
        return k, v

    def prefix(self, f: Forward) -> tuple[Tensor, Tensor]:
        """Keys and values of the virtual tokens in this layer's cache, in the model's dtype."""
        return f.late.move_out()

    def _numel(self, f: Forward) -> int:
        return f.batch * self.tokens * prefix_width(f.spec) // f.how.tensor

    def _make_all(self, f: Forward) -> None:
        """The table has prefixes for as many layers as the encoder, where there is one."""
        spec, width = f.spec, prefix_width(f.spec)
        layers, twice = spec.num_hidden_layers, spec.is_encoder_decoder
        past = cast(f.t, self._encoded(f, width, layers * 2 * width), f.how.compute_bytes).moved()
        numel = self._numel(f)
        pieces, f.late.maker = cut_prefixes(f.t, past, numel, f.late.arrived, twice=twice)
        read = 2 * (spec.num_decoder_layers or layers)
        for piece in pieces[:read]:
            f.frame.hold(piece.storage)
        f.cache |= {f"prefix {i}": piece for i, piece in enumerate(pieces[read:])}

    def _encoded(self, f: Forward, width: int, outputs: int) -> Tensor:
        ids = Tensor(f.batch * self.tokens, 8, None)
        name = "prompt_encoder"
        if not self.projection:
            table = f.added_param(f"{name}.embedding.weight", (self.tokens, outputs))
            return embedding(f.t, ids, table, outputs)
        width = self.input_width(f, width)
        table = f.added_param(f"{name}.embedding.weight", (self.tokens, width))
        x = embedding(f.t, ids, table, width)
        x = f.added_linear(f"{name}.transform.0", x, (width, self.projection), bias=True)
        x = activation(f.t, x, "tanh")
        return f.added_linear(f"{name}.transform.2", x, (self.projection, outputs), bias=True)

    def input_width(self, f: Forward, width: int) -> int:
        """Width of the vectors an encoder reads: PEFT takes that of the keys."""
        return width
