import ast
import copy
import subprocess
import sys
import textwrap

from conftest import ROOT, flat, nested
import golden
import numpy as np
import pytest

import gpt2
import gpt2_pico

GOLDEN = np.load(golden.PATH)
LONG = {"n_vocab": 101, "n_ctx": 600, "n_embd": 24, "n_head": 4, "n_layer": 2}  # for prompts of more than two chunks


def model(hparams):
    return nested(golden.weights(hparams))


def random_model(seed, **hparams):
    rng = np.random.default_rng(seed)
    return nested(
        {
            name: (name.endswith("/g") + 0.4 * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in golden.shapes(**hparams).items()
        }
    )


@pytest.mark.parametrize("module", [gpt2, gpt2_pico])
@pytest.mark.parametrize("name", golden.CONFIGS)
def test_logits_equal_hugging_faces(module, name):
    hparams = golden.CONFIGS[name]
    logits = module.gpt2(golden.inputs(hparams), **model(hparams), n_head=hparams["n_head"])
    assert logits.dtype == np.float32 and logits.shape == (hparams["n_ctx"], hparams["n_vocab"])
    np.testing.assert_allclose(logits, GOLDEN[name], rtol=1e-4, atol=3e-5)
    listed = module.gpt2(list(golden.inputs(hparams)), **model(hparams), n_head=hparams["n_head"])
    np.testing.assert_array_equal(listed, logits)


# --- the small layers, against the formulas of the papers in float64 ---

X = np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32)


def check(result, expected, shape):
    assert result.dtype == np.float32 and result.shape == shape
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=5e-6)


def test_gelu():
    from math import erf

    x = np.linspace(-6, 6, 241, dtype=np.float32)
    exact = np.array([value * 0.5 * (1 + erf(value / 2**0.5)) for value in x.tolist()])
    assert np.abs(gpt2.gelu(x) - exact).max() < 5e-4  # the error of the tanh approximation
    wide = x.astype(np.float64)
    check(gpt2.gelu(x), 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))), x.shape)
    assert gpt2.gelu(np.float32([-1e4, 1e4])).tolist() == [0, 1e4]


def test_softmax():
    x = np.float64(X)
    check(gpt2.softmax(X), np.exp(x) / np.exp(x).sum(-1, keepdims=True), X.shape)
    np.testing.assert_allclose(gpt2.softmax(np.float32([[1e30, -1e30, 1e30]])), [[0.5, 0, 0.5]])


def test_layer_norm_and_linear():
    g, b, w = X[0], X[1], np.outer(X[2], X[3])
    x = np.float64(X)
    check(
        gpt2.layer_norm(X, g, b),
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * g + b,
        X.shape,
    )
    check(gpt2.linear(X, w, b), x @ w + b, X.shape)
    x = x / 500  # so that eps matters
    check(
        gpt2.layer_norm(X / np.float32(500), 1, 0),
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5),
        X.shape,
    )


def test_attention_and_mha_equal_a_loop_over_positions():
    """And over heads, in float64. It needs no mask: each query gets only the keys up to its own position."""
    rng, n_head, d = np.random.default_rng(2), 3, 4
    c_attn = {"w": rng.standard_normal((12, 36)).astype("f"), "b": rng.standard_normal(36).astype("f")}
    c_proj = {"w": rng.standard_normal((12, 12)).astype("f"), "b": rng.standard_normal(12).astype("f")}
    qkv = np.float64(X) @ c_attn["w"] + c_attn["b"]
    rows = []
    for i in range(5):
        heads = []
        for head in range(n_head):
            q, k, v = (qkv[:, part * 12 + head * d : part * 12 + (head + 1) * d] for part in range(3))
            weights = np.exp(k[: i + 1] @ q[i] / d**0.5)
            heads.append(weights / weights.sum() @ v[: i + 1])
            if i == 4:  # attention itself, [n_q, d], without heads: its last query needs no mask
                check(gpt2.attention(np.float32(q), np.float32(k), np.float32(v), 0)[4:], heads[-1][None], (1, d))
        rows.append(np.concatenate(heads) @ c_proj["w"] + c_proj["b"])
    check(gpt2.mha(X, c_attn, c_proj, n_head), np.array(rows), X.shape)


