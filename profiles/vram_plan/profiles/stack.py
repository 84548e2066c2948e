"""Library versions of a run; what each of them does to memory is in `switches`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from vram_plan.profiles.names import suggest

REFERENCE = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "deepspeed": "0.19.8",
}
"""The versions the estimator was traced with."""
LOOPS = (
    "transformers",
    "litgpt",
    "torchtune",
    "torchtitan",
    "fms-acceleration",
    "fsdp-qlora",
    "llm-foundry",
)
"""Training loops with memory habits of their own; ``transformers`` is Hugging Face's Trainer."""
_LOOP_OF = {
    "hf-trainer": "transformers",
    "trl": "transformers",
    "ms-swift": "transformers",
    "fsdp_qlora": "fsdp-qlora",
    "composer": "llm-foundry",
    "fms": "fms-acceleration",
}
"""Other names of training loops, as published."""
_OTHERS = (
    "alloc_conf",
    "auto-gptq",
    "cublas-workspace-config",
    "cuda",
    "deepspeed-kernels",
    "expert-tensor-parallel-size",
    "flash-attn",
    "liger-kernel",
    "loop",
    "megatron-core",
    "moe-grouped-gemm",
    "moe-token-dispatcher-type",
    "ms-swift",
    "nemo-container",
    "python",
    "tp-comm-overlap",
    "transformer-engine",
    "trl",
    "unsloth",
    "xformers",
)
_NAMES = frozenset({*REFERENCE, *LOOPS, *_OTHERS})


@dataclass(frozen=True, slots=True)
class Stack:
    """Versions by library, as given; what is not given is the reference stack's.

    Attributes:
        given: pairs of library and version, in the order they were typed.
    """

    given: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.given:
            if name not in _NAMES:
                near = suggest(name, sorted(_NAMES))
                raise ValueError(f"--stack {name}: unknown library{near}; give torch=2.4.1 or such")
            if not value:
                raise ValueError(f"--stack {name}: a version is missing; give {name}=VERSION")
            if name == "loop" and _LOOP_OF.get(value, value) not in LOOPS:
                raise ValueError(f"--stack loop={value}: choose from {', '.join(LOOPS)}")

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.given)

    def version(self, name: str) -> str:
        """The version of a library; empty where neither given nor part of the reference stack."""
        return dict(self.given).get(name, REFERENCE.get(name, ""))

    def since(self, name: str, version: str) -> bool:
        """Whether a library is at ``version`` or later; one without a version is the newest."""
        found = self.version(name)
        return not found or version_number(found) >= version_number(version)

    @property
    def loop(self) -> str:
        """The training loop: ``loop=NAME``, or the first library given that brings its own."""
        for name, value in self.given:
            if name == "loop":
                return _LOOP_OF.get(value, value)
            if name in LOOPS[1:]:
                return name
        return LOOPS[0]


def parse_stack(text: str) -> Stack:
    """Read ``torch=2.4.1,transformers=4.48.1``, separated by commas or semicolons.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    pairs = []
    for part in re.split(r"[,;]", text):
        if not part.strip():
            continue
        name, sign, value = part.partition("=")
        if not sign:
            raise ValueError(f"--stack {part.strip()}: give LIBRARY=VERSION, separated by commas")
        key = name.strip().lower().replace("_", "-")
        pairs.append(("alloc_conf" if key == "alloc-conf" else key, value.strip()))
    return Stack(tuple(pairs))


@lru_cache(maxsize=256)
def version_number(text: str) -> tuple[int, ...]:
    """The numbers of a version, compared as numbers: 4.9 comes before 4.10; suffixes count not."""
    match = re.match(r"\D*((?:\d+\.)*\d+)", text)
    if match is None:
        raise ValueError(f"--stack: {text!r} is no version; give numbers such as 2.4.1")
    numbers = [int(part) for part in match.group(1).split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
