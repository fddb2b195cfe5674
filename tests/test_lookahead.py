"""beyond/lookahead.py: the ids of gpt2.generate, in fewer passes."""

from conftest import MODELS, QUICK, ROOT, assert_error, in_process
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from beyond import lookahead, preset, variant
import gpt2
import utils


@pytest.fixture(scope="module")
def shakespeare():
    return utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(QUICK), st.data())
def test_the_ids_are_those_of_generate(name, data):
    """Prompts of any length up to the context's end, greedy and sampled, with and without a stop."""
    params, hparams = MODELS[name]
    unit = data.draw(st.lists(st.integers(0, hparams["n_vocab"] - 1), min_size=1, max_size=6))
    inputs = (unit * hparams["n_ctx"])[: data.draw(st.integers(1, hparams["n_ctx"]))]
    n = data.draw(st.integers(0, hparams["n_ctx"] - len(inputs)))
    options = {"temperature": data.draw(st.sampled_from([0, 0, 0.1, 1])), "seed": 1}
    expected = gpt2.generate(inputs, params, hparams["n_head"], n, **options)
    given_inputs = list(inputs)
    assert lookahead.generate(inputs, params, hparams["n_head"], n, **options) == expected and inputs == given_inputs
    if expected:
        stop = data.draw(st.sampled_from(expected))
        stopped = lookahead.generate(inputs, params, hparams["n_head"], n, **options, stop=stop)
        assert stopped == expected[: expected.index(stop)]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_on_text(shakespeare, temperature):
    encoder, hparams, params = shakespeare
    text = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")
    for i in range(6):
        inputs = encoder.encode(text[i * 5000 :][: 60 * (i + 1)])
        args = inputs, params, hparams["n_head"], [40, hparams["n_ctx"] - len(inputs)][i % 2], temperature
        assert lookahead.generate(*args, seed=i) == gpt2.generate(*args, seed=i)


def check(found, expected):
    assert found == expected
    return found


def test_repetition_takes_few_passes(shakespeare, monkeypatch):
    encoder, hparams, params = shakespeare
    inputs, guess = encoder.encode("To be, or not to be: " * 8), lookahead.guess
    monkeypatch.setattr(lookahead, "guess", lambda ids, *args: check(guess(ids, *args), guess(ids, {}, 0)))
    found = list(lookahead.passes(inputs, params, hparams["n_head"], 100))
    assert sum(map(len, found)) == 100 and len(found) < 80
    params, hparams = MODELS["wide"]  # random weights soon repeat a cycle, and from there all guesses are right
    found = list(lookahead.passes([1], params, hparams["n_head"], hparams["n_ctx"] - 1))
    assert max(map(len, found)) == lookahead.LONGEST


def test_at_worst_a_token_per_pass_and_a_row_per_token():
    """Where no guess is ever right, no guess is sent: each pass has a single row, as in gpt2.generate."""
    params, hparams = MODELS["wide"]
    rows, always = [], iter([0, 1, 0, 2, 0, 3, 1, 2, 3, 0, 4, 1, 4, 2, 4, 3, 4, 0, 5, 1, 5])
    over = variant(gpt2, sample=lambda *args: next(always))
    over.hidden_states = lambda ids, **kwargs: rows.append(len(ids)) or gpt2.hidden_states(ids, **kwargs)
    found = list(variant(lookahead, gpt2=over).passes([7], params, hparams["n_head"], 20))
    assert [len(new) for new in found] == [1] * 20 and rows == [1] * 20


def test_wrong_arguments_raise_at_once():
    params, hparams = MODELS["few"]
    for find in lookahead.stream, lookahead.passes:
        with pytest.raises(ValueError, match="context is 20"):
            find([1], params, hparams["n_head"], 20)


def test_guesses_are_what_followed_before():
    guess = lookahead.guess
    assert guess([1, 2, 3], {}, 0) == []
    assert guess([5, 1, 2, 3, 9, 8, 1, 2, 3], {}, 0) == ([9, 8, 1, 2, 3] * 4)[: lookahead.LONGEST]
    # two ids in common count for more than a later position with one
    assert guess([1, 2, 9, 1, 3, 1, 2], {}, 0)[:5] == [9, 1, 3, 1, 2]
    assert guess([4, 4], {}, 0) == [4] * lookahead.LONGEST
    followers, ids = {}, np.random.default_rng(0).integers(0, 4, 60).tolist()
    for n in range(1, 61):  # followers updated step by step, or all at once
        assert guess(ids[:n], followers, n - 2) == guess(ids[:n], {}, 0)


def test_the_command():
    def run(*args, **flags):
        return in_process(preset("complete", **flags), *args, "--model_size=shakespeare")

    done, plain = run("ROMEO:", lookahead=True), run("ROMEO:")
    assert done.returncode == 0 and done.stdout == plain.stdout
    n, n_passes, rate = [float(word) for word in done.stderr.decode().replace(":", "").split() if word[0].isdigit()]
    assert n <= 40 and n_passes <= n + 1 and abs(n / n_passes - rate) < 0.006
    assert_error(run("ROMEO:", "--n_tokens_to_generate=300", lookahead=True), "300", "256")