@pytest.mark.parametrize("module", [gpt2, gpt2_pico])
def test_the_mask_holds_for_the_highest_scores(module):
    """The first query scores 20,000 with its own key and up to 100,000 with later ones."""
    c_attn = {"w": np.tile(100 * np.eye(12, dtype=np.float32), 3), "b": np.zeros(36, np.float32)}
    c_proj = {"w": np.eye(12, dtype=np.float32), "b": np.zeros(12, np.float32)}
    x = np.outer(np.arange(1, 6), np.ones(12)).astype(np.float32)
    np.testing.assert_allclose(module.mha(x, c_attn, c_proj, 3), 100 * x, rtol=1e-6)


def test_the_block_adds_to_its_input():
    hparams = golden.CONFIGS["wide"]
    block = copy.deepcopy(model(hparams)["blocks"][0])
    x = np.random.default_rng(3).standard_normal((7, 66)).astype(np.float32)
    assert (
        gpt2.ffn(x, **block["mlp"]).shape == x.shape and gpt2.transformer_block(x, **block, n_head=3).shape == x.shape
    )
    for layer in block["attn"]["c_proj"], block["mlp"]["c_proj"]:
        layer["w"], layer["b"] = layer["w"] * 0, layer["b"] * 0
    np.testing.assert_array_equal(gpt2.transformer_block(x, **block, n_head=3), x)


def test_arguments_are_not_modified():
    params = random_model(0, **LONG)
    for _, array in flat(params):
        array.flags.writeable = False  # writing into a parameter would raise
    x = X.copy()
    x.flags.writeable = False
    gpt2.gelu(x), gpt2.softmax(x), gpt2.layer_norm(x, x[0], x[1]), gpt2.linear(x, x.T, x[:, 0])
    gpt2.attention(x, x, x, 0), gpt2.transformer_block(np.tile(x, 2), **params["blocks"][0], n_head=4)
    inputs = [1, 2, 3]
    gpt2.generate(inputs, params, 4, 5, temperature=1, top_k=3, top_p=0.5, seed=1)
    assert inputs == [1, 2, 3]


def test_no_token_sees_later_ones():
    params = random_model(0, **LONG)
    ids = np.arange(50)
    before = gpt2.gpt2(ids, **params, n_head=4)
    after = gpt2.gpt2(np.where(ids < 30, ids, 99 - ids), **params, n_head=4)
    np.testing.assert_allclose(before[:30], after[:30], atol=1e-4)
    assert np.abs(before[30:] - after[30:]).max() > 1


# --- generation ---


@pytest.mark.parametrize("n_prompt", [1, 2, 17, 255, 256, 257, 511, 513, 560])
def test_the_cache_changes_nothing(n_prompt):
    for seed in range(3):
        params = random_model(seed, **LONG)
        inputs = np.random.default_rng(seed).integers(0, 101, n_prompt)
        ids = gpt2.generate(inputs, params, 4, 40)
        assert ids == gpt2_pico.generate(inputs, params, 4, 40) and all(type(id) is int for id in ids)
        assert len(ids) == 40 and gpt2.generate(inputs, params, 4, 11) == ids[:11]


def test_hidden_states_in_chunks_equal_those_of_one_pass():
    params = random_model(0, **LONG)
    ids = np.arange(90) % 101
    whole = gpt2.hidden_states(ids, **params, n_head=4)
    cache = gpt2.new_cache(params, 4, 90)
    past = 0
    for n in 1, 30, 1, 50, 8:
        part = gpt2.hidden_states(ids[past : past + n], **params, n_head=4, cache=cache, past=past)
        assert part.dtype == np.float32 and part.shape == (n, 24)
        np.testing.assert_allclose(part, whole[past : past + n], atol=1e-4)
        past += n


