"""The model in the repository, and what its README and the project's claim about it."""

import json
import re
from unittest.mock import patch

from conftest import ROOT, command
import jax
import jax.numpy as jnp
import numpy as np
from test_encoder import tiktoken_of

import gpt2_pico
import utils

FOLDER = ROOT / "models" / "shakespeare"
README, MODEL_README = ((folder / "README.md").read_text("utf-8") for folder in (ROOT, FOLDER))


def figure(pattern):
    return float(re.search(pattern, MODEL_README)[1])


def test_the_folder_has_openais_files_and_is_small():
    assert {path.name for path in FOLDER.iterdir()} == {*utils.FILES, "README.md", "held_out.txt", "loss.svg"}
    assert (FOLDER / utils.DATA).stat().st_size <= 16e6
    hparams = json.loads((FOLDER / "hparams.json").read_text())
    assert hparams["n_ctx"] == 256 and hparams["n_vocab"] == len(json.loads((FOLDER / "encoder.json").read_text()))


def test_the_held_out_loss_is_the_readmes():
    """By gpt2_pico, compiled by JAX, and tiktoken: each window of n_ctx tokens begins 64 after the one before."""
    _, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    text = (FOLDER / "held_out.txt").read_text("utf-8")
    ids = np.array(tiktoken_of(FOLDER).encode_ordinary(text))
    n_ctx = hparams["n_ctx"]
    params = jax.tree.map(jnp.array, params)

    def losses(window):
        logits = gpt2_pico.gpt2(window[:-1], **params, n_head=hparams["n_head"])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), window[1:, None], axis=-1)[:, 0]

    starts = np.array([*range(0, len(ids) - 1 - n_ctx, 64), len(ids) - 1 - n_ctx])
    n_new = np.diff(starts + n_ctx, prepend=0)  # each window scores the tokens that the one before it did not
    with patch.object(gpt2_pico, "np", jnp):
        found = jax.jit(lambda windows: jax.lax.map(losses, windows))(ids[starts[:, None] + np.arange(n_ctx + 1)])
    scored = np.concatenate([row[n_ctx - n :] for row, n in zip(np.asarray(found, np.float64), n_new)])
    assert len(scored) == len(ids) - 1
    total = scored.sum()
    n_chars = len(text) - len(tiktoken_of(FOLDER).decode(ids[:1].tolist()))
    assert abs(total / n_chars - figure(r"\*\*([\d.]+)\*\* nats per character")) < 6e-5
    assert abs(total / (len(ids) - 1) - figure(r"([\d.]+) nats per token")) < 6e-5
    assert total / n_chars <= 1.40


def test_the_commands_in_the_readmes_print_the_output_shown():
    shown = re.findall(
        r"```\n(?:[^\n]*&& )?(?:\.venv/bin/)?(?:python gpt2\.py|picogpt) ([^\n]*--model_size shakespeare[^\n]*)\n```\n(?:[^`]*\n)?```\n(.*?)```\n",
        README + MODEL_README,
        re.S,
    )
    assert len(shown) == 4
    for line, expected in shown:
        prompt, flags = re.fullmatch(r'"(.*?)"(.*)', line).groups()
        done = command(prompt, *flags.split(), cwd=ROOT)
        assert done.returncode == 0 and done.stdout.decode() == expected, line


def test_it_needs_neither_tensorflow_nor_a_network():
    code = "import sys, gpt2; print(gpt2.main('ROMEO:', model_size='shakespeare')); print(sorted(sys.modules), file=sys.stderr)"
    done = command("-c", code, program=None, cwd=ROOT)
    imported = set(re.findall(r"'([\w.]+)'", done.stderr.decode()))
    assert done.returncode == 0 and done.stdout.strip() and "numpy" in imported
    assert not {"tensorflow", "jax", "requests"} & imported


def test_a_speech_ends():
    """A prompt that begins like a speech is continued to the speech's end; within plain text no end is predicted."""
    import gpt2

    encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    end = encoder.encoder["<|endoftext|>"]
    prompt = encoder.encode("ROMEO:")
    ended = 0
    for seed in range(12):
        ids = gpt2.generate(prompt, params, hparams["n_head"], 200, temperature=0.8, seed=seed, stop=end)
        ended += len(ids) < 200
    assert ended >= 9
    ids = encoder.encode((FOLDER / "held_out.txt").read_text("utf-8"))[1000:1256]
    logits = gpt2.gpt2(ids, **params, n_head=hparams["n_head"])[64:]
    assert gpt2.softmax(logits)[:, end].mean() < 0.002
