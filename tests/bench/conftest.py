"""Small models of several families."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 256,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 1000,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
T5 = {
    "model_type": "t5",
    "d_model": 256,
    "d_ff": 512,
    "d_kv": 64,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 1000,
}
TINY = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 160,
    "vocab_size": 301,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {"llama": LLAMA, "gpt2": GPT2, "bert": BERT, "t5": T5}


@pytest.fixture(autouse=True)
def no_profile_of_this_machine(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody has calibrated here decides no test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-profile"))


@pytest.fixture
def shapes() -> dict[str, dict[str, Any]]:
    """Model type → its configuration."""
    return SHAPES


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """The path of a Llama's configuration that runs in no time."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    return str(path)


@pytest.fixture
def own_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Lists the processes of this test's runs: those that name its folder, nobody else's."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def listed() -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except OSError:
                continue
            if str(tmp_path).encode() in words:
                found.append(int(path.parent.name))
        return found

    return listed
