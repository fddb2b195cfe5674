"""beyond/complete.py against gpt2.generate and formulas written out."""

import json
import re
import shlex

from conftest import MODELS, QUICK, ROOT, assert_error, command, golden, in_process
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from beyond import complete
import gpt2
import gpt2_pico


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("options", [(0, None, None), (1.2, None, None), (0.9, 7, 0.8)])
def test_each_sample_is_that_of_its_seed(name, options):
    params, hparams = MODELS[name]
    for n_prompt, n in (1, 0), (3, 1), (5, 12), (hparams["n_ctx"] - 2, 2):
        inputs = golden.inputs(hparams)[:n_prompt].tolist()
        found = complete.samples(gpt2, inputs, params, hparams["n_head"], n, [0, 3, 0], options, stop=2)
        expected = [
            gpt2.generate(inputs, params, hparams["n_head"], n, *options, seed=seed, stop=2) for seed in (0, 3, 0)
        ]
        assert [list(ids) for ids in found] == expected


@pytest.mark.parametrize("penalty", [0.5, 1.1, 1.5, 10])
def test_the_penalty_is_that_of_transformers(penalty):
    """Its formula, token by token, on the logits of gpt2_pico."""
    params, hparams = MODELS["wide"]
    inputs = [1, 2, 3, 2]
    ids = list(inputs)
    for _ in range(20):
        logits = gpt2_pico.gpt2(ids, **params, n_head=hparams["n_head"])[-1].tolist()
        for id in set(ids):
            logits[id] = logits[id] * penalty if logits[id] < 0 else logits[id] / penalty
        ids.append(int(np.argmax(logits)))
    (found,) = complete.samples(gpt2, inputs, params, hparams["n_head"], 20, [None], penalty=penalty)
    assert list(found) == ids[4:]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.sampled_from("ab.\né中👍"), max_size=30),
    stop=st.sampled_from([None, "a", ".\n", "aba", "é", "👍a"]),
    data=st.data(),
)
def test_the_pieces_are_the_text_up_to_the_stop(encoder, text, stop, data):
    cut = data.draw(st.integers(0, len(text.encode())))  # the first bytes may not be UTF-8
    ids = encoder.encode(text.encode()[cut:].decode("utf-8", "surrogateescape"))
    pieces, whole = encoder.decode_stream(iter(ids)), encoder.decode(ids)
    found = list(complete.until(stop, pieces) if stop else pieces)
    assert "".join(found) == (whole.partition(stop)[0] if stop else whole)
    assert len(found) <= len(ids) + 2


def test_what_the_docstring_shows():
    line, shown = re.search(
        r"python -m beyond.complete (.*)\n\nprints[^:]*:\n\n((?:    .*\n)+)", complete.__doc__
    ).groups()
    done = command("-m", "beyond.complete", *shlex.split(line), program=None, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.decode() == re.sub("^    ", "", shown, flags=re.M), done.stderr


def test_the_flags():
    def run(prompt, n, *flags, main=complete.main, **kwargs):
        return in_process(main, prompt, n, "shakespeare", f"--models_dir={ROOT / 'models'}", *flags, **kwargs)

    plain = run("ROMEO:", 12, main=gpt2.main).stdout
    assert run("ROMEO:", 12).stdout == plain == run("ROMEO:", 12, "--repetition_penalty=1.0").stdout
    lines = run("ROMEO:", 12, "--n_samples=3", "--temperature=1", "--seed=5").stdout.decode().splitlines()
    alone = [
        run("ROMEO:", 12, "--temperature=1", f"--seed={seed}", main=gpt2.main).stdout.decode() for seed in (5, 6, 7)
    ]
    assert [json.loads(line) + "\n" for line in lines] == alone
    text = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")[:3000]
    assert_error(run("-", 9, input=text.encode()), "context is 256", "shorten the prompt")
    assert run("-", 9, "--keep_end", input=text.encode()).returncode == 0
    assert_error(run("ROMEO:", 999), "context is 256")
    assert run("ROMEO:", 999, "--fit").returncode == 0
    for flag in "--n_samples=0", "--repetition_penalty=0", "--fit=3", "--bits=5":
        assert_error(run("ROMEO:", 9, flag), flag[2:])
    assert_error(run("ROMEO:", 9, "--lookahead", "--repetition_penalty=2"), "repetition_penalty=2", "lookahead")
