"""The inputs that tutorial/check.py uses, chosen to reveal mistakes that ordinary inputs hide.

    args, kwargs = inputs()["mha"][0]
    mha(*args, **kwargs)

Large scores overflow if the maximum is not subtracted. A row of equal numbers gives 0 / 0 if eps is missing. With as
many tokens as columns, a wrong axis raises no error, so the numbers reveal the mistake.
"""

import itertools

import numpy as np

from tutorial.mistakes import RIGHT

IDS = [46, 11, 307, 453, 436, 11, 258, 38, 373]  # a text for the shakespeare model; modulo n_vocab for others


def numbers(*shape, seed=0):
    """Random numbers with one decimal place."""
    return np.round(np.random.default_rng(seed).standard_normal(shape), 1).astype(np.float32)


def array(*rows):
    return np.array(rows, np.float32)


def causal(n_q, n_k):  # -> [n_q, n_k], 0 where a query may look, else -1e10; the last query is at the last key
    return ((1 - np.tri(n_q, n_k, n_k - n_q)) * -1e10).astype(np.float32)


def tiny(seed=0, n_vocab=11, n_ctx=24, n_embd=6, n_layer=2):
    """The params of a tiny model."""
    seeds = itertools.count(1000 * (seed + 1))

    def layer(n_in, n_out):
        return {"w": numbers(n_in, n_out, seed=next(seeds)), "b": numbers(n_out, seed=next(seeds))}

    def norm():
        return {"g": 1 + numbers(n_embd, seed=next(seeds)) / 2, "b": numbers(n_embd, seed=next(seeds))}

    blocks = [
        {
            "attn": {"c_attn": layer(n_embd, 3 * n_embd), "c_proj": layer(n_embd, n_embd)},
            "ln_1": norm(),
            "mlp": {"c_fc": layer(n_embd, 4 * n_embd), "c_proj": layer(4 * n_embd, n_embd)},
            "ln_2": norm(),
        }
        for _ in range(n_layer)
    ]
    return {
        "wte": numbers(n_vocab, n_embd, seed=next(seeds)),
        "wpe": numbers(n_ctx, n_embd, seed=next(seeds)),
        "blocks": blocks,
        "ln_f": norm(),
    }


def tiny_models():
    """The params of an ordinary model, of one with large scores, and of one with nearly or exactly constant rows."""
    usual, large, flat = tiny(1), tiny(2, n_vocab=6), tiny(3)  # 6 ids: wte is square
    for block in large["blocks"]:
        block["attn"]["c_attn"]["w"] *= 6  # exp of such a score overflows
    for name in "wte", "wpe":
        flat[name] *= 0.002
        flat[name][1] = 0
    return usual, large, flat


def attentive(seed):
    """The params of a tiny model whose next token depends on all previous tokens, not just the last."""
    params = tiny(seed)
    for block in params["blocks"]:
        block["attn"]["c_proj"]["w"] *= 4
    return params


def inputs(params=None, n_head=None):
    """{function: [(args, kwargs)]}, small cases first; then, if params is given, cases from that model."""
    cases = {**small_layers(), **{name: [] for name in ("mha", "transformer_block", "hidden_states", "gpt2")}}
    for model, n in itertools.product(tiny_models(), (3, 6, 1)):
        ids = [id % len(model["wte"]) for id in (4, 1, 8, 2, 7, 5)][:n]
        for heads in 2, 3:
            for name, case in whole_layers(ids, model, heads, past=None):
                cases[name].append(case)
        for past in 2, 0:
            for name, case in whole_layers(ids, model, 2, past):
                cases[name].append(case)
    cases["generate"] = [
        ((ids, attentive(seed), 2, n), {})
        for seed, ids, n in (
            (36, [2, 3], 8),
            (4, [4, 1, 9], 8),
            (40, [2, 3], 8),
            (5, [4, 1, 9], 8),
            (16, [7], 5),
            (6, [3, 8, 1, 5], 0),
            (13, [5, 6, 3, 1], 1),
        )
    ]
    if params is not None:
        for name, case in whole_layers([id % len(params["wte"]) for id in IDS], params, n_head, None):
            cases[name].append(case)
        for name, case in parts_of_a_model(params, n_head):
            cases[name].append(case)
    return cases