@pytest.mark.parametrize("generate", [gpt2.generate, gpt2_pico.generate])
def test_the_context_is_filled_exactly_and_no_more(generate):
    hparams = golden.CONFIGS["wide"]
    params = model(hparams)
    assert len(generate([1] * 40, params, 3, 8)) == 8 and generate([1] * 48, params, 3, 0) == []
    with pytest.raises(
        ValueError,
        match="40 tokens and n_tokens_to_generate=9 make 49, but the model's context is 48: ask for at most 8",
    ):
        generate([1] * 40, params, 3, 9)
    with pytest.raises(ValueError, match="shorten the prompt by at least 11"):
        generate([1] * 50, params, 3, 9)
    for inputs in [], [61], [3, -1], [None], [0.5]:
        with pytest.raises(ValueError, match="token ids from 0 to 60"):
            generate(inputs, params, 3, 1)
    for n in -1, 1.5, "3", None, True, float("nan"):
        with pytest.raises(ValueError, match="n_tokens_to_generate=.* must be an integer of at least 0"):
            generate([1], params, 3, n)


def test_generation_stops_before_the_stop_token():
    params = random_model(0, **LONG)
    ids = gpt2.generate([5], params, 4, 30)
    stop = ids[9]
    assert gpt2.generate([5], params, 4, 30, stop=stop) == ids[: ids.index(stop)]
    at = max(i for i, id in enumerate(ids) if ids[i - 1] != id)  # in the prompt it is an ordinary token
    assert gpt2.generate([5, *ids[:at]], params, 4, 1, stop=ids[at - 1]) == [ids[at]]


class Rng:
    def choice(self, n, p):
        assert abs(p.sum() - 1) < 1e-12 and len(p) == n
        self.p = p
        return np.argmax(p)


@pytest.mark.parametrize("warp, expected", list(zip(golden.WARPS, GOLDEN["warps"])), ids=map(str, golden.WARPS))
def test_sampling_equals_hugging_faces(warp, expected):
    rng = Rng()
    scores = golden.SCORES.copy()
    gpt2.sample(scores, *warp, rng)
    np.testing.assert_array_equal(scores, golden.SCORES)
    # sorted, because the sort decides which of several equal scores reach top_p
    np.testing.assert_allclose(np.sort(rng.p), np.sort(expected), rtol=1e-6)
    np.testing.assert_array_equal(np.sort(golden.SCORES[rng.p > 0]), np.sort(golden.SCORES[expected > 0]))


