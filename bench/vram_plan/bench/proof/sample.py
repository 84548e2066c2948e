"""The sample: fixed quotas per family × method × precision, everything else drawn by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from vram_plan.bench.proof.setups import SETUPS, lengths, model_of, sharding_options
from vram_plan.bench.proof.shapes import GROUPS
from vram_plan.estimator import choices
from vram_plan.estimator.choices import (
    EAGER_ONLY,
    WHOLE_MODEL,
    WITHOUT_CHECKPOINTING,
    WITHOUT_FLASH,
    WITHOUT_SDPA,
)

__all__ = ["ATTEMPTS", "METHODS", "PRECISIONS", "Candidate", "Slot", "draw", "slots"]

METHODS = (
    "full",
    "freeze",
    "bitfit",
    "lora",
    "rslora",
    "dora",
    "adalora",
    "qlora",
    "ia3",
    "prompt",
    "prefix",
    "p-tuning",
    "p-tuning-v2",
)
"""Those of the plan's methods that a library runs which the tracer has."""
PRECISIONS: dict[str, tuple[str, str]] = {
    "bf16": ("bf16", "bf16"),
    "fp16": ("fp16", "fp16"),
    "fp32": ("fp32", "fp32"),
    "bf16-autocast": ("bf16", "fp32"),
    "fp16-autocast": ("fp16", "fp32"),
}
"""Regime → precision of matrix products, dtype of the weights."""
OPTIMIZERS = tuple(name for name in choices.OPTIMIZERS if name != "one-bit-adam")
"""DeepSpeed's own aside."""
ATTEMPTS = 12
"""Draws for one place of the sample before its cell counts as refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One place in the sample.

    Attributes:
        seed: of the whole sample.
        number: of the place.
        family: a group of architectures.
        method: what is trained.
        precision: a key of ``PRECISIONS``.
        sharding: what shares the work, and ``size``: ``small`` or ``full`` (a published model).
    """

    seed: int
    number: int
    family: str
    method: str
    precision: str
    sharding: str = "torch"
    size: str = "small"

    @property
    def stratum(self) -> str:
        """The cell the place belongs to."""
        return f"{self.family} {self.method} {self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A configuration drawn for a place: the model's fields and the plan's options."""

    model: dict[str, Any]
    options: dict[str, Any]


def cells() -> list[tuple[str, str, str]]:
    """Every family × method × precision."""
    return [(f, m, p) for f in GROUPS for m in METHODS for p in PRECISIONS]


def slots(seed: int, count: int) -> list[Slot]:
    """``count`` places: every cell has as many as any other, give or take one.

    Which cells have the one more is drawn so that families, methods and precisions stay level.
    """
    random = Random(f"{seed}")
    deck: list[tuple[str, str, str]] = []
    while len(deck) < count:
        every = cells()
        random.shuffle(every)
        deck += _level(every)
    random = Random(f"{seed}/setups")  # a larger sample begins with the smaller one
    setups: list[tuple[str, str]] = []
    while len(setups) < count:
        setups += random.sample(SETUPS, len(SETUPS))
    return [
        Slot(seed=seed, number=i, family=f, method=m, precision=p, sharding=shared, size=size)
        for i, ((f, m, p), (shared, size)) in enumerate(zip(deck[:count], setups, strict=False))
    ]


def _level(every: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The cells in an order whose every beginning has each family, method, precision as often."""
    used: dict[str, int] = {}
    ordered = []
    while every:
        best = min(every, key=lambda cell: sum(used.get(part, 0) for part in cell))
        every.remove(best)
        ordered.append(best)
        for part in best:
            used[part] = used.get(part, 0) + 1
    return ordered


def draw(slot: Slot, attempt: int) -> Candidate:
    """The ``attempt``-th configuration for a place."""
    random = Random(f"{slot.seed}/{slot.number}/{slot.stratum}/{attempt}")
    kind = _deck(slot.seed, slot.family)[(slot.number + attempt) % len(GROUPS[slot.family])]
    model = model_of(kind, slot.size, random)
    fitting = lengths(model, slot.size)
    compute, weights = PRECISIONS[slot.precision]
    options: dict[str, Any] = {
        "method": slot.method,
        "precision": compute,
        "weights_dtype": weights,
        "micro_batch": random.choice((1, 2, 3, 4)),
        "seq_len": random.choice(fitting),
        "grad_accum": random.choice((1, 1, 1, 2)),
        "attention": _attention(kind, compute, random),
        "loss": random.choice(("hf", "hf", "fused-ce", "chunked", "liger")),
        "optimizer": random.choice(OPTIMIZERS),
        "checkpointing": _checkpointing(kind, random),
    }
    if slot.family == "seq2seq":
        options["source_len"] = random.choice(fitting)
    if slot.sharding == "torch" and options["checkpointing"] == "none" and random.random() < 0.2:
        options["offload"] = "activations"
    chosen = _of_method(slot.method, random)
    if weights == "bf16" and "adapter_dtype" in chosen:
        # PEFT gives adapters fp32 or, without its autocast, the base's type
        chosen["adapter_dtype"] = random.choice(("fp32", "fp32", "bf16"))
    chosen |= sharding_options(slot.sharding, slot.number, random)
    if "zero" in chosen:  # DeepSpeed casts everything to one type
        options["weights_dtype"] = chosen["adapter_dtype"] = compute
    return Candidate(model=model, options=options | chosen)


@cache
def _deck(seed: int, family: str) -> tuple[str, ...]:
    kinds = list(GROUPS[family])
    Random(f"{seed}/{family}").shuffle(kinds)
    return tuple(kinds)


def _attention(kind: str, compute: str, random: Random) -> str:
    kernels = ["eager", "sdpa", "flash"]
    if kind in EAGER_ONLY:
        return "eager"
    if kind in WITHOUT_SDPA:
        kernels.remove("sdpa")
    if kind in WITHOUT_FLASH or compute == "fp32":
        kernels.remove("flash")
    return random.choice(kernels)


def _checkpointing(kind: str, random: Random) -> str:
    kinds = ("none", "none", "none", "full", "full", "full", "selective", "offload")
    return "none" if kind in WITHOUT_CHECKPOINTING else random.choice(kinds)


def _of_method(method: str, random: Random) -> dict[str, Any]:
    """Sizes of the method, and quantization of a frozen base."""
    if method == "freeze":
        return {"freeze_layers": random.choice((0, 1))}
    if method in WHOLE_MODEL:
        return {}
    chosen: dict[str, Any] = {"adapter_dtype": "fp32"}
    if method in {"lora", "rslora", "dora", "adalora", "qlora"}:
        chosen["lora_rank"] = random.choice((4, 8, 16, 64))
        chosen["lora_targets"] = random.choice(("all-linear", "all-linear", "attention"))
    if method in {"prompt", "prefix", "p-tuning", "p-tuning-v2"}:
        chosen["virtual_tokens"] = random.choice((8, 20, 30))
    if method == "p-tuning":
        chosen["prompt_encoder"] = random.choice(("mlp", "lstm"))
        chosen["prompt_encoder_size"] = random.choice((64, 128))
    packed = ("nf4", "fp4") if method == "qlora" else ("none", "none", "nf4", "fp4", "int8")
    chosen["quantization"] = random.choice(packed)
    if chosen["quantization"] in {"nf4", "fp4"}:
        chosen["double_quant"] = random.random() < 0.5
    if chosen["quantization"] != "none":
        chosen["kbit_preparation"] = random.random() < 0.5
    return chosen
