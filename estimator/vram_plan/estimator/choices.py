"""The words of the command line: every choice an option has."""

TASKS = ("sft", "pretrain", "inference")
METHODS = (
    "full",
    "freeze",
    "bitfit",
    "lora",
    "rslora",
    "dora",
    "adalora",
    "qlora",
    "moelora",
    "ia3",
    "adapter-houlsby",
    "adapter-pfeiffer",
    "adapter-fusion",
    "prompt",
    "prefix",
    "p-tuning",
    "p-tuning-v2",
    "mam",
    "unipelt",
    "llama-adapter",
    "llama-adapter-v2",
)
LORA_FAMILY = ("lora", "rslora", "dora", "adalora", "qlora", "moelora")
LITGPT_METHODS = ("llama-adapter", "llama-adapter-v2")
"""Methods that lit-gpt alone has, in modules of its own."""
WHOLE_MODEL = ("full", "freeze", "bitfit")
"""Methods that train weights of the model itself and add none."""
ENGINES = (
    "torch",
    "ddp",
    "deepspeed",
    "fsdp1",
    "fsdp2",
    "megatron",
    "device-map",
    "megatron-deepspeed",
    "nanotron",
    "internevo",
    "colossalai",
)
MEGATRON_BLOCKS = frozenset({"megatron", "megatron-deepspeed", "nanotron", "internevo"})
"""Engines whose own modules split over tensor and pipeline ranks."""
ZERO_ENGINES = {
    "deepspeed": (0, 1, 2, 3),
    "megatron": (0, 1),
    "megatron-deepspeed": (0, 1),
    "nanotron": (0, 1),
    "internevo": (1,),
    "colossalai": (1, 2),
}
"""Engine → ZeRO stages it has; stage 1 of Megatron is its distributed optimizer."""
ZERO_STAGES = (0, 1, 2, 3)
FSDP_STRATEGIES = ("full-shard", "grad-op", "hybrid-shard")
PIPELINE_SCHEDULES = ("naive", "gpipe", "1f1b", "interleaved")
OFFLOADS = ("none", "optimizer", "optimizer+params", "activations")
OFFLOAD_DEVICES = ("cpu", "nvme")
PRECISIONS = ("bf16", "fp16", "fp32", "fp8")
FP8_RECIPES = (
    "te-delayed",
    "te-current",
    "te-blockwise",
    "te-mxfp8",
    "ao-tensorwise",
    "ao-rowwise",
)
"""Transformer Engine's and torchao's ways to scale what is cast to 8 bits."""
_BY_MODULE = ("ao-tensorwise", "ao-rowwise", "te-delayed", "te-current", "te-mxfp8")
FP8_ENGINES = {
    "torch": _BY_MODULE,
    "ddp": _BY_MODULE,
    "fsdp2": ("ao-tensorwise", "ao-rowwise"),
    "megatron": ("te-delayed", "te-current", "te-blockwise", "te-mxfp8"),
}
"""Engine → recipes that are planned under it, its own default first."""
CONV1D = frozenset({"gpt2"})
"""Models of transformers' ``Conv1D``, which fp8 libraries do not replace."""
WEIGHTS_DTYPES = ("bf16", "fp16", "fp32", "int8", "fp8")
ADAPTER_DTYPES = ("fp32", "bf16", "fp16")
QUANTIZATIONS = ("none", "int8", "nf4", "fp4", "gptq4", "gptq8")
BITSANDBYTES = ("int8", "nf4", "fp4")
FOUR_BIT = ("nf4", "fp4")
"""Those whose codes FSDP can shard."""
OPTIMIZERS = (
    "adamw",
    "adamw-fused",
    "adamw-for-loop",
    "adamw-8bit",
    "paged-adamw",
    "paged-adamw-8bit",
    "adafactor",
    "lion",
    "sgd",
    "sgd-momentum",
    "rmsprop",
    "muon",
    "one-bit-adam",
)
STATE_DTYPES = ("fp32", "bf16", "fp16")
CHECKPOINTINGS = ("none", "selective", "full", "offload")
ATTENTIONS = ("flash", "sdpa", "eager", "block-sparse")
EAGER_ONLY = frozenset({"bloom", "codegen", "mpt"})
"""Architectures whose classes in transformers 5.23.0 have no other attention kernel."""
WITHOUT_SDPA = frozenset({"gptj", "gpt_neo"})
"""Those that have flash attention but not PyTorch's."""
WITHOUT_FLASH = frozenset({"t5", "mt5", "umt5"})
"""Those whose position bias no flash attention takes."""
WITHOUT_CHECKPOINTING = frozenset({"albert"})
"""Classes that cannot recompute."""
LOSSES = ("hf", "fused-ce", "chunked", "liger")
KV_DTYPES = ("bf16", "fp16", "fp32", "fp8", "int8")
PROMPT_ENCODERS = ("mlp", "lstm")
FUSED_FAMILIES = frozenset({"granite", "llama", "mistral", "mixtral", "qwen2"})
"""Architectures whose compositions have the fused kernels."""
FUSED_KERNELS = ("rmsnorm", "rope", "swiglu", "lora")
COMPILED_KERNELS = frozenset({"rmsnorm", "rope", "swiglu"})
"""What ``torch.compile`` makes of a block."""

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
"""Bytes per element of a dtype."""
