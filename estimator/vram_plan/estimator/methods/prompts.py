"""Virtual tokens in front of every sequence: prompt tuning and p-tuning as in PEFT 0.21.2."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from vram_plan.estimator.methods.places import check_positions
from vram_plan.estimator.methods.whole import Frozen
from vram_plan.estimator.ops.activations import activation
from vram_plan.estimator.ops.adapters import prepend, repeat
from vram_plan.estimator.ops.elementwise import cast, narrow
from vram_plan.estimator.ops.embedding import embedding
from vram_plan.estimator.ops.lstm import lstm
from vram_plan.estimator.tape import Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.forward import Forward

LSTM_LAYERS = 2
"""``PromptEncoderConfig.encoder_num_layers``, PEFT 0.21.2 ``peft/tuners/p_tuning/config.py``."""


@dataclass(frozen=True, slots=True)
class Prompt(Frozen):
    """Prompt tuning (arXiv:2104.08691): ``tokens`` learned vectors in front of the embedded input.

    ``PeftModelForCausalLM.forward`` (``peft/peft_model.py``): the prompt is looked up once,
    repeated for every sequence, cast and concatenated; labels grow too, so blocks, logits and
    loss see ``tokens`` more positions. An encoder-decoder's table has rows for both stacks
    (``num_transformer_submodules``) of which the encoder's are used.
    """

    tokens: int

    @property
    def virtual_tokens(self) -> int:
        """Positions prepended to every sequence (to the encoder's, where there is one)."""
        return self.tokens

    def check(self, config: TrainConfig) -> None:
        """The prompt is as wide as the blocks, so the token embedding has to be."""
        model, method = config.model, config.method
        if model.embedding_size not in {0, model.hidden_size}:
            raise ValueError(
                f"--method {method}: the embeddings of {model.name} are narrower than its blocks, "
                "which PEFT's prompts do not fit; choose --method lora"
            )
        check_positions(config, self.tokens, config.source_len or config.seq_len)

    def embed(self, f: Forward, x: Tensor) -> Tensor:
        """Concatenate the prompt and the embedded tokens."""
        if f.spec.is_encoder_decoder and f.stack == "decoder":
            return x
        prompts = self.encode(f, self._table(f))
        prompts = cast(f.t, repeat(f.t, prompts, f.batch), x.itemsize)
        prompts = f.produce("prompts", prompts)
        if f.spec.is_encoder_decoder:
            prompts = narrow(f.t, prompts, prompts.numel // 2)
            return prepend(f.t, prompts, x, f.tokens * f.spec.hidden_size, batch=f.batch)
        joined = prepend(f.t, prompts, x, f.tokens * f.spec.hidden_size, batch=f.batch)
        return f.produce("inputs_embeds", joined)

    def _table(self, f: Forward) -> Tensor:
        rows, width = self.tokens * (1 + f.spec.is_encoder_decoder), f.spec.hidden_size
        table = f.added_param("prompt_encoder.embedding.weight", (rows, width))
        return embedding(f.t, Tensor(rows, 8, None), table, width)

    def encode(self, f: Forward, table: Tensor) -> Tensor:
        """What becomes of the looked-up vectors: here nothing."""
        return table


@dataclass(frozen=True, slots=True)
class PTuning(Prompt):
    """P-tuning (arXiv:2103.10385): an encoder makes the prompt.

    ``peft/tuners/p_tuning/model.py``: three linear layers with ReLU, or a bidirectional LSTM of
    two layers and two linear layers.

    Attributes:
        encoder: ``mlp`` or ``lstm``.
        width: hidden size of the encoder.
    """

    encoder: str
    width: int

    def encode(self, f: Forward, table: Tensor) -> Tensor:
        """The encoder on the looked-up vectors, in the adapters' precision."""
        hidden, width = f.spec.hidden_size, self.width
        if self.encoder == "lstm":
            x = lstm(f, "prompt_encoder.lstm_head", table, (hidden, width), layers=LSTM_LAYERS)
            return self._layers(f, x, (2 * width, 2 * width, hidden))
        return self._layers(f, table, (hidden, width, width, hidden))

    @staticmethod
    def _layers(f: Forward, x: Tensor, widths: tuple[int, ...]) -> Tensor:
        """Linear layers with ReLU between them, numbered as in ``torch.nn.Sequential``."""
        for i, shape in enumerate(pairwise(widths)):
            if i:
                x = activation(f.t, x, "relu")
            x = f.added_linear(f"prompt_encoder.mlp_head.{2 * i}", x, shape, bias=True)
        return x
