"""Library versions, and what each of them does to memory.

A switch is a function of versions that names the file or thread it was read from. Versions that
were not given are those of the reference stack, under which every formula of the estimator was
traced.
"""

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
    "cuda",
    "deepspeed-kernels",
    "flash-attn",
    "liger-kernel",
    "loop",
    "megatron-core",
    "ms-swift",
    "nemo-container",
    "python",
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


OWN_LOSS = frozenset(
    {"bloom", "dbrx", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "mpt", "opt", "stablelm"}
)
"""Classes that had a cross-entropy of their own, in the logits' dtype, until transformers 4.48."""


def loss_code(stack: Stack, model_type: str) -> str:
    """How logits meet labels: ``padded``, ``shifted``, ``rebound`` or ``narrow``.

    transformers ``loss/loss_utils.py`` ``ForCausalLMLoss``: since 4.49.0 the labels are padded,
    from 4.46.0 to 4.48.3 fp32 logits were copied without each sequence's last. Until 4.45.2
    ``modeling_llama.py`` cast its logits in place of the 16-bit ones (``logits.float()``). The
    classes of `OWN_LOSS` shifted a copy of the logits in their own dtype.
    """
    if stack.since("transformers", "4.49"):
        return "padded"
    if model_type in OWN_LOSS:
        return "narrow"
    return "shifted" if stack.since("transformers", "4.46") else "rebound"


def stacks_experts(stack: Stack) -> bool:
    """Experts are slices of one 3-D weight, which is never quantized; before, linear layers each.

    transformers 5.0 ``integrations/moe.py``; 4.48 ``models/mixtral/modeling_mixtral.py``
    ``MixtralSparseMoeBlock`` held a list of ``MixtralBlockSparseTop2MLP``.
    """
    return stack.since("transformers", "5.0")


def keeps_four_bit_input(stack: Stack) -> bool:
    """``MatMul4Bit`` hangs its input on the node's context.

    bitsandbytes ``autograd/_functions.py``: ``ctx.tensors = (A, B)`` until 0.43.1, ``(None, B)``
    since 0.43.2.
    """
    return not stack.since("bitsandbytes", "0.43.2")


def lora_dropout(stack: Stack) -> float:
    """Dropout before low-rank pairs unless said otherwise.

    PEFT's ``LoraConfig`` has none; Lightning-AI/litgpt ``finetune/lora.py`` @ 841970e4 and the
    recipes of ``config_hub/finetune`` have 0.05.
    """
    return 0.05 if stack.loop == "litgpt" else 0.0


def fuses_adamw(stack: Stack) -> bool:
    """AdamW is PyTorch's fused kernel: torchtune ``recipes/configs`` set ``fused: True``."""
    return stack.loop == "torchtune"


def fuses_all(stack: Stack) -> bool:
    """Kernels for quantized adapters come all together: norm and rotation with the pair's.

    fms-acceleration ``plugins/fused-ops-and-kernels/configs/fast_quantized_peft.yaml`` says so of
    its plugin for quantized models.
    """
    return stack.loop == "fms-acceleration"


def recasts_four_bit(stack: Stack) -> bool:
    """4-bit weights are quantized from fp16, whatever the compute dtype, the head's too.

    lightning ``fabric/plugins/precision/bitsandbytes.py`` ``_quantize_weight`` of 2.1.
    """
    return stack.loop == "litgpt"


_REPEATING = frozenset({"mistral", "mixtral", "phi3", "phimoe", "qwen2", "qwen2_moe", "starcoder2"})


