"""A training configuration with every option resolved."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from vram_plan.estimator.choices import BYTES, LORA_FAMILY
from vram_plan.profiles.gpus import GpuSpec
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.nodes import NodeSpec
from vram_plan.profiles.stack import Stack

DEFAULT_VIRTUAL_TOKENS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroSizes:
    """DeepSpeed's buffer sizes, in elements (not bytes), as its JSON names them.

    Defaults: ``deepspeed/runtime/zero/config.py``, DeepSpeed 0.19.8.
    """

    reduce_bucket_size: int = 500_000_000
    allgather_bucket_size: int = 500_000_000
    overlap_comm: bool = False
    contiguous_gradients: bool = True
    stage3_prefetch_bucket_size: int = 50_000_000
    stage3_param_persistence_threshold: int = 100_000
    stage3_max_live_parameters: int = 1_000_000_000
    stage3_max_reuse_distance: int = 1_000_000_000
    sub_group_size: int = 1_000_000_000
    grad_accum_bytes: int = 0
    """Bytes per element of ``data_types.grad_accum_dtype``; 0: the weights' dtype."""
    optimizer_buffer_count: int = 4
    """``offload_optimizer.buffer_count``: buffers of the NVMe optimizer swapper."""
    param_buffer_count: int = 5
    param_buffer_size: int = 100_000_000
    max_in_cpu: int = 1_000_000_000
    """``offload_param``: buffers of the NVMe weight swapper; elements a rank keeps on the host."""
    offload_param_device: str = ""
    """``offload_param.device`` where it is not that of ``offload_optimizer``."""
    pin_memory: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Every option under its command-line name; ``resolve.resolve`` builds one.

    Attributes:
        model: the architecture.
        gpu: the GPU asked about, or None for all in the catalogue.
        node: the machine a rank runs in (host memory, NVMe).
        zero: DeepSpeed's stage, None without DeepSpeed.
        fsdp: FSDP's strategy, empty without FSDP.
        zero_sizes: DeepSpeed's bucket sizes.
        weights_dtype: dtype of the base weights as held.
        precision: dtype of matrix products; what ``fp8`` casts and keeps is in ``fp8.py``.
        fp8_recipe: library and scaling of 8-bit products, ``none`` for other precisions.
        micro_batch: sequences per data-parallel rank in one forward pass.
        seq_len: tokens per sequence (of the target, for encoder-decoders).
        source_len: tokens per source sequence of an encoder-decoder, else 0.
        lengths: ``fixed``, or mean and deviation of the tokens of sequences, those beyond
            ``seq_len`` left out (``lengths.parse_lengths``).
        gptq_group_size: inputs that share a scale of GPTQ's; -1: all of them.
        kbit_preparation: PEFT's ``prepare_model_for_kbit_training`` (``peft/utils/other.py``
            0.21.2): what stays unquantized is held in fp32. Not for GPTQ.
        lora_dropout: probability (PEFT's default is 0); any other keeps a dropped copy of the input
            and a mask for every pair.
        modules_to_save: modules trained whole beside the pairs: ``embeddings,lm_head``.
        freeze_layers: blocks at the bottom that do not learn (``--method freeze``).
        state_dtype: of the optimizer's moments under Megatron-LM; other engines have no choice.
        optimizer_in_backward: each weight is updated as soon as its gradient arrives.
        amp: ``torch.autocast`` is on whatever the weights' dtype (``bf16=True`` of transformers'
            Trainer over a 16-bit model); None: over fp32 weights that no engine casts itself.
        compile: every block is compiled: norms, rotations and gates are one kernel each.
        stack: library versions.
        assumptions: sentences the output repeats.
    """

    model: ModelSpec
    task: str = "sft"
    method: str = "full"
    lora_rank: int = 16
    lora_targets: str = "all-linear"
    lora_dropout: float = 0.0
    modules_to_save: str = ""
    adapter_dtype: str = "fp32"
    adapter_size: int = 64
    freeze_layers: int = 0
    virtual_tokens: int = DEFAULT_VIRTUAL_TOKENS
    prompt_encoder: str = "mlp"
    prompt_encoder_size: int = 128
    gpus: int = 1
    gpus_per_node: int = 1
    gpu: GpuSpec | None = None
    node: NodeSpec | None = None
    engine: str = "torch"
    zero: int | None = None
    zero_sizes: ZeroSizes = ZeroSizes()
    fsdp: str = ""
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    sequence_parallel: bool = False
    pp_schedule: str = "1f1b"
    virtual_pipeline: int = 1
    offload: str = "none"
    offload_device: str = "cpu"
    optimizer_in_backward: bool = False
    precision: str = "bf16"
    fp8_recipe: str = "none"
    weights_dtype: str = "bf16"
    quantization: str = "none"
    double_quant: bool = False
    gptq_group_size: int = 128
    kbit_preparation: bool = False
    optimizer: str = "adamw"
    state_dtype: str = "fp32"
    micro_batch: int = 1
    seq_len: int = 2048
    source_len: int = 0
    lengths: str = "fixed"
    grad_accum: int = 1
    checkpointing: str = "none"
    attention: str = "flash"
    attention_density: float = 1.0
    loss: str = "hf"
    kv_dtype: str = "bf16"
    fused_kernels: tuple[str, ...] = ()
    amp: bool | None = None
    compile: bool = False
    stack: Stack = field(default_factory=Stack)
    assumptions: tuple[str, ...] = ()

    @property
    def training(self) -> bool:
        """Whether anything is learned."""
        return self.task != "inference"

    @property
    def data_parallel(self) -> int:
        """Ranks that see different data: gpus / (tp · pp · cp)."""
        return self.gpus // (self.tp * self.pp * self.cp)

    @property
    def shard_ranks(self) -> int:
        """Ranks over which ZeRO, FSDP and Megatron's distributed optimizer divide states.

        Context-parallel ranks hold the same weights, so they share them as data ranks do.
        """
        return self.data_parallel * self.cp

    @property
    def autocast(self) -> bool:
        """Whether ``torch.autocast`` casts the inputs of matrix products."""
        if not self.training or self.precision == "fp32":
            return False
        if self.amp is not None:
            return self.amp
        return self.weights_dtype == "fp32" and self.engine in {"torch", "ddp", "device-map"}

    @property
    def weights_bytes(self) -> int:
        """Bytes per element of unquantized base weights."""
        return BYTES[self.weights_dtype]

    @property
    def compute_bytes(self) -> int:
        """Bytes per element of what matrix products make."""
        return BYTES[self.compute_dtype]

    @property
    def compute_dtype(self) -> str:
        """Dtype of what matrix products make: fp8 products write 16 bits."""
        return "bf16" if self.precision == "fp8" else self.precision

    @property
    def is_lora(self) -> bool:
        """Whether linear layers get low-rank pairs."""
        return self.method in LORA_FAMILY

    def options(self) -> dict[str, object]:
        """Every option by its command-line name with underscores, as plain values."""
        plain: dict[str, object] = {}
        for one in fields(self):
            if one.name in {"assumptions", "zero_sizes", "model", "gpu", "node"}:
                continue
            value = getattr(self, one.name)
            plain[one.name] = list(value) if isinstance(value, tuple) else value
        plain["stack"] = str(self.stack)
        plain["model"] = self.model.name
        plain["gpu"] = self.gpu.name if self.gpu else None
        plain["node"] = self.node.name if self.node else None
        return plain