def test_sampling_follows_the_probabilities():
    rng = np.random.default_rng(0)
    logits = np.log(np.float32([0.5, 0.3, 0.15, 0.05]))
    counts = np.bincount([gpt2.sample(logits, 1.0, None, None, rng) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    assert {gpt2.sample(logits, 1e-300, None, None, rng) for _ in range(20)} == {0}
    assert {gpt2.sample(logits, 1e300, 2, None, rng) for _ in range(50)} == {0, 1}


@pytest.mark.parametrize("top_p, kept", [(0, 1), (0.25, 1), (0.3, 2), (0.5, 2), (0.75, 3), (0.8, 4), (1, 4)])
def test_top_p_is_the_smallest_set_that_reaches_it(top_p, kept):
    rng = Rng()  # four equal scores have a probability of exactly a quarter each
    gpt2.sample(np.zeros(4, np.float32), 1.0, None, top_p, rng)
    assert (rng.p > 0).sum() == kept
    gpt2.sample(np.tile(np.float32([0, 1]), 32), 1.0, None, top_p, rng)  # the first of equal ones, on every machine
    best_first = [*range(1, 64, 2), *range(0, 64, 2)]
    assert np.flatnonzero(rng.p).tolist() == sorted(best_first[: np.count_nonzero(rng.p)])


def test_the_seed_decides():
    params = random_model(0, **LONG)
    draw = lambda seed: gpt2.generate([5], params, 4, 30, temperature=2, seed=seed)
    assert draw(0) == draw(0) != draw(1) == draw(1) != draw(2) and draw(None) != draw(None)
    assert gpt2.generate([5], params, 4, 30, temperature=2, top_k=1) == gpt2.generate([5], params, 4, 30)


@pytest.mark.parametrize(
    "option, values",
    {
        "temperature": [-1, "hot", float("nan"), float("inf"), None],
        "top_k": [0, -1, 1.5, "x", True],
        "top_p": [-0.1, 1.1, float("nan"), "x"],
        "seed": [-1, 0.5, "x"],
    }.items(),
    ids=str,
)
def test_options_out_of_range(option, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{option}={value!r} must be an? "):
            gpt2.generate([5], random_model(0, **LONG), 4, 1, **{option: value})


# --- JAX, and the source itself ---


def test_the_unchanged_forward_pass_runs_under_jax():
    """In its own process, as it replaces gpt2's numpy: jit, vmap, and grad against finite differences."""
    pytest.importorskip("jax")
    subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent("""
        import conftest, golden, gpt2, jax, numpy as np
        from test_gpt2 import GOLDEN, model
        hparams = golden.CONFIGS["wide"]
        params, ids, n_head = model(hparams), golden.inputs(hparams), hparams["n_head"]
        gpt2.np = jax.numpy
        forward = lambda ids, params: gpt2.gpt2(ids, **params, n_head=n_head)
        jit = jax.jit(forward)
        assert jit(ids, params).dtype == np.float32
        np.testing.assert_allclose(jit(ids, params), GOLDEN["wide"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(forward(list(ids), params), GOLDEN["wide"], rtol=1e-3, atol=1e-4)
        batch = np.stack([ids, ids[::-1], (ids + 5) % 61])
        each = np.stack([jit(row, params) for row in batch])
        np.testing.assert_allclose(jax.vmap(lambda row: forward(row, params))(batch), each, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(jax.jit(jax.vmap(forward, (0, None)))(batch, params), each, rtol=1e-3, atol=1e-4)

        jax.config.update("jax_enable_x64", True)  # finite differences need the digits
        params = jax.tree_util.tree_map(lambda array: np.asarray(array, np.float64), params)
        loss = lambda params: -jax.nn.log_softmax(forward(ids[:-1], params))[np.arange(len(ids) - 1), ids[1:]].mean()
        gradient = jax.grad(loss)(params)
        rng = np.random.default_rng(0)
        leaves, tree = jax.tree_util.tree_flatten(params)
        for i, leaf in enumerate(leaves):
            direction = [np.zeros_like(other) for other in leaves]
            direction[i] = rng.standard_normal(leaf.shape)
            step = lambda h: loss(jax.tree_util.tree_unflatten(tree, [a + h * d for a, d in zip(leaves, direction)]))
            slope = (step(1e-5) - step(-1e-5)) / 2e-5
            np.testing.assert_allclose((jax.tree_util.tree_leaves(gradient)[i] * direction[i]).sum(), slope, rtol=1e-4, atol=1e-8)
    """),
        ],
        cwd=ROOT / "tests",
        check=True,
    )


def top_imports(path):
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


def test_nothing_imports_upward():
    assert list(top_imports(ROOT / "gpt2.py")) == ["numpy"]
    assert not {"gpt2", "gpt2_pico", "tensorflow", "jax"} & set(top_imports(ROOT / "utils.py"))
    assert not {"gpt2", "gpt2_pico", "utils", "numpy"} & set(top_imports(ROOT / "encoder.py"))


def test_the_model_in_pico_has_at_most_40_lines():
    source = (ROOT / "gpt2_pico.py").read_text("utf-8")
    assert source[: source.index("def generate")].count("\n") <= 40
