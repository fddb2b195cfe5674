import json
import math
import re

from conftest import ROOT, assert_error, command, in_process, nested
import golden
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from test_encoder import texts
from test_train import pico_losses

from beyond import evaluate
from beyond.files import reading
import gpt2
import utils

HPARAMS = golden.CONFIGS["wide"]
HELD_OUT = ROOT / "models" / "shakespeare" / "held_out.txt"


@pytest.fixture(scope="module")
def shakespeare():
    return utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))


@pytest.mark.parametrize("n, stride", [(2, 48), (3, 1), (48, 24), (49, 48), (50, 7), (145, 48), (171, 13), (200, 1)])
def test_each_token_is_scored_once_with_its_context(n, stride):
    """Compared with gpt2_pico, one window at a time."""
    params, ids, expected = nested(golden.weights(HPARAMS)), np.arange(n) * 29 % HPARAMS["n_vocab"], {}
    starts = [*range(0, n - 1 - HPARAMS["n_ctx"], stride), max(0, n - 1 - HPARAMS["n_ctx"])]
    for start in starts:
        for i, loss in enumerate(pico_losses(params, ids[start : start + HPARAMS["n_ctx"] + 1], HPARAMS["n_head"])):
            expected.setdefault(start + i + 1, loss)
    found = np.concatenate(list(evaluate.evaluate(iter(ids.tolist()), params, HPARAMS["n_head"], stride)))
    np.testing.assert_allclose(found, [expected[i] for i in range(1, n)], rtol=2e-4, atol=2e-4)


@settings(max_examples=300, deadline=None)
@given(text=texts, size=st.integers(1, 9))
def test_the_tokens_of_the_pieces_are_those_of_the_whole(encoder, text, size):
    import io

    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    pieces = list(reading.pieces(io.StringIO(text, newline=""), size))
    assert "".join(pieces) == text and [id for piece in pieces for id in encoder.encode(piece)] == encoder.encode(text)
    assert sum(len(piece.split()) for piece in pieces) == len(text.split())


def run(*args):
    return in_process(evaluate.main, *args, "--model_size=shakespeare")


def test_each_token_as_json(tmp_path, shakespeare):
    encoder, hparams, params = shakespeare
    text = HELD_OUT.read_text("utf-8")[:900] + "é"
    (tmp_path / "text.txt").write_text(text, "utf-8", newline="")
    found = [json.loads(line) for line in run(tmp_path / "text.txt", "--stride=100", "--tokens").stdout.splitlines()]
    ids = encoder.encode(text)
    assert [one["id"] for one in found] == ids and [one["token"] for one in found] == [
        encoder.decode([id]) for id in ids
    ]
    expected = pico_losses(params, np.array([encoder.encoder["<|endoftext|>"], *ids[:256]]), hparams["n_head"])
    np.testing.assert_allclose([-one["logprob"] for one in found[:256]], expected, atol=1e-3)
    total = float(run(tmp_path / "text.txt", "--stride=100").stdout.split()[7])
    assert np.mean([one["logprob"] for one in found]) == pytest.approx(-total, abs=6e-5)


def test_the_command(tmp_path, shakespeare):
    encoder, hparams, params = shakespeare
    text = HELD_OUT.read_text("utf-8")[:1500]
    (tmp_path / "text.txt").write_text(text, "utf-8", newline="")
    args = str(tmp_path / "text.txt"), "--stride=100", "--model_size=shakespeare"
    done = command("-m", "beyond.evaluate", *args, program=None, cwd=ROOT)
    ids, losses = [encoder.encoder["<|endoftext|>"], *encoder.encode(text)], {}
    for start in [*range(0, len(ids) - 257, 100), len(ids) - 257]:
        for i, loss in enumerate(pico_losses(params, np.array(ids[start : start + 257]), hparams["n_head"])):
            losses.setdefault(start + i + 1, loss)
    total, n, n_words = sum(losses.values()), len(ids) - 1, len(text.split())
    assert len(losses) == n and done.stdout.decode().splitlines() == [
        f"{n} tokens, {n_words} words, {len(text)} bytes",
        f"loss {total / n:.4f} nats per token",
        f"perplexity {math.exp(total / n):.2f} per token, {math.exp(total / n_words):.2f} per word, "
        f"{total / math.log(2) / len(text):.4f} bits per byte",
    ], done.stderr.decode()


