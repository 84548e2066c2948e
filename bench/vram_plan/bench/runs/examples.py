"""A JSONL file of questions and answers, or of chats, as sequences of one length.

Every line is an object: ``{"question": …, "answer": …}`` or ``{"messages": [{"role": …,
"content": …}, …]}``. Without a tokenizer a text's bytes are its tokens: speed and memory do not
depend on what the tokens mean, and the loss still falls on what can be learnt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["IGNORED", "Sequences", "read_sequences", "read_texts"]

#: The label that the loss leaves out (torch.nn.CrossEntropyLoss ``ignore_index``).
IGNORED = -100
_END = 256
_BYTE_TOKENS = 257
_MOST_BYTES = 256 * 2**20

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Token ids, all rows equally long.

    Attributes:
        rows: ids; padding is ``IGNORED``.
        padded: whether there is padding.
        examples: lines of the file.
        real_tokens: ids that are no padding.
        tokenizer: its name, or ``bytes``.
    """

    rows: tuple[tuple[int, ...], ...]
    padded: bool
    examples: int
    real_tokens: int
    tokenizer: str

    def about(self) -> dict[str, Any]:
        """For the record."""
        total = sum(map(len, self.rows))
        return {
            "examples": self.examples,
            "sequences": len(self.rows),
            "tokenizer": self.tokenizer,
            "real_share": self.real_tokens / total,
        }


def read_texts(path: Path) -> list[list[tuple[str, str]]]:
    """Turns (role, text) of every line.

    Raises:
        ValueError: one line that names file and line.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"data {path.name}: larger than {_MOST_BYTES // 2**20} MiB")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data {path.name}: cannot be read ({type(error).__name__})") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_turns(line, f"data {path.name}, line {number}"))
    if not found:
        raise ValueError(f"data {path.name}: it has no examples")
    return found


def _turns(line: str, where: str) -> list[tuple[str, str]]:
    try:
        found = json.loads(line)
    except ValueError:
        raise ValueError(f"{where}: no JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: no object")
    if "messages" in found:
        messages = found["messages"]
        if not isinstance(messages, list) or not messages:
            raise ValueError(f"{where}: messages must be a list of role and content")
        return [(_text(one, "role", where), _text(one, "content", where)) for one in messages]
    pair = (("user", "question"), ("assistant", "answer"))
    return [(role, _text(found, name, where)) for role, name in pair]


def _text(found: Any, name: str, where: str) -> str:
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is missing or no text")
    return value


def read_sequences(
    path: Path, *, length: int, packing: bool, vocabulary: int, tokenizer: str | None = None
) -> Sequences:
    """The file as rows of ``length`` tokens.

    Args:
        path: the file.
        length: tokens of a row.
        packing: join the examples and cut; else each is a row, cut or padded.
        vocabulary: of the model.
        tokenizer: a local folder of a transformers tokenizer; None takes bytes.

    Raises:
        ValueError: one line that names what is wrong and the way out.
    """
    texts = read_texts(path)
    examples = _encoded(texts, vocabulary, tokenizer)
    rows = _packed(examples, length) if packing else _padded(examples, length)
    return Sequences(
        rows=rows,
        padded=not packing,
        examples=len(texts),
        real_tokens=sum(one != IGNORED for row in rows for one in row),
        tokenizer=Path(tokenizer).name if tokenizer else "bytes",
    )


def _encoded(
    texts: Sequence[Sequence[tuple[str, str]]], vocabulary: int, tokenizer: str | None
) -> list[list[int]]:
    if tokenizer is None:
        if vocabulary < _BYTE_TOKENS:
            raise ValueError(f"data as bytes needs {_BYTE_TOKENS} tokens; the model's are fewer")
        joined = ["\n".join(text for _, text in turns) for turns in texts]
        return [[*text.encode(), _END] for text in joined]
    encode = _tokenizer(tokenizer)
    examples = [encode(turns) for turns in texts]
    most = max(max(ids, default=0) for ids in examples)
    if most >= vocabulary:
        raise ValueError(f"tokenizer: its token {most} is outside the model's {vocabulary}")
    return examples


def _tokenizer(folder: str) -> Callable[[Sequence[tuple[str, str]]], list[int]]:
    """A transformers tokenizer; its chat template where it has one."""
    from transformers import AutoTokenizer

    load: Any = AutoTokenizer.from_pretrained
    try:
        made = load(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"tokenizer {Path(folder).name}: {reason}") from None

    def encode(turns: Sequence[tuple[str, str]]) -> list[int]:
        if getattr(made, "chat_template", None):
            chat = [{"role": role, "content": text} for role, text in turns]
            written = made.apply_chat_template(chat, tokenize=False)
            ids = made(written, add_special_tokens=False)["input_ids"]
        else:
            ids = made("\n".join(text for _, text in turns))["input_ids"]
        end = made.eos_token_id
        return [*ids, end] if end is not None and ids[-1:] != [end] else list(ids)

    return encode


def _packed(examples: Sequence[Sequence[int]], length: int) -> tuple[tuple[int, ...], ...]:
    """One stream, cut into rows; a stream that is shorter than a row is repeated."""
    stream = [one for example in examples for one in example]
    while len(stream) < length:
        stream += stream
    whole = len(stream) // length
    return tuple(tuple(stream[n * length : (n + 1) * length]) for n in range(whole))


def _padded(examples: Sequence[Sequence[int]], length: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(example[:length]) + (IGNORED,) * (length - len(example)) for example in examples
    )
