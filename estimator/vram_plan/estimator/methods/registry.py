"""Which method object an option stands for."""

from __future__ import annotations

from collections.abc import Callable

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.methods.base import Method
from vram_plan.estimator.methods.whole import BitFit, Freeze, Full


def make_method(config: TrainConfig) -> Method:
    """The method of a configuration."""
    return _MAKERS[config.method](config)


def check_method(config: TrainConfig) -> None:
    """Refuse a method that its library does not run on the model, or targets that name nothing.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    make_method(config).check(config)


def _lora(config: TrainConfig) -> Method:
    if config.modules_to_save:
        from vram_plan.estimator.methods.saved import with_modules

        return with_modules(config)
    from vram_plan.estimator.methods.lora import Lora

    return Lora(config.lora_rank, config.lora_targets)


def _dora(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.dora import Dora

    return Dora(config.lora_rank, config.lora_targets)


def _adalora(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.adalora import AdaLora

    return AdaLora(config.lora_rank, config.lora_targets)


def _moelora(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.moelora import MoeLora

    return MoeLora(config.lora_rank, config.lora_targets)


def _ia3(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.ia3 import Ia3

    return Ia3()


def _prompt(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.prompts import Prompt

    return Prompt(config.virtual_tokens)


def _p_tuning(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.prompts import PTuning

    return PTuning(config.virtual_tokens, config.prompt_encoder, config.prompt_encoder_size)


def _prefix(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.prefix import Prefix

    return Prefix(config.virtual_tokens)


def _houlsby(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.bottleneck import Houlsby

    return Houlsby(config.adapter_size)


def _pfeiffer(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.bottleneck import Pfeiffer

    return Pfeiffer(config.adapter_size)


def _fusion(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.bottleneck import Fusion

    return Fusion(config.adapter_size)


def _mam(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.mixed import Mam

    return Mam(
        tokens=config.virtual_tokens,
        projection=config.prompt_encoder_size,
        size=config.adapter_size,
    )


def _unipelt(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.mixed import UniPelt

    return UniPelt(
        tokens=config.virtual_tokens,
        projection=config.prompt_encoder_size,
        size=config.adapter_size,
        rank=config.lora_rank,
    )


def _llama_adapter(config: TrainConfig) -> Method:
    from vram_plan.estimator.methods.llama_adapter import LlamaAdapter, LlamaAdapterV2

    return LlamaAdapterV2() if config.method == "llama-adapter-v2" else LlamaAdapter()


_MAKERS: dict[str, Callable[[TrainConfig], Method]] = {
    "full": lambda config: Full(),
    "freeze": lambda config: Freeze(config.freeze_layers),
    "bitfit": lambda config: BitFit(),
    "lora": _lora,
    "rslora": _lora,
    "dora": _dora,
    "adalora": _adalora,
    "qlora": _lora,
    "moelora": _moelora,
    "ia3": _ia3,
    "prompt": _prompt,
    "prefix": _prefix,
    "p-tuning": _p_tuning,
    "p-tuning-v2": _prefix,
    "adapter-houlsby": _houlsby,
    "adapter-pfeiffer": _pfeiffer,
    "adapter-fusion": _fusion,
    "llama-adapter": _llama_adapter,
    "llama-adapter-v2": _llama_adapter,
    "mam": _mam,
    "unipelt": _unipelt,
}