@pytest.mark.parametrize(
    "content, first",
    [
        (b"a", "1 tokens, 1 words, 1 bytes"),
        (b"\n", "1 tokens, 0 words, 1 bytes"),
        (b"\xff\xfe", "2 tokens, 1 words, 2 bytes"),
    ],
)
def test_the_smallest_texts(tmp_path, content, first):
    (tmp_path / "text.txt").write_bytes(content)
    done = run(tmp_path / "text.txt")
    assert done.returncode == 0 and done.stdout.decode().splitlines()[0] == first and done.stdout.count(b"\n") == 3


def test_last_words(tmp_path, shakespeare):
    """Greedy decoding of the passage without its last word generates that word, or not."""
    encoder, hparams, params = shakespeare
    text, end, right, passages = HELD_OUT.read_text("utf-8"), encoder.encoder["<|endoftext|>"], 0, []
    for i, n in enumerate([20, 3, 60, 2] * 5):
        words = text[i * 2000 :].split()[1:]
        context, word = " ".join(words[:n]), words[n]
        if i % 2:  # half of the passages end in the word that the model predicts, once it predicts one
            ids = encoder.encode(" ".join(words[: n + 15]))
            predicted = gpt2.gpt2([end, *ids], **params, n_head=hparams["n_head"]).argmax(
                axis=-1
            )  # [k] follows ids[:k]
            pairs = enumerate(zip(map(encoder.decoder.get, ids), map(encoder.decoder.get, predicted)))
            k = next(k for k, (one, best) in pairs if k > n and one[0] == "Ġ" and re.fullmatch("Ġ[A-Za-z]+", best))
            context, word = encoder.decode(ids[:k]), encoder.decode([predicted[k]])[1:]
        target = encoder.encode(" " + word)
        found = gpt2.generate([end, *encoder.encode(context)], params, hparams["n_head"], len(target))
        right += found == target
        passages.append(f"{context} {word}")
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    done = run(tmp_path / "passages.jsonl")
    assert 0 < right < 20
    assert done.stdout.decode().splitlines()[:2] == ["20 passages", f"accuracy of the last word {5 * right:.2f}%"], (
        done.stderr
    )


@pytest.mark.parametrize(
    "name, content, parts",
    [
        ("a.txt", b"", ["a.txt is empty"]),
        ("a.jsonl", b"", ["a.jsonl is empty"]),
        ("a.jsonl", b'{"text": "a b"}\n[1]\n', ["line 2"]),
        ("a.jsonl", b'{"text": 1}\n', ["line 1", '{"text":']),
        ("a.jsonl", b'{"text": " "}\n', ["line 1", "0 tokens"]),
        ("a.jsonl", b'{"text": "a ' + b"@#" * 300 + b'"}\n', ["line 1", "601 tokens", "256"]),
    ],
)
def test_errors(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    assert_error(run(tmp_path / name), *parts)


def test_a_perplexity_too_large_for_a_float():
    assert (
        evaluate.perplexity(2) == "7.39"
        and evaluate.perplexity(710) == "e^710"
        and evaluate.perplexity(1e4) == "e^10000"
    )


def test_the_strides_range(tmp_path):
    assert_error(run(HELD_OUT, "--stride=257"), "stride=257", "256")
    assert_error(run(tmp_path / "none.txt"), "No such file", "none.txt")


def test_the_papers_figures_are_in_the_help_and_the_docstring():
    output = run("--help").stdout.decode()
    for figure in "29.41", "18.34", "45.99", "63.24":
        assert figure in output and figure in evaluate.__doc__
