"""JSONL files as sequences, and what is refused by line."""

import json
from pathlib import Path

import pytest

from vram_plan.bench.runs.examples import IGNORED, read_sequences, read_texts

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}]}
PAIR = {"question": "ab", "answer": "c"}


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    return path


def test_questions_and_chats_are_turns(tmp_path: Path) -> None:
    found = read_texts(written(tmp_path, PAIR, CHAT))
    assert found == [[("user", "ab"), ("assistant", "c")], [("user", "a"), ("assistant", "bc")]]


def test_packing_joins_and_cuts(tmp_path: Path) -> None:
    """Five tokens each: four bytes and the end."""
    found = read_sequences(written(tmp_path, PAIR, CHAT), length=4, packing=True, vocabulary=257)
    assert [len(row) for row in found.rows] == [4, 4]
    assert found.rows[0] == tuple(b"ab\nc")
    assert found.rows[1] == (256, *b"a\nb")
    assert found.about()["real_share"] == 1.0
    short = read_sequences(written(tmp_path, PAIR), length=8, packing=True, vocabulary=257)
    assert short.rows == ((*b"ab\nc", 256, *b"ab\n"),)


def test_padding_keeps_every_example_apart(tmp_path: Path) -> None:
    found = read_sequences(written(tmp_path, PAIR, CHAT), length=6, packing=False, vocabulary=257)
    assert found.rows[0] == (*b"ab\nc", 256, IGNORED)
    assert found.padded
    assert found.about() == {
        "examples": 2,
        "sequences": 2,
        "tokenizer": "bytes",
        "real_share": 10 / 12,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no examples"),
        ("{", "line 1: no JSON"),
        ("[1]", "line 1: no object"),
        ('\n{"question": "a"}', "line 2: answer is missing"),
        ('{"messages": []}', "line 1: messages"),
        ('{"messages": [1]}', "line 1: role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "line 1: content"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_texts(path)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_texts(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        read_texts(tmp_path / "binary")
    with pytest.raises(ValueError, match="needs 257 tokens"):
        read_sequences(written(tmp_path, PAIR), length=4, packing=True, vocabulary=100)


def test_a_tokenizer_from_a_folder(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {"<unk>": 0, "</s>": 1, "ab": 2, "c": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>"
    )
    folder = str(tmp_path / "words")
    fast.save_pretrained(folder)
    data = written(tmp_path, PAIR)
    found = read_sequences(data, length=4, packing=False, vocabulary=4, tokenizer=folder)
    assert found.rows == ((2, 3, 1, IGNORED),)
    assert found.tokenizer == "words"
    with pytest.raises(ValueError, match="outside the model's 3"):
        read_sequences(data, length=4, packing=False, vocabulary=3, tokenizer=folder)
    with pytest.raises(ValueError, match="tokenizer none"):
        read_sequences(
            data, length=4, packing=True, vocabulary=300, tokenizer=str(tmp_path / "none")
        )
