"""Text that appears as it is made: at a pseudo-terminal, and in pieces."""

import re
import shutil
import sys

from conftest import ROOT, SLOW_MODEL, TINY, VOCABULARY, Terminal, command
import numpy as np
import pytest

from beyond.formats import checkpoint
import cli

pytest.importorskip("pty")  # a Unix terminal

TEXT = " naïve 中文 👍🏽👩‍🚀 says: ÿ\n\t𝕏 — done"
PROGRAMS = [["gpt2.py"], ["-m", "beyond.lookahead"], ["-m", "beyond.complete"]]


@pytest.fixture(scope="module")
def writer(tmp_path_factory, encoder):
    """A folder with a model "writer", which writes TEXT, whatever comes before: each position points at a token."""
    folder = tmp_path_factory.mktemp("models") / "writer"
    folder.mkdir()
    hparams = {**TINY, "n_embd": 64, "n_head": 1}
    params = checkpoint.initial_params(**hparams, seed=0)
    for block in params["blocks"]:
        for layer in block["attn"]["c_proj"], block["mlp"]["c_proj"]:
            layer["w"], layer["b"] = 0 * layer["w"], 0 * layer["b"]
    wte = np.random.default_rng(0).standard_normal((hparams["n_vocab"], 64)).astype(np.float32)
    wte /= np.linalg.norm(wte, axis=1, keepdims=True)
    ids = encoder.encode(TEXT)
    assert any("\ufffd" in encoder.decode([id]) for id in ids) and len(ids) < hparams["n_ctx"]
    wpe = np.zeros((hparams["n_ctx"], 64), np.float32)
    wpe[: len(ids)] = 50 * wte[ids]
    for name in "encoder.json", "vocab.bpe":
        shutil.copy(VOCABULARY / name, folder)
    checkpoint.save_model({**params, "wte": wte, "wpe": wpe}, hparams, str(folder))
    return folder.parent, len(ids)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_terminal_shows_whole_characters_and_no_bar(writer, program):
    models_dir, n = writer
    screen = Terminal(*program, "a", str(n), "writer", str(models_dir))
    assert re.fullmatch(re.escape(TEXT) + r"\n(\d+ tokens in .*\n)?", screen.read()) and screen.process.returncode == 0
    assert len(screen.chunks) > 5 and all(chunk.decode() for chunk in screen.chunks)
    done = command(*program, "a", str(n), "writer", str(models_dir), program=None, cwd=ROOT)
    assert done.stdout.decode() == TEXT + "\n"


@pytest.mark.parametrize(
    "main",
    ["gpt2.main", "beyond.preset('complete', lookahead=True)", "beyond.complete.main"],
    ids=["gpt2", "look", "complete"],
)
def test_ctrl_c_ends_the_line(main):
    """What was written stays, and the exit status is 130."""
    code = f"{SLOW_MODEL}\nimport cli, beyond.complete\ncli.run({main})"
    plain = command("KING", "100", "shakespeare", "--temperature=2", "--seed=1").stdout.decode()
    screen = Terminal("-c", code, "KING", "100", "shakespeare", "--temperature=2", "--seed=1")
    shown = screen.read(until=plain[:10])
    screen.type("\x03")
    shown += screen.read()
    text, end = shown.split("^C")
    assert screen.process.returncode == 130 and end.endswith("\n")
    assert plain.startswith(text + end[:-1]) and len(text + end) < len(plain)


def test_an_error_comes_before_anything_is_written():
    screen = Terminal("gpt2.py", "a", "256", "shakespeare")
    assert screen.read().startswith("error: a prompt of 1 tokens") and screen.process.returncode == 1


class Screen:
    def __init__(self):
        self.written = []

    def isatty(self):
        return True

    def write(self, text):
        self.written.append(text)

    def flush(self):
        pass


def test_ctrl_c_within_a_character(encoder, monkeypatch):
    def ids():
        yield from encoder.encode("é 👍🏽")[:-1]
        raise KeyboardInterrupt

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    with pytest.raises(KeyboardInterrupt):
        cli.show(encoder.decode_stream(ids()), 9)
    assert "".join(screen.written) == "é 👍\n"


def test_what_main_returns_is_the_text_either_way(writer, monkeypatch, capsys):
    import gpt2

    models_dir, n = writer
    assert gpt2.main("a", n, "writer", str(models_dir)) == TEXT and capsys.readouterr().out == ""
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    found = gpt2.main("a", n, "writer", str(models_dir))
    monkeypatch.undo()
    assert found == TEXT and "".join(screen.written) == TEXT + "\n"
