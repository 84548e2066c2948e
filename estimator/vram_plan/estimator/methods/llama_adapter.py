"""LLaMA-Adapter and its second version (arXiv:2303.16199, 2304.15010) as lit-gpt runs them.

Lightning-AI/litgpt @ 841970e4 ``lit_gpt/{adapter,adapter_v2}.py``: no other library here has them,
so the model's modules are lit-gpt's too (``blocks/litgpt.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vram_plan.estimator.choices import MEGATRON_BLOCKS
from vram_plan.estimator.methods.whole import Frozen
from vram_plan.estimator.ops import sdpa
from vram_plan.estimator.ops.adapters import weight_view
from vram_plan.estimator.ops.elementwise import add, weight_product

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.ops.attention import Heads
    from vram_plan.estimator.tape import Tensor
    from vram_plan.profiles.model import ModelSpec

PROMPT_TOKENS = 10
"""``Config.adapter_prompt_length``."""
START_LAYER = 2
"""``Config.adapter_start_layer``: blocks before it have no prompt."""


def in_litgpt(spec: ModelSpec) -> bool:
    """Whether lit-gpt has the architecture: dense causal decoders with rotary positions."""
    plain = spec.is_causal and not spec.is_encoder_decoder and not spec.num_experts
    return plain and not spec.is_latent and spec.position_embedding_type == "rope"


@dataclass(frozen=True, slots=True)
class LlamaAdapter(Frozen):
    """Each block from the third on attends to learned tokens too, through a gate for every head."""

    def check(self, config: TrainConfig) -> None:
        """lit-gpt has dense causal decoders with rotary positions, and no tensor ranks."""
        if config.engine in MEGATRON_BLOCKS:
            raise ValueError(
                f"--method {config.method} with --engine {config.engine}: lit-gpt runs under ddp "
                "and fsdp1; choose --engine fsdp1"
            )
        if not in_litgpt(config.model):
            raise ValueError(
                f"--method {config.method}: lit-gpt has no {config.model.model_type} models; "
                "choose --method lora"
            )

    def layer_key(self, layer: int) -> int:
        """The first blocks have no prompt."""
        return int(layer >= START_LAYER)

    def prompted(self, f: Forward, q: Tensor, out: Tensor, heads: Heads) -> Tensor:
        """``y + gating_factor * ay``, the second one the attention of q to the prompt.

        Keys and values of the prompt are made once, without gradients, by the validation before the
        first step, and kept (``adapter_kv_cache``): the prompt gets no gradient, its gate does.
        """
        if f.layer < START_LAYER:
            return out
        hidden, key_value = f.spec.hidden_size, 2 * f.spec.kv_dim
        f.added_param("self_attn.adapter_wte.weight", (PROMPT_TOKENS, hidden))
        gate = f.added_param("self_attn.gating_factor", (1, 1, heads.heads, 1))
        cached = f.t.new(PROMPT_TOKENS * (f.spec.query_dim + key_value), q.itemsize)
        width = PROMPT_TOKENS * heads.heads * heads.head_dim
        mask = f.t.new(f.seq * PROMPT_TOKENS, 1)
        shape = replace(heads, kv_seq=PROMPT_TOKENS)
        beside = sdpa.sdpa(f.t, q, cached.view(width), cached.view(width), shape, mask=mask)
        return add(f.t, out, weight_product(f.t, beside, gate))


@dataclass(frozen=True, slots=True)
class LlamaAdapterV2(LlamaAdapter):
    """Every linear layer, the head's too, has a learned bias and scale; norms learn."""

    def trains(self, name: str, kind: str, layer: int) -> bool:
        """``adapter_filter``: of the model's own weights those of the norms."""
        return kind == "norm"

    def linear(
        self,
        f: Forward,
        name: str,
        x: Tensor,
        shape: tuple[int, int],
        base: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``adapter_scale * (linear(x) + adapter_bias)``."""
        return self.scaled(f, name, base(x), shape[1])

    def scaled(self, f: Forward, name: str, result: Tensor, outputs: int) -> Tensor:
        """The same of what a linear layer made."""
        bias = f.added_param(f"{name}.adapter_bias", (outputs,))
        scale = f.added_param(f"{name}.adapter_scale", (outputs,))
        offset = add(f.t, result.moved(), weight_view(f.t, bias))
        return weight_product(f.t, offset, scale)
