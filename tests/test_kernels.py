"""beyond/kernels.py against NumPy, and its combinations with the other chapters."""

from unittest import mock

from conftest import MODELS, ROOT, assert_error, command, golden, in_process
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from beyond import batch, kernels, lookahead, preset, quantize, variant
import gpt2
import utils

SIZES = st.floats(-20, 20).map(lambda exponent: 10**exponent)  # from very small to very large


def numbers(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def near(found, expected, scale=1.0):
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 * scale)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 700), SIZES)
def test_gelu_and_layer_norm(seed, n, n_embd, scale):
    x, (g, b) = numbers(seed, n, n_embd, scale=min(scale, 1e8)), numbers(seed, 2, n_embd)
    x[0] = 0
    near(kernels.gelu(x), gpt2.gelu(x))
    near(kernels.layer_norm(x, g, b), gpt2.layer_norm(x, g, b), 100)
    near(kernels.gelu(x[:, ::2]), gpt2.gelu(x[:, ::2]))


def test_exp():
    x = np.linspace(-86, 88, 20001, dtype=np.float32)
    assert np.abs([kernels.exp(value) / np.exp(np.float64(value)) - 1 for value in x]).max() < 3e-7


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 140),
    st.sampled_from([1, 12, 64, 66, 80, 130]),
    st.sampled_from([1, 3, 36, 64, 101, 128, 448]),
    SIZES,
)
def test_products(n, n_in, n_out, scale):
    """Integers times a power of two, whose sums are exact in any order, have an exact product."""
    rng, scale = np.random.default_rng(n), np.float32(2.0 ** np.floor(np.log2(scale)))
    x, w = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((n, n_in), (n_in, n_out)))
    for matrix in w, np.ascontiguousarray(w.T).T:
        prepared = kernels.prepare({"w": matrix})["w"]
        found = (x * scale) @ prepared
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, np.float32(x @ w) * scale)
        np.testing.assert_array_equal((x[-1] * scale) @ prepared, found[-1])
        with mock.patch.object(kernels, "MOST_ROWS", 64):  # as with smaller registers
            np.testing.assert_array_equal((x * scale) @ prepared, found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.sampled_from([1, 2, 9, 70, 300]), st.sampled_from([3, 64, 80]))
def test_linear_and_ffn(seed, n, n_embd):
    x, c_fc, c_proj = (
        numbers(seed, n, n_embd),
        *(
            {"w": numbers(seed, *shape), "b": numbers(seed, shape[1])}
            for shape in [(n_embd, 4 * n_embd), (4 * n_embd, n_embd)]
        ),
    )
    near(kernels.linear(x, **c_fc), gpt2.linear(x, **c_fc), 100)
    near(kernels.ffn(x, c_fc, c_proj), gpt2.ffn(x, c_fc, c_proj), 1e4)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([0, 1, 5, 60, 130]),
    st.sampled_from([1, 4, 22, 48, 64, 80]),
    SIZES,
)
def test_attention(n_head, n_q, past, d, scale):
    q, k, v = (numbers(i, n_head, n, d) for i, n in enumerate((n_q, past + n_q, past + n_q)))
    q *= np.float32(min(scale, 1e3))
    mask = (1 - np.tri(n_q, past + n_q, past, dtype=np.float32)) * np.float32(-1e10)
    expected = gpt2.attention(*(np.float64(x) for x in (q, k, v)), mask)
    np.testing.assert_allclose(kernels.attention(q, k, v, mask), expected, atol=1e-5 * max(1, min(scale, 1e3)))
    np.testing.assert_allclose(
        kernels.attention(q[:, -1:], k, v, 0), expected[:, -1:], atol=1e-5 * max(1, min(scale, 1e3))
    )
    later = k.copy()
    later[:, past + 1 :] = np.nan  # the first query does not attend to these
    assert np.isfinite(kernels.attention(q, later, v, mask)[:, 0]).all()


