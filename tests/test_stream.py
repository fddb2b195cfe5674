"""Text that is shown as it is generated: at a pseudo-terminal, and in pieces."""

import re
import sys

from conftest import ROOT, SLOW_MODEL, Terminal, in_process
import numpy as np
import pytest

from beyond import complete, preset
from beyond.formats import checkpoint
import cli
import gpt2
import utils

pytest.importorskip("pty")  # a Unix terminal

TEXT = " naïve 中文 👍🏽👩‍🚀 says: ÿ\n\t𝕏 — done"
PROGRAMS = {  # by main
    "gpt2": (["gpt2.py"], gpt2.main),
    "lookahead": (["-m", "beyond.lookahead"], preset("complete", lookahead=True)),
    "complete": (["-m", "beyond.complete"], complete.main),
}


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A folder with a model "writer", which writes TEXT after any prompt: each position points at a token."""
    folder = tmp_path_factory.mktemp("models") / "writer"
    folder.mkdir()
    encoder, _, _ = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    ids = encoder.encode(TEXT)
    assert any("\ufffd" in encoder.decode([id]) for id in ids) and len(ids) < 128
    hparams = {"n_vocab": len(encoder.encoder), "n_ctx": 128, "n_embd": 64, "n_head": 1, "n_layer": 2}
    params = checkpoint.initial_params(**hparams, seed=0)
    for block in params["blocks"]:
        for layer in block["attn"]["c_proj"], block["mlp"]["c_proj"]:
            layer["w"], layer["b"] = 0 * layer["w"], 0 * layer["b"]
    wte = np.random.default_rng(0).standard_normal((hparams["n_vocab"], 64)).astype(np.float32)
    wte /= np.linalg.norm(wte, axis=1, keepdims=True)
    wpe = np.zeros((hparams["n_ctx"], 64), np.float32)
    wpe[: len(ids)] = 50 * wte[ids]
    params = {**params, "wte": wte, "wpe": wpe}
    checkpoint.save_folder(params, hparams, str(folder), "shakespeare", str(ROOT / "models"))
    return folder.parent, len(ids)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_terminal_shows_whole_characters_and_no_bar(writer, program):
    models_dir, n = writer
    start, main = PROGRAMS[program]
    screen = Terminal(*start, "a", str(n), "writer", str(models_dir))
    assert re.fullmatch(re.escape(TEXT) + r"\n(\d+ tokens in .*\n)?", screen.read()) and screen.process.returncode == 0
    assert len(screen.chunks) > 5 and all(chunk.decode() for chunk in screen.chunks)
    assert in_process(main, "a", n, "writer", models_dir).stdout.decode() == TEXT + "\n"


PLAIN = "KING", "100", "shakespeare", "--temperature=2", "--seed=1"


@pytest.fixture(scope="module")
def plain():
    return in_process(gpt2.main, *PLAIN, f"--models_dir={ROOT / 'models'}").stdout.decode()


@pytest.mark.parametrize(
    "main",
    ["gpt2.main", "beyond.preset('complete', lookahead=True)", "beyond.complete.main"],
    ids=["gpt2", "lookahead", "complete"],
)
def test_ctrl_c_ends_the_line(main, plain):
    """The text so far stays, and the exit status is 130."""
    screen = Terminal("-c", f"{SLOW_MODEL}\nimport cli, beyond.complete\ncli.run({main})", *PLAIN)
    shown = screen.read(until=plain[:10])
    screen.type("\x03")
    shown += screen.read()
    text, end = shown.split("^C")
    assert screen.process.returncode == 130 and end.endswith("\n")
    assert plain.startswith(text + end[:-1]) and len(text + end) < len(plain)


def test_an_error_precedes_any_output():
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
    models_dir, n = writer
    assert gpt2.main("a", n, "writer", str(models_dir)) == TEXT and capsys.readouterr().out == ""
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    found = gpt2.main("a", n, "writer", str(models_dir))
    monkeypatch.undo()
    assert found == TEXT and "".join(screen.written) == TEXT + "\n"