def repeats_heads(stack: Stack, model_type: str, attention: str) -> bool:
    """Attention is given keys and values repeated for every query head.

    transformers until 4.47: ``MistralFlashAttention2.forward`` and those of `_REPEATING` called
    ``repeat_kv``; since the attention interface of 4.48.0 (``integrations/flash_attention.py``)
    the kernel shares heads itself, but for phimoe and qwen2_moe, which followed later. sdpa shares
    them since 4.54 (``integrations/sdpa_attention.py`` ``use_gqa_in_sdpa``). torchtune 0.6.1
    ``modules/attention.py`` always repeats.
    """
    if stack.loop == "torchtune":
        return True
    if attention == "sdpa":
        return not stack.since("transformers", "4.54")
    if model_type in {"phimoe", "qwen2_moe"}:
        return not stack.since("transformers", "4.54")
    return model_type in _REPEATING and not stack.since("transformers", "4.48")


def reentrant_checkpoints(stack: Stack) -> bool:
    """Recomputation runs a backward pass of its own inside each block's.

    transformers ``modeling_utils.py`` ``gradient_checkpointing_enable``: ``use_reentrant`` was True
    by default until 4.57 and is False since 5.0. The other loops use PyTorch's wrapper, which is
    not reentrant.
    """
    if stack.loop not in {"transformers", "fms-acceleration"}:
        return False
    return not stack.since("transformers", "5.0")


def adapter_dtype(stack: Stack, base: str, *, quantized: bool) -> str:
    """The dtype in which adapters are held over a base in ``base``.

    PEFT ``tuners/tuners_utils.py`` ``_cast_adapter_dtype`` (``autocast_adapter_dtype``) makes them
    fp32 since 0.12.0; 0.11.1 ``tuners/lora/layer.py`` gave them the base layer's dtype, unless its
    weights are packed. The loops that write LoRA themselves keep the base's dtype.
    """
    own = stack.loop in {"litgpt", "torchtune", "torchtitan", "fsdp-qlora"}
    if own or (not quantized and not stack.since("peft", "0.12")):
        return base
    return "fp32"


def narrows_tables(stack: Stack) -> bool:
    """Embeddings and head go back to bf16 after PEFT's k-bit preparation; norms stay fp32.

    TRL ``trainer/utils.py`` ``peft_module_casting_to_bf16``, called by ``SFTTrainer`` for 4-bit
    models under ``bf16=True`` (0.13.0 ``trainer/sft_trainer.py``); a stack without TRL has not it.
    """
    return bool(stack.version("trl"))


def upcasts_shards(stack: Stack, engine: str) -> bool:
    """Mixed precision under FSDP holds trainable shards in fp32, whatever they were loaded in.

    accelerate ``accelerator.py`` ``prepare_model`` since 0.30.0 (pull request 2674); for FSDP2 it
    did nothing in 1.13 (issue 3979, mended by pull request 3985 in 1.14). torchtune's and lit-gpt's
    recipes and Answer.AI's fsdp_qlora shard what was loaded; torchtitan and llm-foundry load fp32.
    """
    if stack.loop in {"torchtune", "litgpt", "fsdp-qlora"}:
        return False
    if stack.loop in {"torchtitan", "llm-foundry"}:
        return True
    if engine == "fsdp2" and stack.since("accelerate", "1.13"):
        return stack.since("accelerate", "1.14")
    return stack.since("accelerate", "0.30")


def mixes_units(stack: Stack) -> bool:
    """FSDP1 puts a block's frozen weights and its adapters in one flat weight.

    Its gradient is then one of the whole block (torch ``distributed/fsdp`` documentation, frozen
    parameters with ``use_orig_params``), and Fabric's ``no_backward_sync`` leaves it unsharded
    until the last micro-batch: Lightning-AI/litgpt ``finetune/lora.py`` @ 841970e4 wraps
    ``{Block}``. PEFT's policy wraps each adapter by itself.
    """
    return stack.loop == "litgpt"


def shards_gptq(stack: Stack) -> bool:
    """GPTQ's packed weights are parameters, which FSDP divides; elsewhere they are buffers.

    foundation-model-stack/fms-acceleration ``fms_acceleration_peft/autogptq_utils.py``
    ``register_tensors_as_parameters_patch_rule``.
    """
    return stack.loop == "fms-acceleration"
