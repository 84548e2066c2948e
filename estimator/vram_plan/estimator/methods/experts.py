"""Low-rank pairs inside stacked expert weights, as PEFT 0.21.2 puts them there.

Transformers 5 holds the experts of a sparse block in two tensors, which are no linear layers. For
some architectures PEFT translates the names they had before (``all-linear`` included) into these
tensors and the router's, and wraps them (``peft/utils/transformers_weight_conversion.py``): every
forward pass writes out weight + B · A, as large as the weight, and keeps it for the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.methods.targets import ALL_LINEAR, ATTENTION
from vram_plan.estimator.ops.adapters import folded, weight_cast
from vram_plan.estimator.ops.linear import AutocastWeight
from vram_plan.estimator.tape import Param, Tape, Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward

Factors = tuple[Tensor, Tensor]
"""B and A of a pair, as a weight's product with them needs them."""
_GATED = {
    "gate": "gate.weight",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "down_proj": "down_proj",
}
_NUMBERED = {
    "gate": "gate.weight",
    "w1": "gate_up_proj",
    "w3": "gate_up_proj",
    "w2": "down_proj",
}
FORMER_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _NUMBERED),
    **dict.fromkeys(
        (
            "deepseek_v2",
            "deepseek_v3",
            "dots1",
            "ernie4_5_moe",
            "exaone_moe",
            "flex_olmo",
            "glm4_moe",
            "hunyuan_v1_moe",
            "longcat_flash",
            "olmoe",
            "qwen3_moe",
            "qwen3_next",
            "solar_open",
        ),
        _GATED,
    ),
}
"""``model_type`` → former name of a projection → the weight it is part of now.

PEFT 0.21.2 ``_MOE_TARGET_MODULE_MAPPING`` for the model types that transformers 5.23.0
``conversion_mapping.py`` maps to ``mixtral`` and ``qwen2_moe`` (which itself is not among them).
"""


class Computed(AutocastWeight):
    """A weight that was computed: its gradient goes on to what it was computed from."""

    __slots__ = ()
    gradient = "temporaries"

    def __init__(
        self, weight: Param, copy: Tensor, tape: Tape, factors: tuple[Tensor, ...] = ()
    ) -> None:
        super().__init__(weight, copy, tape)
        self.factors = factors
        self.trainable = copy.node is not None
        self.shape = weight.shape


def is_translated(model_type: str, name: str) -> bool:
    """Whether PEFT takes a linear layer's name for an expert's, and so leaves the layer alone."""
    return name.rpartition(".")[2] in FORMER_NAMES.get(model_type, ())


def targeted(model_type: str, targets: str) -> frozenset[str]:
    """The stacked weights and the router's that get pairs.

    Raises:
        ValueError: if one half of a fused weight is named without the other.
    """
    known = FORMER_NAMES.get(model_type)
    if known is None or targets == ATTENTION:
        return frozenset()
    if targets == ALL_LINEAR:
        return frozenset(known.values())
    named = [name for target in targets.split(",") if (name := _former(target, known))]
    halves = [name for name in known if known[name] == "gate_up_proj"]
    given = [name for name in halves if name in named]
    if len(given) == 1:
        missing = next(name for name in halves if name not in given)
        raise ValueError(
            f"--lora-targets: {given[0]} and {missing} are one weight in {model_type} models; "
            "name both"
        )
    return frozenset(known[name] for name in named)


def _former(target: str, known: dict[str, str]) -> str:
    """The former name that a target ends in, or nothing."""
    return next((name for name in known if f".{target.strip()}".endswith(f".{name}")), "")


def pair_params(f: Forward, name: str, shape: tuple[int, ...], rank: int) -> tuple[Param, Param]:
    """A [rank · experts, inputs] and B [outputs, rank · experts] of a weight."""
    outputs, inputs = shape[-2:]
    rank *= _stack(shape) * (2 if name.endswith("gate_up_proj") else 1)
    a = f.added_param(f"{name}.lora_A.weight", (rank, inputs))
    return a, f.added_param(f"{name}.lora_B.weight", (outputs, rank))


def factors_of(f: Forward, name: str, weight: tuple[tuple[int, ...], int], rank: int) -> Factors:
    """B and A as ``get_delta_factors`` gives them, in the type of the ``weight`` (shape, bytes).

    B's view [experts, outputs, rank] of [outputs, rank · experts] is turned, so its gradient is
    written out once more before it is the parameter's. A router's are as they are.
    """
    t, (shape, itemsize) = f.t, weight
    a, b = pair_params(f, name, shape, rank)
    stack = _stack(shape)
    itemsize = itemsize if stack > 1 else a.itemsize
    left = weight_cast(t, b, itemsize, turned=stack > 1)
    right = weight_cast(t, a, itemsize)
    if t.work is not None:  # ``register_parametrization`` tries the product first
        product = shape[-2], a.shape[0] // stack, shape[-1]
        t.work.hidden_product(product, itemsize, batch=stack)
    return left, right


def paired(f: Forward, weight: Param, factors: Factors) -> Param:
    """The weight plus B · A: a stack [experts, outputs, inputs] or a router's [experts, inputs].

    ``peft/tuners/lora/layer.py`` ``ParamWrapper``: one ``baddbmm`` adds the product of a stack's. A
    router's are multiplied as they are and the product is cast.
    """
    left, right = factors
    return Computed(weight, folded(f.t, weight, left, right), f.t, (left, right))


def _stack(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else 1