@pytest.mark.parametrize("name", MODELS)
def test_logits(name):
    params, hparams = MODELS[name]
    args = {"inputs": golden.inputs(hparams), "n_head": hparams["n_head"]}
    found = kernels.model.gpt2(**args, **kernels.prepare(params))
    np.testing.assert_allclose(found, gpt2.gpt2(**args, **params), rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("model", [gpt2, kernels.model], ids=["numpy", "kernels"])
def test_all_combinations_give_the_same_ids(bits, model):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    params = quantize.convert(params, bits) if bits else params
    text = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")
    # seeds for which no drawn number is so close to the border between two tokens that the last bit decides
    prompts = [(encoder.encode(text[i * 3000 :][:n]), 12, i + 1) for i, n in enumerate((5, 300, 80, 2, 40))]
    for temperature in 0, 0.8:
        expected = [
            gpt2.generate(ids, params, hparams["n_head"], n, temperature, seed=seed) for ids, n, seed in prompts
        ]
        prepared = kernels.prepare(params) if model is not gpt2 else params
        for module in model, variant(lookahead, gpt2=model):
            assert [
                module.generate(ids, prepared, hparams["n_head"], n, temperature, seed=seed) for ids, n, seed in prompts
            ] == expected
        over = variant(batch, gpt2=model)
        assert list(over.generate(prompts, prepared, hparams["n_head"], temperature, batch_size=3)) == expected


def test_any_number_of_threads():
    import numba

    params, hparams = MODELS["wide"]
    args = list(golden.inputs(hparams)), kernels.prepare(params), hparams["n_head"]
    found = []
    for n in 1, numba.config.NUMBA_NUM_THREADS:
        numba.set_num_threads(n)
        x = kernels.model.hidden_states(args[0], **args[1], n_head=args[2])
        found.append(x[:9] @ args[1]["wte"].T)
    np.testing.assert_array_equal(*found)


def test_compiled_code_is_cached_until_an_operation_changes(tmp_path):
    constant = "\n\n@intrinsic\ndef answer(typing):\n    return types.int32(), lambda *_: ir.Constant(I32, {})\n"
    use = "from lanes import answer, compiled\n@compiled\ndef f():\n    return answer()\nprint(f(), len(f.stats.cache_hits))\n"
    (tmp_path / "use.py").write_text(use)
    for number, hits in (1, 0), (1, 1), (2, 0):
        text = (ROOT / "beyond" / "fast" / "lanes.py").read_text("utf-8") + constant.format(number)
        if not hits:
            (tmp_path / "lanes.py").write_text(text)
        assert command("use.py", program=None, cwd=tmp_path).stdout.split() == [b"%d" % number, b"%d" % hits]


def test_a_product_of_wrong_sizes_is_an_error():
    w = kernels.prepare({"w": numbers(0, 64, 64)})["w"]
    for x in numbers(0, 2, 32), numbers(0, 3, 65), numbers(0, 32):
        with pytest.raises(ValueError):
            x @ w


def test_the_command(tmp_path):
    def run(*flags, **preset_flags):
        return in_process(preset("complete", **preset_flags), "ROMEO:", "--model_size=shakespeare", *flags)

    plain = run().stdout
    start = "-m", "beyond.kernels", "ROMEO:", "--model_size=shakespeare"
    assert command(*start, program=None, cwd=ROOT).stdout == plain
    guessed = run("--lookahead", kernels=True)
    assert guessed.stdout == plain and b" per pass" in guessed.stderr
    (tmp_path / "numba.py").write_text("raise ModuleNotFoundError(name='numba')")
    done = command(*start, program=None, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)})
    assert_error(done, "numba is not installed: pip install -r beyond/requirements.txt")
    assert_error(run("--bits=5", kernels=True), "bits=5 must be 8 or 4")
    assert_error(run("--weights=x", kernels=True), "weights='x'", "add --bits=8 or --bits=4")
