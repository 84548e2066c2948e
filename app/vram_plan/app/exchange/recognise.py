"""Which format a file is in, by the keys it has, whatever its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vram_plan.app.exchange import (
    accelerate,
    axolotl,
    deepspeed,
    llama_factory,
    peft_config,
    torchtune,
    training_arguments,
)
from vram_plan.app.exchange.document import Document
from vram_plan.app.exchange.facts import Reading
from vram_plan.app.exchange.known_keys import known_keys

Read = Callable[[Document], Reading]
_MARKS: tuple[tuple[str, Read, tuple[str, ...]], ...] = (
    ("torchtune", torchtune.read, ("model._component_", "tokenizer._component_")),
    (
        "DeepSpeed",
        deepspeed.read,
        ("zero_optimization", "train_micro_batch_size_per_gpu", "bf16.enabled", "fp16.enabled"),
    ),
    ("Accelerate", accelerate.read, ("distributed_type", "compute_environment")),
    ("PEFT", peft_config.read, ("peft_type",)),
    ("axolotl", axolotl.read, ("base_model",)),
    (
        "LLaMA-Factory",
        llama_factory.read,
        ("finetuning_type", "cutoff_len", "template", "lora_target", "quantization_bit"),
    ),
)
"""Format, its reader, and the keys that no other format has."""
_ARGUMENTS = (
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "learning_rate",
    "bf16",
    "fp16",
    "model_name_or_path",
    "finetuning",
)
"""Keys that TrainingArguments or TRL's files have; nothing else may claim the file first."""
_NOT_OURS = {
    "architectures": "a model's config.json: give it with --model",
    "model_type": "a model's config.json: give it with --model",
    "tokenizer_class": "a tokenizer's configuration",
}


def read(document: Document) -> Reading:
    """What a file says, in whichever format it is.

    Raises:
        ValueError: one line with the file, the line and what it is instead.
    """
    found = [
        (form, reader, mark) for form, reader, marks in _MARKS for mark in _marks(document, marks)
    ]
    forms = {form for form, _, _ in found}
    if len(forms) > 1:
        (one, _, mark), (other, _, second) = found[0], next(f for f in found if f[0] != found[0][0])
        place = f"line {document.line(tuple(mark.split('.')))}"
        problem = f"is {other}'s, but {mark} on {place} is {one}'s; give one file for each"
        raise document.wrong(tuple(second.split(".")), problem)
    if found:
        return found[0][1](document)
    if any(key in document.values for key in _ARGUMENTS) and _mostly_known(document):
        return training_arguments.read(document)
    raise _stranger(document)


def _marks(document: Document, marks: tuple[str, ...]) -> Iterator[str]:
    for mark in marks:
        key, _, inner = mark.partition(".")
        value = document.values.get(key)
        if value is not None and (not inner or (isinstance(value, dict) and inner in value)):
            yield mark


def _mostly_known(document: Document) -> bool:
    keys = known_keys("trl")
    known = [
        key for key in document.values if key in _ARGUMENTS or key in keys.harmless | keys.memory
    ]
    return 2 * len(known) >= len(document.values)


def _stranger(document: Document) -> ValueError:
    for key, what in _NOT_OURS.items():
        if key in document.values:
            return document.wrong((key,), f"says that this is {what}")
    first = next(iter(document.values), "")
    problem = (
        "is no key of a configuration that is known (DeepSpeed JSON, Accelerate YAML, "
        "TrainingArguments, PEFT, axolotl, LLaMA-Factory, torchtune)"
    )
    return document.wrong((first,), problem)