def small_layers():
    """{function: [(args, kwargs)]} for the functions that a block is built from."""
    row, many = array(2, 1, 0, -1), numbers(3, 3)
    flat = array([5, 5, 5, 5], [1e-3, -1e-3, 2e-3, -2e-3])
    g, b = array(1, 2, 3, 0.5), array(0, 1, -1, 2)
    c = array(0.5, 1.5, -2)
    square = {"c_fc": {"w": numbers(3, 3, seed=2), "b": c}, "c_proj": {"w": numbers(3, 3, seed=3), "b": -c / 2}}
    qkv = [
        [numbers(n, d, seed=10 * d + i) for i, n in enumerate((n_q, n_k, n_k))]
        for n_q, n_k, d in ((3, 3, 3), (3, 3, 2), (2, 3, 4), (1, 3, 2))
    ]
    qkv += [[array([16, 0], [0, 16], [-4, 3]), array([8, 16], [-16, 4], [16, 0]), array([1, 2], [3, 4], [5, 6])]]
    return {
        "gelu": [((array(-3, -1, 0, 1, 3),), {}), ((np.linspace(-8, 8, 24, dtype=np.float32).reshape(4, 6),), {})],
        "softmax": [((x,), {}) for x in (row, many, row + 1000, array(row, row + 1000), numbers(2, 3, 4))],
        "layer_norm": [
            ((x,), {"g": g[: x.shape[-1]], "b": b[: x.shape[-1]]})
            for x in (array([1, 2, 3, 4], [10, 20, 30, 70]), many, flat, numbers(5, 4))
        ],
        "linear": [
            ((array(1, 2),), {"w": array([1, 0, 10], [0, 1, 10]), "b": c}),
            ((many,), {"w": numbers(3, 3, seed=1), "b": c}),
            ((numbers(4, 2),), {"w": numbers(2, 3), "b": c}),
        ],
        "ffn": [((many,), square), ((numbers(3, 2),), tiny(n_embd=2)["blocks"][0]["mlp"])],
        "attention": [((q, k, v, causal(len(q), len(k))), {}) for q, k, v in qkv],
    }


def whole_layers(ids, params, n_head, past):
    """Yields (function, (args, kwargs)) for a block and for the model, with a cache unless past is None."""
    block = params["blocks"][0]
    x = params["wte"][ids] + params["wpe"][: len(ids)]
    kv, cache = {}, {}
    if past is not None:
        shape = len(params["blocks"]), 2, n_head, 10, x.shape[1] // n_head
        cache = {"cache": [*numbers(*shape, seed=5)], "past": past}
        kv = {"kv": cache["cache"][0], "past": past}
    yield "mha", ((x,), {**block["attn"], "n_head": n_head, **kv})
    yield "transformer_block", ((x,), {**block, "n_head": n_head, **kv})
    yield "hidden_states", ((ids,), {**params, "n_head": n_head, **cache})
    yield "gpt2", ((ids,), {**params, "n_head": n_head, **cache})


def parts_of_a_model(params, n_head):
    """Yields (function, (args, kwargs)) for the small layers of the first block and for generate."""
    ids = [id % len(params["wte"]) for id in IDS]
    block = params["blocks"][0]
    x = params["wte"][ids] + params["wpe"][: len(ids)]
    h = RIGHT["layer_norm"](x, **block["ln_1"])
    yield "layer_norm", ((x,), block["ln_1"])
    yield "linear", ((h,), block["mlp"]["c_fc"])
    yield "gelu", ((RIGHT["linear"](h, **block["mlp"]["c_fc"]),), {})
    yield "ffn", ((h,), block["mlp"])
    yield "generate", ((ids[:5], params, n_head, 8), {})
