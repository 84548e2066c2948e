"""Hugging Face's Trainer, the loop that most people use, on the same model and optimizer."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from vram_plan.bench.engines.batches import Batch
from vram_plan.bench.engines.memory import Relay
from vram_plan.bench.engines.place import Place
from vram_plan.bench.engines.plain import check_optimizer
from vram_plan.bench.engines.resident import resident_bytes
from vram_plan.bench.engines.stepper import Stepper
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.optimizers import make_optimizer

__all__ = ["TrainerLoop"]

_RATE = 1e-4
_ENGINES = ("torch", "ddp")


class TrainerLoop:
    """The Trainer as it comes: its own sampler, scheduler, clipping and bookkeeping.

    Attributes:
        settling: as many steps as DDP needs to make its buckets.
        trainable_parameters: those that get gradients.
        first_loss: of the first micro-batch, before anything was learnt.
    """

    def __init__(self, config: TraceConfig, model: Any, relay: Relay, place: Place) -> None:
        if config.engine not in _ENGINES:
            raise ValueError(
                f"loop trainer with engine {config.engine}: choose engine torch or ddp, or loop "
                "plain"
            )
        self.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.settling = 2 if config.engine == "ddp" else 1
        self.first_loss: float | None = None
        self._config, self._model, self._relay, self._place = config, model, relay, place
        self._optimizer = make_optimizer(config.optimizer, model)

    def train(self, stepper: Stepper, batches: Sequence[Batch]) -> None:
        """Let the Trainer take all steps."""
        from transformers import Trainer

        rows = [
            {name: tensor[row] for name, tensor in batch.items()}
            for batch in batches
            for row in range(self._config.batch)
        ]
        # A rank of N is dealt one row in N.
        rows *= self._place.ranks
        with tempfile.TemporaryDirectory(prefix="vram-plan-trainer-") as folder:
            trainer = Trainer(
                model=self._model,
                args=self._arguments(folder, stepper.total),
                train_dataset=rows,
                data_collator=_stacked,
                callbacks=[_marks(self._relay, stepper)],
                optimizers=(self._optimizer, None),
            )
            self._listen(trainer)
            trainer.train()

    def _arguments(self, folder: str, steps: int) -> Any:
        from transformers import TrainingArguments

        config = self._config
        return TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=config.batch,
            gradient_accumulation_steps=config.grad_accum,
            max_grad_norm=config.clip or 0.0,
            learning_rate=_RATE,
            lr_scheduler_type="constant",
            bf16=config.autocast == "bf16",
            fp16=config.autocast == "fp16",
            use_cpu=self._place.device == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=self._place.device == "cuda",
        )

    def _listen(self, trainer: Any) -> None:
        """Hear of what the Trainer's callbacks do not tell: the loss, backward, clipping."""
        relay, accelerator = self._relay, trainer.accelerator
        compute, backward, clip = (
            trainer.compute_loss,
            accelerator.backward,
            trainer._clip_grad_norm,
        )

        def compute_loss(*given: Any, **named: Any) -> Any:
            relay.enter("forward")
            loss = compute(*given, **named)
            relay.mark("loss_end")
            if self.first_loss is None:
                self.first_loss = float(loss.detach())
            return loss

        def pass_backward(*given: Any, **named: Any) -> None:
            relay.enter("backward")
            backward(*given, **named)
            relay.mark("backward_end")

        def clip_norm(*given: Any) -> Any:
            relay.enter("clip")
            return clip(*given)

        trainer.compute_loss, trainer._clip_grad_norm = compute_loss, clip_norm
        accelerator.backward = pass_backward

    def loss(self, batch: Batch) -> float:
        """The loss of a batch now, nothing learnt."""
        with torch.no_grad():
            return float(self._model(**batch).loss.detach())

    def check_stepped(self, total: int) -> None:
        """Raise unless the optimizer did its work in so many steps."""
        check_optimizer(self._optimizer, total)

    def states(self) -> dict[str, int]:
        """Bytes of weights and optimizer states: the Trainer wraps both, and holds no more."""
        states = self._optimizer.state.values()
        groups = {
            "weights": self._model.parameters(),
            "optimizer_states": [t for one in states for t in one.values() if torch.is_tensor(t)],
        }
        return resident_bytes(groups, self._place.device)


def _stacked(rows: Sequence[Batch]) -> Batch:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _marks(relay: Relay, stepper: Stepper) -> Any:
    """The Trainer's callbacks as the stepper wants them."""
    from transformers import TrainerCallback

    class Marks(TrainerCallback):
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            stepper.before()

        def on_pre_optimizer_step(self, *given: Any, **named: Any) -> None:
            relay.enter("step")

        def on_optimizer_step(self, *given: Any, **named: Any) -> None:
            relay.mark("step_end")
            relay.enter("zero_grad")

        def on_step_end(self, *given: Any, **named: Any) -> None:
            stepper.after()

    return Marks()
