"""tutorial/parts.py: what each part of GPT-2 contributes. Its results are not reproduced, as the repository does not
contain the training text."""

from collections import Counter
import functools
import json
import math

from conftest import ROOT, assert_error, in_process
import jax
import numpy as np
import optax
import pytest

import gpt2
from tutorial import parts
import utils

RESULTS = json.loads((ROOT / "tutorial" / "parts.json").read_text("utf-8"))
N_VOCAB, N_CTX, N_EMBD = 1024, 16, 8


@pytest.fixture(scope="module")
def ids():
    encoder, _, _ = utils.load_encoder_hparams_and_params("shakespeare", "models")
    return np.array(encoder.encode((ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")[:20000]))


def test_the_tables_agree_with_a_plain_count(ids):
    training, held_out = ids[:6000], ids[6000:]
    counts, pairs, firsts = Counter(training.tolist()), Counter(), Counter()
    for first, second in zip(training.tolist(), training.tolist()[1:]):
        pairs[first, second] += 1
        firsts[first] += 1
    one = two = 0.0
    for first, second in zip(held_out.tolist(), held_out.tolist()[1:]):
        one -= math.log((counts[second] + 1) / (len(training) + N_VOCAB))
        two -= math.log((pairs[first, second] + 0.1) / (firsts[first] + 0.1 * N_VOCAB))
    n = len(held_out) - 1
    assert parts.count_loss(training, held_out, N_VOCAB) == pytest.approx(one / n)
    assert parts.pair_loss(training, held_out, N_VOCAB) == pytest.approx(two / n)
    assert parts.pair_loss(training[:2], held_out, N_VOCAB, 1e9) == pytest.approx(math.log(N_VOCAB))  # uniform


def larger(params):
    """Adds random numbers to the parameters, so that each part has a visible effect."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (x + rng.standard_normal(x.shape)).astype(np.float32), params)


@pytest.mark.parametrize("name", parts.MODELS)
def test_each_model_has_its_parts(name, monkeypatch):
    """Judged by the number of its parameters and by which inputs its logits depend on: in NumPy, without compiling."""
    monkeypatch.setattr(parts.learner, "model", gpt2)
    spec = parts.MODELS[name]
    params = parts.initial_params(spec, N_VOCAB, N_CTX, N_EMBD, 0)
    attn, mlp, norms = 4 * N_EMBD**2 + 4 * N_EMBD, 8 * N_EMBD**2 + 5 * N_EMBD, 2 * N_EMBD
    block = {"one head": attn + norms, "heads": attn + norms, "no layer norms": attn + mlp}
    n_layer = {"embeddings": 0, "positions": 0, "one head": 1, "heads": 1, "feed-forward": 1}
    assert sum(x.size for x in jax.tree.leaves(params)) == (
        N_VOCAB * N_EMBD * (1 + (name in [*n_layer, "depth"]))
        + N_CTX * N_EMBD * (name not in ("embeddings", "no positions"))
        + norms * (name not in ("embeddings", "positions", "no layer norms"))
        + block.get(name, attn + mlp + 2 * norms) * n_layer.get(name, 4)
    )
    full = parts.whole(larger(params), N_CTX)
    model = parts.model_of(spec)

    def last(*inputs):
        return model.gpt2(inputs, **full, n_head=spec.n_head)[-1]

    looks_back = name not in ("embeddings", "positions")
    assert np.allclose(last(1, 2, 3), last(4, 2, 3), atol=1e-4) != looks_back
    assert np.allclose(last(3), last(3, 3), atol=1e-4) == (name in ("embeddings", "no positions"))
    if spec.n_layer < 2:  # with a second block, the causal mask reveals the order even without positions
        assert np.allclose(last(1, 2, 3), last(2, 1, 3), atol=1e-4) != looks_back


@pytest.mark.parametrize("name", parts.MODELS)
def test_each_model_learns(name, ids, monkeypatch):
    """In two steps. Muon, which is slow to compile, is used for only one of them."""
    spec = parts.MODELS[name]
    spec = spec._replace(n_layer=min(1, spec.n_layer))
    if name != "heads":
        monkeypatch.setattr(parts.optimizers, "muon_and_adamw", lambda *_, **__: optax.adam(0.05))
    settings = {"n_ctx": N_CTX, "n_embd": N_EMBD, "batch_size": 4, "learning_rate": 0.01, "seed": 0, "steps": 2}
    assert parts.train_one(spec, ids[:6000], ids[6000:6200], N_VOCAB, **settings)[0] < math.log(N_VOCAB) - 0.01


def test_gpt2_with_all_parts_is_gpt2():
    spec = parts.MODELS["GPT-2"]._replace(n_layer=2)
    params = larger(parts.initial_params(spec, N_VOCAB, N_CTX, N_EMBD, 0))
    inputs = np.arange(9)
    found = jax.jit(functools.partial(parts.model_of(spec).gpt2, n_head=4))(inputs, **parts.whole(params, N_CTX))
    np.testing.assert_allclose(found, gpt2.gpt2(inputs, **params, n_head=4), rtol=1e-3, atol=1e-3)


def test_the_stored_results_have_the_settings_and_models_of_the_command():
    assert RESULTS["settings"] == parts.SETTINGS
    assert list(RESULTS["parts"]) == list(parts.LABELS) == ["uniform", "counts", "pairs", *parts.MODELS]
    assert RESULTS["parts"]["uniform"]["loss"] == pytest.approx(math.log(N_VOCAB), abs=1e-3)
    for name, spec in parts.MODELS.items():
        params = parts.initial_params(spec, N_VOCAB, parts.SETTINGS["n_ctx"], parts.SETTINGS["n_embd"], 0)
        assert RESULTS["parts"][name]["n_params"] == sum(x.size for x in jax.tree.leaves(params)), name


def test_another_text_and_an_unrelated_output_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("O, my good lord. " * 50)
    (tmp_path / "notes").write_text("mine")
    for out, part in (
        ("new", "text is not models/shakespeare/held_out.txt: pass tinyshakespeare"),
        ("text", "text is also the input"),
        ("notes", "notes"),
    ):
        assert_error(in_process(parts.main, "text", "--out", out), part)
    assert not (tmp_path / "new").exists() and (tmp_path / "notes").read_text() == "mine"
