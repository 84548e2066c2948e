"""What library versions and training loops do to memory.

A switch is a function of the stack that names the file or thread it was read from. Versions that
were not given are those of the reference stack, under which every formula of the estimator was
traced.
"""

from __future__ import annotations

from vram_plan.profiles.stack import Stack

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


def packs_subclasses(stack: Stack) -> bool:
    """Bitsandbytes quantizes subclasses of ``torch.nn.Linear`` too, such as Falcon's.

    transformers ``integrations/bitsandbytes.py``: 4.x asked ``isinstance(module, nn.Linear)``,
    5.23.0 asks ``type(module) is nn.Linear`` (the first 5 that does was not looked up; 5.0 here).
    The other loops replace their own layers.
    """
    return stack.loop != "transformers" or not stack.since("transformers", "5.0")


def keeps_four_bit_input(stack: Stack) -> bool:
    """``MatMul4Bit`` hangs its input on the node's context.

    bitsandbytes ``autograd/_functions.py``: ``ctx.tensors = (A, B)`` until 0.43.1, ``(None, B)``
    since 0.43.2.
    """
    return not stack.since("bitsandbytes", "0.43.2")


def fuses_four_bit(stack: Stack) -> bool:
    """4-bit products of few rows run in a fused kernel.

    bitsandbytes ``backends/cuda/ops.py`` ``gemm_4bit``: since 0.50 (pull request 1949).
    """
    return stack.since("bitsandbytes", "0.50")


def lora_dropout(stack: Stack) -> float:
    """Dropout before low-rank pairs unless said otherwise.

    PEFT's ``LoraConfig`` has none; Lightning-AI/litgpt ``finetune/lora.py`` @ 841970e4 and the
    recipes of ``config_hub/finetune`` have 0.05.
    """
    return 0.05 if stack.loop == "litgpt" else 0.0


def lora_rank(stack: Stack, model: str) -> int | None:
    """Rank of the pairs where the loop's recipes set one; None for the method's own default.

    torchtune 0.6.1 ``recipes/configs``: 64 for Llama 3.2 1B and 3B
    (``llama3_2/3B_lora_single_device.yaml``), 8 for the 7B and 8B models
    (``llama2/7B_lora.yaml``, ``llama3_1/8B_lora.yaml``).
    """
    if stack.loop != "torchtune":
        return None
    return 64 if "llama-3.2" in model.casefold() else 8


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


def keeps_presents(stack: Stack, model_type: str) -> bool:
    """The model collects keys and values although its blocks are checkpointed.

    transformers 4.48.1 ``models/gpt_bigcode/modeling_gpt_bigcode.py`` ``GPTBigCodeModel.forward``
    does not turn ``use_cache`` off as its siblings do; ``GradientCheckpointingLayer``
    (``modeling_layers.py``) does it for all since 4.53.
    """
    return model_type == "gpt_bigcode" and not stack.since("transformers", "4.53")


def reentrant_checkpoints(stack: Stack) -> bool:
    """Recomputation runs a backward pass of its own inside each block's.

    transformers ``modeling_utils.py`` ``gradient_checkpointing_enable``: ``use_reentrant`` was True
    by default until 4.57 and is False since 5.0. The other loops use PyTorch's wrapper, which is
    not reentrant. Before 4.38 (pull request 28538) nothing was passed on, so that ms-swift's own
    default held: False (modelscope/ms-swift @ 97e4d198b ``swift/llm/utils/model.py``
    ``fix_gradient_checkpointing_warning``). Answer.AI's fsdp_qlora asks for it in its published
    runs (AnswerDotAI/fsdp_qlora @ 05ed9f2a ``benchmarks_03_2024.md``,
    ``--reentrant_checkpointing True``).
    """
    if stack.loop == "fsdp-qlora":
        return True
    if stack.loop not in {"transformers", "fms-acceleration"}:
        return False
    if ("loop", "ms-swift") in stack.given and not stack.since("transformers", "4.38"):
        return False
    return not stack.since("transformers", "5.0")


def checkpoints_inside_units(stack: Stack) -> bool:
    """FSDP's unit is around the checkpoint, so that only what is inside is recomputed.

    AnswerDotAI/fsdp_qlora @ 7242daaf ``train.py`` calls ``apply_activation_checkpointing`` on the
    wrapped model; transformers' checkpoint calls the unit.
    """
    return stack.loop == "fsdp-qlora"


def keeps_outputs(stack: Stack) -> bool:
    """What the model returned, logits among it, is held until the step is over.

    AnswerDotAI/fsdp_qlora @ 7242daaf ``train.py``: ``output`` is let go behind the optimizer.
    """
    return stack.loop == "fsdp-qlora"


def alternates_products(stack: Stack) -> bool:
    """Selective checkpointing per operator recomputes every second matrix product of a block.

    pytorch/torchtitan @ 004b3148 ``torchtitan/parallelisms/parallelize_llama.py``
    ``_get_custom_policy``: attention and the first, third, … ``aten.mm`` are saved.
    """
    return stack.loop == "torchtitan"


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


def widens_outputs(stack: Stack) -> bool:
    """Under mixed precision what a model returns is copied to fp32, logits among it.

    accelerate 1.0.1 ``accelerator.py`` ``prepare_model`` wraps ``forward`` in
    ``utils/operations.py`` ``convert_outputs_to_fp32``; a step without Accelerate (no version of it
    given) has it not.
    """
    named = any(name == "accelerate" for name, _ in stack.given)
    return named and stack.loop in {"transformers", "fms-acceleration"}


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


def broadcasts_states(stack: Stack) -> bool:
    """FSDP1 sends the first rank's weights to the others, unit by unit (``sync_module_states``).

    AnswerDotAI/fsdp_qlora @ 7242daaf ``train.py`` with ``low_memory``, its default; accelerate
    ``utils/dataclasses.py`` ``FullyShardedDataParallelPlugin`` with ``cpu_ram_efficient_loading``.
    """
    return stack.loop in {"fsdp-qlora", "fms-acceleration", "transformers"}


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


def loads_kernels_lazily(stack: Stack, engine: str) -> bool:
    """The CUDA context holds only the kernels that were called.

    torch 1.13.0 ``torch/cuda/__init__.py`` ``_lazy_init`` sets ``CUDA_MODULE_LOADING=LAZY``.
    BigScience's Megatron-DeepSpeed ran on 1.8 to 1.11 and needs a version to say otherwise.
    """
    named = any(name == "torch" for name, _ in stack.given)
    if engine == "megatron-deepspeed" and not named:
        return False
    return stack.since("torch", "1.13")


def chosen_workspace(stack: Stack) -> int | None:
    """Bytes of ``CUBLAS_WORKSPACE_CONFIG``'s pairs ``:KIB:COUNT``, where the variable is set.

    torch 2.13.0 ``aten/src/ATen/cuda/CublasHandlePool.cpp`` ``parseChosenWorkspaceSize``.
    """
    text = stack.version("cublas-workspace-config")
    if not text:
        return None
    numbers = text.removeprefix(":").split(":")
    if len(numbers) % 2 or not all(number.isdigit() for number in numbers):
        raise ValueError(f"--stack cublas-workspace-config={text}: give :KIB:COUNT, as :4096:8")
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return 1024 * sum(int(size) * int(count) for size, count in pairs)
