"""Two learners who write the same functions in different styles, and the mistakes that they make.

ONE writes plain expressions and loops over the heads. OTHER works in place, on all heads at once, with a cache.
MADE[function][mistake] is [(learner, old, new, old, new, ...), ...]: the replacements that make the mistake.
"""

ONE = """
import math
import numpy as np

def gelu(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * np.power(x, 3))
    return x * (np.tanh(inner) + 1) / 2

def softmax(x):
    biggest = np.max(x, axis=-1, keepdims=True)
    powers = np.exp(x - biggest)
    return powers / np.sum(powers, axis=-1, keepdims=True)

def layer_norm(x, g, b, eps=1e-5):
    mean = np.mean(x, axis=-1, keepdims=True)
    variance = np.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return g * ((x - mean) / (variance + eps) ** 0.5) + b

def linear(x, w, b):
    return np.matmul(x, w) + b

def ffn(x, c_fc, c_proj):
    up = linear(x, c_fc["w"], c_fc["b"])
    bent = gelu(up)
    return linear(bent, c_proj["w"], c_proj["b"])

def attention(q, k, v, mask):
    d = q.shape[-1]
    scores = np.matmul(q, np.swapaxes(k, -1, -2)) / math.sqrt(d)
    weights = softmax(scores + mask)
    return np.matmul(weights, v)

def mha(x, c_attn, c_proj, n_head):
    n, width = x.shape
    qkv = linear(x, c_attn["w"], c_attn["b"])
    q, k, v = qkv[:, :width], qkv[:, width:2 * width], qkv[:, 2 * width:]
    key, query = np.arange(n)[None], np.arange(n)[:, None]
    mask = np.where(key > query, -1e10, 0).astype(np.float32)
    d, out = width // n_head, []
    for i in range(n_head):
        part = slice(i * d, (i + 1) * d)
        out.append(attention(q[:, part], k[:, part], v[:, part], mask))
    joined = np.concatenate(out, axis=-1)
    return linear(joined, c_proj["w"], c_proj["b"])

def transformer_block(x, mlp, attn, ln_1, ln_2, n_head):
    seen = layer_norm(x, ln_1["g"], ln_1["b"])
    middle = x + mha(seen, attn["c_attn"], attn["c_proj"], n_head)
    thought = layer_norm(middle, ln_2["g"], ln_2["b"])
    return middle + ffn(thought, mlp["c_fc"], mlp["c_proj"])

def gpt2(inputs, wte, wpe, blocks, ln_f, n_head):
    tokens = np.array([wte[id] for id in inputs])
    positions = np.array([wpe[i] for i in range(len(inputs))])
    x = tokens + positions
    for block in blocks:
        x = transformer_block(x, block["mlp"], block["attn"], block["ln_1"], block["ln_2"], n_head)
    x = layer_norm(x, ln_f["g"], ln_f["b"])
    return np.matmul(x, np.transpose(wte))

def generate(inputs, params, n_head, n_tokens_to_generate):
    text = [id for id in inputs]
    for step in range(n_tokens_to_generate):
        logits = gpt2(text, n_head=n_head, **params)
        best = logits[-1].argmax()
        text = text + [int(best)]
    return text[len(inputs):]
"""

OTHER = """
import math
import numpy as np

def gelu(x):
    y = x * x
    y *= x
    y *= 0.044715
    y += x
    y *= (2 / np.pi) ** 0.5
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y

def softmax(x):
    y = x - x.max(-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(-1, keepdims=True)
    return y

def layer_norm(x, g, b, eps=1e-5):
    y = x - x.mean(-1, keepdims=True)
    y /= np.sqrt((y * y).mean(-1, keepdims=True) + eps)
    y *= g
    y += b
    return y

def linear(x, w, b):
    y = x.dot(w)
    y += b
    return y

def ffn(x, c_fc, c_proj):
    h = linear(x, **c_fc)
    h = gelu(h)
    h = linear(h, **c_proj)
    return h

def attention(q, k, v, mask):
    s = np.einsum("...qd,...kd->...qk", q, k)
    s /= q.shape[-1] ** 0.5
    s += mask
    s = softmax(s)
    return np.einsum("...qk,...kd->...qd", s, v)

def mha(x, c_attn, c_proj, n_head, kv=None, past=0):
    n, e = x.shape
    y = linear(x, **c_attn)
    y = y.reshape(n, 3, n_head, e // n_head)
    q, k, v = np.moveaxis(y, 0, 2)
    if kv is not None:
        kv[0, :, past:past + n] = k
        kv[1, :, past:past + n] = v
        k, v = kv[0, :, :past + n], kv[1, :, :past + n]
    mask = np.triu(np.full((n, past + n), -1e10, x.dtype), past + 1)
    y = attention(q, k, v, mask)
    y = np.moveaxis(y, 0, 1).reshape(n, e)
    return linear(y, **c_proj)

def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, kv=None, past=0):
    y = mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)
    y += x
    z = ffn(layer_norm(y, **ln_2), **mlp)
    z += y
    return z

def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, cache=None, past=0):
    x = np.take(wte, inputs, axis=0)
    x += wpe[past:past + len(inputs)]
    for i in range(len(blocks)):
        x = transformer_block(x, **blocks[i], n_head=n_head, kv=cache[i] if cache else None, past=past)
    x = layer_norm(x, **ln_f)
    return np.dot(x, wte.T)

def generate(inputs, params, n_head, n_tokens_to_generate):
    d = params["wte"].shape[1] // n_head
    cache = [np.zeros((2, n_head, len(params["wpe"]), d), np.float32) for _ in params["blocks"]]
    new, fed, past = [], list(inputs), 0
    while len(new) < n_tokens_to_generate:
        row = gpt2(fed, **params, n_head=n_head, cache=cache, past=past)[-1]
        past += len(fed)
        fed = [int(row.argmax())]
        new += fed
    return new
"""

ERF = "np.array([math.erf(t / 2 ** 0.5) for t in x.ravel()], x.dtype).reshape(x.shape)"
DO_LN_1, DO_LN_2 = 'layer_norm(x, ln_1["g"], ln_1["b"])', 'layer_norm(middle, ln_2["g"], ln_2["b"])'
DO_MHA, DO_FFN = 'mha(seen, attn["c_attn"], attn["c_proj"], n_head)', 'ffn(thought, mlp["c_fc"], mlp["c_proj"])'
Y_MHA = "mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)"
Z_FFN = "ffn(layer_norm(y, **ln_2), **mlp)"
POSITIONS = "wpe[i] for i in range(len(inputs))"
RANGE = "    for i in range(len(blocks)):"
ONE_BLOCK = 'x = transformer_block(x, block["mlp"], block["attn"], block["ln_1"], block["ln_2"], n_head)'
ONE_LN_F = 'layer_norm(x, ln_f["g"], ln_f["b"])'
OTHER_BLOCK = "x = transformer_block(x, **blocks[i], n_head=n_head, kv=cache[i] if cache else None, past=past)"
FED = "row = gpt2(fed, **params, n_head=n_head, cache=cache, past=past)[-1]"
QKV = "q, k, v = qkv[:, :width], qkv[:, width:2 * width], qkv[:, 2 * width:]"
NO_INNER = "    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * np.power(x, 3))\n"
TANH = "x * (np.tanh(inner) + 1) / 2"

MADE = {
    "gelu": {
        "erf": [(ONE, TANH, f"x * ({ERF} + 1) / 2"), (OTHER, "    np.tanh(y, out=y)", f"    y = {ERF}")],
        "relu": [
            (ONE, TANH, "x * (x > 0)"),
            (OTHER, "    y = x * x\n", "    return np.where(x < 0, np.float32(0), x)\n    y = x * x\n"),
        ],
        "sigmoid": [
            (ONE, TANH, "x * (1 / (1 + np.exp(-1.702 * x)))"),
            (OTHER, "    y *= 0.5\n", "    y = np.exp(-1.702 * x)\n    y += 1\n    y = x / y\n"),
        ],
        "silu": [
            (ONE, TANH, "x * (1 / (1 + np.exp(-x)))"),
            (OTHER, "    y *= 0.5\n", "    y = x * 0.5 * (np.tanh(x / 2) + 1)\n"),
        ],
        "no 0.5": [(ONE, TANH, TANH[:-4]), (OTHER, "    y *= 0.5\n", "")],
        "no x": [(ONE, "return x * (np", "return (np"), (OTHER, "    y *= x\n    y *= 0.5", "    y *= 0.5")],
        "no 1 +": [(ONE, "(np.tanh(inner) + 1)", "np.tanh(inner)"), (OTHER, "    y += 1\n", "")],
        "wrong constant": [(ONE, "0.044715", "0.44715"), (OTHER, "0.044715", "0.004471500")],
        "wrong cube": [
            (ONE, "np.power(x, 3)", "np.power(x, 2)"),
            (OTHER, "    y += x\n", ""),
            (ONE, " + 0.044715 * np.power(x, 3)", ""),
            (ONE, "0.044715 * np.power(x, 3)", "np.power(0.044715 * x, 3)"),
            (OTHER, "    y *= x\n    y *= 0.0", "    y *= 0.0"),
        ],
        "wrong factor": [
            (ONE, "math.sqrt(2 / math.pi)", "(2 / math.pi)"),
            (OTHER, "(2 / np.pi) ** 0.5", "2 ** 0.5 / np.pi"),
            (ONE, "math.sqrt(2 / math.pi) * ", ""),
            (OTHER, "(2 / np.pi)", "(np.pi / 2)"),
        ],
    },
    "softmax": {
        "no maximum": [(ONE, "np.exp(x - biggest)", "np.exp(x)"), (OTHER, "x - x.max(-1, keepdims=True)", "x.copy()")],
        "one maximum for all rows": [
            (ONE, "np.max(x, axis=-1, keepdims=True)", "np.max(x)"),
            (OTHER, "x.max(-1, keepdims=True)", "x.max()"),
        ],
        "wrong axis": [
            (ONE, "axis=-1", "axis=0"),
            (OTHER, "(-1, keep", "(0, keep"),
            (ONE, "np.sum(powers, axis=-1", "np.sum(powers, axis=0"),
        ],
        "one sum for all rows": [
            (ONE, "np.sum(powers, axis=-1, keepdims=True)", "np.sum(powers)"),
            (OTHER, "y.sum(-1, keepdims=True)", "y.sum()"),
        ],
        "no keepdims": [(ONE, ", keepdims=True", ""), (OTHER, "y.sum(-1, keepdims=True)", "y.sum(-1)")],
        "no sum": [
            (ONE, " / np.sum(powers, axis=-1, keepdims=True)", ""),
            (OTHER, "    y /= y.sum(-1, keepdims=True)\n", ""),
        ],
        "log_softmax": [
            (
                ONE,
                "return powers / np.sum(powers, axis=-1, keepdims=True)",
                "return x - biggest - np.log(np.sum(powers, axis=-1, keepdims=True))",
            ),
            (OTHER, "    y /= y.sum(-1, keepdims=True)\n", "    y = np.log(y / y.sum(-1, keepdims=True))\n"),
        ],
        "no exponential": [(ONE, "np.exp(x - biggest)", "x"), (OTHER, "    np.exp(y, out=y)\n", "")],
    },
    "layer_norm": {
        "no eps": [(ONE, "(variance + eps)", "variance"), (OTHER, " + eps", "")],
        "eps outside the root": [
            (ONE, "(variance + eps) ** 0.5", "(variance ** 0.5 + eps)"),
            (OTHER, " + eps)", ") + eps", "y /= np.sqrt", "y /= 1 * np.sqrt"),
        ],
        "wrong eps": [(ONE, "eps=1e-5", "eps=1e-6"), (OTHER, "+ eps", "+ 1e-12")],
        "ddof": [
            (
                ONE,
                "np.mean((x - mean) ** 2, axis=-1, keepdims=True)",
                "np.sum((x - mean) ** 2, axis=-1, keepdims=True) / (x.shape[-1] - 1)",
            ),
            (OTHER, "(y * y).mean(-1, keepdims=True)", "y.var(-1, ddof=1, keepdims=True)"),
        ],
        "no square root": [(ONE, "(variance + eps) ** 0.5", "(variance + eps)"), (OTHER, "np.sqrt", "")],
        "no standard deviation": [
            (ONE, " / (variance + eps) ** 0.5", ""),
            (OTHER, "    y /= np.sqrt((y * y).mean(-1, keepdims=True) + eps)\n", ""),
        ],
        "no mean": [(ONE, "((x - mean) /", "(x /"), (OTHER, "    y /= np.sqrt((y * y)", "    y = x / np.sqrt((y * y)")],
        "mean of squares": [(ONE, "(x - mean) ** 2", "x ** 2"), (OTHER, "(y * y)", "(x * x)")],
        "wrong axis": [(ONE, "axis=-1", "axis=0"), (OTHER, "(-1, keepdims=True)", "()")],
        "no keepdims": [(ONE, ", keepdims=True", ""), (OTHER, "(-1, keepdims=True)", "(-1)")],
        "g and b swapped": [(ONE, "g * ((", "b * ((", ") + b", ") + g"), (OTHER, "*= g", "*= b", "+= b", "+= g")],
        "no g or b": [(ONE, "g * ((", "((", ") + b", ")"), (OTHER, "    y *= g\n", ""), (OTHER, "    y += b\n", "")],
        "b before g": [
            (ONE, "g * ((x - mean) / (variance + eps) ** 0.5) + b", "g * ((x - mean) / (variance + eps) ** 0.5 + b)"),
            (OTHER, "    y *= g\n    y += b\n", "    y += b\n    y *= g\n"),
        ],
    },
    "linear": {
        "no bias": [(ONE, " + b", ""), (OTHER, "    y += b\n", "")],
        "w transposed": [(ONE, "(x, w)", "(x, w.T)"), (OTHER, "x.dot(w)", "x.dot(w.swapaxes(0, 1))")],
        "w @ x": [(ONE, "(x, w)", "(w, x)"), (OTHER, "x.dot(w)", "w.dot(x)")],
        "b too early": [
            (ONE, "np.matmul(x, w) + b", "np.matmul(x + b, w)"),
            (OTHER, "    y = x.dot(w)\n    y += b\n", "    y = (x + b).dot(w)\n"),
        ],
        "elementwise product": [(ONE, "np.matmul(x, w)", "x * w"), (OTHER, "x.dot(w)", "np.multiply(x, w)")],
    },
    "ffn": {
        "no gelu": [(ONE, "gelu(up)", "up"), (OTHER, "    h = gelu(h)\n", "")],
        "gelu twice": [
            (
                ONE,
                'return linear(bent, c_proj["w"], c_proj["b"])',
                'return gelu(linear(bent, c_proj["w"], c_proj["b"]))',
            ),
            (OTHER, "    return h", "    return gelu(h)"),
        ],
        "gelu in the wrong place": [
            (ONE, "linear(x,", "linear(gelu(x),", "gelu(up)", "up"),
            (OTHER, "    h = gelu(h)\n    h = linear(h, **c_proj)\n", "    h = linear(h, **c_proj)\n    h = gelu(h)\n"),
        ],
        "layers swapped": [
            (
                ONE,
                'x, c_fc["w"], c_fc["b"]',
                'x, c_proj["w"], c_proj["b"]',
                'bent, c_proj["w"], c_proj["b"]',
                'bent, c_fc["w"], c_fc["b"]',
            ),
            (OTHER, "def ffn(x, c_fc, c_proj):", "def ffn(x, c_fc, c_proj):\n    c_fc, c_proj = c_proj, c_fc"),
        ],
        "residual inside": [
            (ONE, "return linear(bent", "return x + linear(bent"),
            (OTHER, "    return h", "    return h + x"),
        ],
        "no c_proj": [
            (ONE, 'linear(bent, c_proj["w"], c_proj["b"])', "bent"),
            (OTHER, "    h = linear(h, **c_proj)\n", ""),
        ],
    },
    "attention": {
        "no scale": [(ONE, " / math.sqrt(d)", ""), (OTHER, "    s /= q.shape[-1] ** 0.5\n", "")],
        "scale by d": [(ONE, "math.sqrt(d)", "d"), (OTHER, "q.shape[-1] ** 0.5", "k.shape[-1]")],
        "scale multiplied": [(ONE, "/ math.sqrt(d)", "* math.sqrt(d)"), (OTHER, "s /= q", "s *= q")],
        "scale by n": [(ONE, "d = q.shape[-1]", "d = len(q)"), (OTHER, "q.shape[-1]", "k.shape[-2]")],
        "scale after softmax": [
            (ONE, " / math.sqrt(d)", "", "return np.matmul(weights, v)", "return np.matmul(weights / math.sqrt(d), v)"),
            (
                OTHER,
                "    s /= q.shape[-1] ** 0.5\n",
                "",
                "    s = softmax(s)\n",
                "    s = softmax(s)\n    s /= q.shape[-1] ** 0.5\n",
            ),
        ],
        "no mask": [(ONE, "scores + mask", "scores"), (OTHER, "    s += mask\n", "")],
        "mask after softmax": [
            (ONE, "softmax(scores + mask)", "softmax(scores) + mask"),
            (OTHER, "    s += mask\n    s = softmax(s)\n", "    s = softmax(s)\n    s += mask\n"),
        ],
        "mask multiplied": [(ONE, "scores + mask", "scores * mask"), (OTHER, "s += mask", "s *= mask")],
        "mask subtracted": [(ONE, "scores + mask", "scores - mask"), (OTHER, "s += mask", "s -= mask")],
        "softmax over queries": [
            (ONE, "softmax(scores + mask)", "np.swapaxes(softmax(np.swapaxes(scores + mask, -1, -2)), -1, -2)"),
            (
                OTHER,
                "    s = softmax(s)",
                "    s = np.exp(s - s.max(-2, keepdims=True))\n    s /= s.sum(-2, keepdims=True)",
            ),
        ],
        "no softmax": [(ONE, "softmax(scores + mask)", "scores + mask"), (OTHER, "    s = softmax(s)\n", "")],
        "q and k swapped": [
            (ONE, "np.matmul(q, np.swapaxes(k, -1, -2))", "np.matmul(k, np.swapaxes(q, -1, -2))"),
            (OTHER, "...qd,...kd->...qk", "...qd,...kd->...kq"),
        ],
        "k instead of v": [(ONE, "(weights, v)", "(weights, k)"), (OTHER, "s, v)", "s, k)")],
    },
    "mha": {
        "no mask": [
            (ONE, "-1e10, 0)", "0, 0)"),
            (OTHER, "mask = np.triu(np.full((n, past + n), -1e10, x.dtype), past + 1)", "mask = 0"),
        ],
        "mask reversed": [
            (ONE, "key > query", "key < query"),
            (
                OTHER,
                "np.triu(np.full((n, past + n), -1e10, x.dtype), past + 1)",
                "np.tril(np.full((n, past + n), -1e10, x.dtype), past)",
            ),
        ],
        "mask positive": [(ONE, "-1e10", "1e10"), (OTHER, "-1e10", "1e10")],
        "mask too small": [(ONE, "-1e10", "-1"), (OTHER, "-1e10", "-10")],
        "mask is nan": [
            (ONE, "np.where(key > query, -1e10, 0)", "((key > query) * -np.inf)"),
            (
                OTHER,
                "np.triu(np.full((n, past + n), -1e10, x.dtype), past + 1)",
                "np.triu(np.ones((n, past + n), x.dtype), past + 1) * -np.inf",
            ),
        ],
        "mask hides the token itself": [(ONE, "key > query", "key >= query"), (OTHER, "past + 1)", "past)")],
        "mask off by one": [(ONE, "key > query", "key > query + 1"), (OTHER, "past + 1)", "past + 2)")],
        "q and k swapped": [
            (ONE, QKV, QKV.replace("q, k, v", "k, q, v")),
            (OTHER, "q, k, v = np.mo", "k, q, v = np.mo"),
        ],
        "wrong order of q, k, v": [
            (ONE, QKV, QKV.replace("q, k, v", "v, k, q")),
            (OTHER, "q, k, v = np.mo", "k, v, q = np.mo"),
        ],
        "heads split before q, k, v": [
            (
                ONE,
                QKV,
                "cut = qkv.reshape(n, n_head, 3, -1)\n    q, k, v = (cut[:, :, i].reshape(n, width) for i in range(3))",
            ),
            (OTHER, "y.reshape(n, 3, n_head, e // n_head)", "y.reshape(n, n_head, 3, e // n_head).swapaxes(1, 2)"),
        ],
        "heads by reshape alone": [
            (
                ONE,
                "    d, out = width // n_head, []\n",
                "    d, out = width // n_head, []\n    q, k, v = (np.hstack([*y.reshape(n_head, n, d)]) for y in (q, k, v))\n",
            ),
            (
                OTHER,
                "q, k, v = np.moveaxis(y, 0, 2)",
                "q, k, v = (z.reshape(n_head, n, -1) for z in np.split(y.reshape(n, -1), 3, axis=1))",
            ),
        ],
        "heads interleaved": [
            (ONE, "part = slice(i * d, (i + 1) * d)", "part = slice(i, None, n_head)"),
            (OTHER, "y.reshape(n, 3, n_head, e // n_head)", "y.reshape(n, 3, e // n_head, n_head).swapaxes(2, 3)"),
        ],
        "heads concatenated in the wrong order": [
            (ONE, "np.concatenate(out, axis=-1)", "np.concatenate(out, axis=0).reshape(n, width)"),
            (OTHER, "np.moveaxis(y, 0, 1).reshape(n, e)", "y.reshape(n, e)"),
            (ONE, "np.concatenate(out, axis=-1)", "np.stack(out, axis=-1).reshape(n, width)"),
            (ONE, "np.concatenate(out, axis=-1)", "np.concatenate(out[::-1], axis=-1)"),
        ],
        "one head": [
            (ONE, "d, out = width // n_head, []", "n_head, d, out = 1, width, []"),
            (OTHER, "    n, e = x.shape\n", "    n, e = x.shape\n    n_head = 1\n"),
        ],
        "scale by n_embd": [
            (ONE, "attention(q[:, part], k", "attention(q[:, part] / n_head ** 0.5, k"),
            (OTHER, "attention(q, k", "attention(q / (e / q.shape[-1]) ** 0.5, k"),
        ],
        "scale twice": [
            (ONE, "attention(q[:, part], k", "attention(q[:, part] / d ** 0.5, k"),
            (OTHER, "attention(q, k", "attention(q / q.shape[-1] ** 0.5, k"),
        ],
        "no c_proj": [
            (ONE, 'linear(joined, c_proj["w"], c_proj["b"])', "joined"),
            (OTHER, "return linear(y, **c_proj)", "return y"),
        ],
        "no bias": [
            (ONE, 'linear(joined, c_proj["w"], c_proj["b"])', 'joined @ c_proj["w"]'),
            (OTHER, "linear(x, **c_attn)", 'x @ c_attn["w"]'),
        ],
        "residual inside": [
            (ONE, "return linear(joined", "return x + linear(joined"),
            (OTHER, "return linear(y", "return x + linear(y"),
        ],
        "mask ignores past": [
            (OTHER, "past + 1)", "1)"),
            (
                OTHER,
                "np.triu(np.full((n, past + n), -1e10, x.dtype), past + 1)",
                "np.where(np.arange(n)[:, None] < np.arange(past + n), -1e10, 0).astype(x.dtype)",
            ),
        ],
        "cache written at the start": [
            (OTHER, "kv[0, :, past:past + n]", "kv[0, :, :n]", "kv[1, :, past:past + n]", "kv[1, :, :n]"),
            (OTHER, "kv[0, :, past:past + n] = k\n        kv[1, :, past:past + n] = v", "kv[:, :, 0:n] = k, v"),
        ],
        "keys and values swapped in the cache": [
            (
                OTHER,
                "kv[0, :, past:past + n] = k",
                "kv[0, :, past:past + n] = v",
                "kv[1, :, past:past + n] = v",
                "kv[1, :, past:past + n] = k",
                "k, v = kv[0",
                "v, k = kv[0",
            ),
            (
                OTHER,
                "kv[0, :, p",
                "kv[-1, :, p",
                "kv[1, :, p",
                "kv[-2, :, p",
                "k, v = kv[0, :, :past + n], kv[1, :, :past + n]",
                "v, k = kv[:, :, :past + n]",
            ),
        ],
        "cache not filled": [
            (
                OTHER,
                "        kv[0, :, past:past + n] = k\n",
                "        kv = np.array(kv)\n        kv[0, :, past:past + n] = k\n",
            ),
            (
                OTHER,
                "        kv[0, :, past:past + n] = k\n        kv[1, :, past:past + n] = v\n        k, v = kv[0, :, :past + n], kv[1, :, :past + n]\n",
                "        k, v = np.hstack([kv[0, :, :past], k]), np.hstack([kv[1, :, :past], v])\n",
            ),
        ],
    },
    "transformer_block": {
        "no residual around mha": [(ONE, "x + mha", "mha"), (OTHER, "    y += x\n", "")],
        "no residual around ffn": [(ONE, "middle + ffn", "ffn"), (OTHER, "    z += y\n", "")],
        "no residuals": [
            (ONE, "x + mha", "mha", "middle + ffn", "ffn"),
            (OTHER, "    y += x\n", "", "    z += y\n", ""),
        ],
        "post-norm": [
            (
                ONE,
                f"seen = {DO_LN_1}",
                "seen = x",
                f"x + {DO_MHA}",
                f'layer_norm(x + {DO_MHA}, ln_1["g"], ln_1["b"])',
                f"thought = {DO_LN_2}",
                "thought = middle",
                f"middle + {DO_FFN}",
                f'layer_norm(middle + {DO_FFN}, ln_2["g"], ln_2["b"])',
            ),
            (
                OTHER,
                "layer_norm(x, **ln_1)",
                "x",
                "    y += x\n",
                "    y += x\n    y = layer_norm(y, **ln_1)\n",
                "layer_norm(y, **ln_2)",
                "y",
                "    return z",
                "    return layer_norm(z, **ln_2)",
            ),
        ],
        "norm after the branch": [
            (
                ONE,
                f"seen = {DO_LN_1}",
                "seen = x",
                DO_MHA,
                f'layer_norm({DO_MHA}, ln_1["g"], ln_1["b"])',
                f"thought = {DO_LN_2}",
                "thought = middle",
                DO_FFN,
                f'layer_norm({DO_FFN}, ln_2["g"], ln_2["b"])',
            ),
            (
                OTHER,
                Y_MHA,
                "layer_norm(mha(x, **attn, n_head=n_head, kv=kv, past=past), **ln_1)",
                Z_FFN,
                "layer_norm(ffn(y, **mlp), **ln_2)",
            ),
        ],
        "same layer norm twice": [(ONE, 'ln_2["g"], ln_2["b"]', 'ln_1["g"], ln_1["b"]'), (OTHER, "**ln_1", "**ln_2")],
        "layer norms swapped": [
            (
                ONE,
                'x, ln_1["g"], ln_1["b"]',
                'x, ln_2["g"], ln_2["b"]',
                'middle, ln_2["g"], ln_2["b"]',
                'middle, ln_1["g"], ln_1["b"]',
            ),
            (OTHER, "    y = mha", "    ln_1, ln_2 = ln_2, ln_1\n    y = mha"),
        ],
        "no layer norm": [
            (ONE, f"seen = {DO_LN_1}", "seen = x"),
            (OTHER, "layer_norm(y, **ln_2)", "y"),
            (OTHER, "layer_norm(x, **ln_1)", "x", "layer_norm(y, **ln_2)", "y"),
        ],
        "residual from the normalized x": [
            (ONE, "middle = x + mha", "middle = seen + mha"),
            (OTHER, f"    z = {Z_FFN}", "    y = layer_norm(y, **ln_2)\n    z = ffn(y, **mlp)"),
        ],
        "parallel branches": [(ONE, "layer_norm(middle,", "layer_norm(x,"), (OTHER, "layer_norm(y,", "layer_norm(x,")],
        "second residual from the first x": [(ONE, "return middle +", "return x +"), (OTHER, "z += y", "z += x")],
        "ffn first": [
            (
                ONE,
                DO_LN_1,
                "LN1",
                DO_LN_2,
                'layer_norm(middle, ln_1["g"], ln_1["b"])',
                "LN1",
                'layer_norm(x, ln_2["g"], ln_2["b"])',
                DO_MHA,
                "MHA",
                DO_FFN,
                'mha(thought, attn["c_attn"], attn["c_proj"], n_head)',
                "MHA",
                'ffn(seen, mlp["c_fc"], mlp["c_proj"])',
            ),
            (
                OTHER,
                f"    y = {Y_MHA}\n",
                "    y = ffn(layer_norm(x, **ln_2), **mlp)\n",
                f"    z = {Z_FFN}\n",
                "    z = mha(layer_norm(y, **ln_1), **attn, n_head=n_head, kv=kv, past=past)\n",
            ),
        ],
        "past not passed on": [(OTHER, "past=past)", "past=0)"), (OTHER, "kv=kv, past=past)", "kv=kv)")],
        "cache not passed on": [
            (OTHER, "kv=kv,", "kv=None,"),
            (OTHER, "n_head=n_head, kv=kv, past", "n_head=n_head, past"),
        ],
    },
    "hidden_states": {
        "no wpe": [(ONE, "tokens + positions", "tokens"), (OTHER, "    x += wpe[past:past + len(inputs)]\n", "")],
        "no wte": [
            (ONE, "tokens + positions", "positions"),
            (OTHER, "x += wpe[past:past + len(inputs)]", "x = wpe[past:past + len(inputs)]"),
        ],
        "positions shifted": [
            (ONE, POSITIONS, "wpe[i + 1] for i in range(len(inputs))"),
            (OTHER, "wpe[past:past + len(inputs)]", "wpe[past + 1:past + 1 + len(inputs)]"),
            (ONE, POSITIONS, "wpe[i - 1] for i in range(len(inputs))"),
            (ONE, POSITIONS, "wpe[i] for i in range(len(wpe) - len(inputs), len(wpe))"),
        ],
        "positions reversed": [
            (ONE, "tokens + positions", "tokens + positions[::-1]"),
            (OTHER, "wpe[past:past + len(inputs)]", "wpe[np.arange(past, past + len(inputs))[::-1]]"),
        ],
        "one position for all tokens": [
            (ONE, "wpe[i] for", "wpe[0] for"),
            (OTHER, "wpe[past:past + len(inputs)]", "wpe[len(inputs)]"),
        ],
        "wpe indexed by id": [
            (ONE, POSITIONS, "wpe[i] for i in inputs"),
            (OTHER, "wpe[past:past + len(inputs)]", "wpe[list(inputs)]"),
        ],
        "embeddings multiplied": [(ONE, "tokens + positions", "tokens * positions"), (OTHER, "x += wpe", "x *= wpe")],
        "embeddings scaled": [
            (ONE, "tokens + positions", "tokens * math.sqrt(wte.shape[1]) + positions"),
            (OTHER, "    x += wpe", "    x *= len(wte[0]) ** 0.5\n    x += wpe"),
        ],
        "no ln_f": [(ONE, f"    x = {ONE_LN_F}\n", ""), (OTHER, "    x = layer_norm(x, **ln_f)\n", "")],
        "ln_f after each block": [
            (ONE, f"    x = {ONE_LN_F}\n", f"        x = {ONE_LN_F}\n"),
            (OTHER, OTHER_BLOCK, f"x = layer_norm({OTHER_BLOCK[4:]}, **ln_f)"),
        ],
        "ln_f too early": [
            (
                ONE,
                f"    x = {ONE_LN_F}\n",
                "",
                "    for block in blocks",
                f"    x = {ONE_LN_F}\n    for block in blocks",
            ),
            (OTHER, "    x = layer_norm(x, **ln_f)\n", "", RANGE, "    x = layer_norm(x, **ln_f)\n" + RANGE),
        ],
        "blocks skipped": [
            (ONE, ONE_BLOCK, ONE_BLOCK.replace("x =", "y ="), ONE_LN_F, ONE_LN_F.replace("(x", "(y")),
            (OTHER, "range(len(blocks))", "range(1)"),
            (OTHER, "range(len(blocks))", "range(len(blocks) - 1)"),
            (ONE, "in blocks:", "in blocks[1:]:"),
        ],
        "blocks in reverse": [
            (ONE, "in blocks:", "in reversed(blocks):"),
            (OTHER, "range(len(blocks))", "range(len(blocks) - 1, -1, -1)"),
        ],
        "residual around the block": [
            (ONE, ONE_BLOCK, ONE_BLOCK.replace("x = ", "x = x + ")),
            (OTHER, OTHER_BLOCK, OTHER_BLOCK.replace("x = ", "x += ")),
        ],
        "position ignores past": [
            (OTHER, "wpe[past:past + len(inputs)]", "wpe[:len(inputs)]"),
            (OTHER, "wpe[past:past + len(inputs)]", "wpe[np.arange(len(inputs))]"),
        ],
        "past not passed on": [
            (OTHER, OTHER_BLOCK, OTHER_BLOCK.replace("past=past", "past=0")),
            (OTHER, OTHER_BLOCK, OTHER_BLOCK.replace(", past=past", "")),
        ],
    },
    "gpt2": {
        "softmax at the end": [
            (ONE, "return np.matmul(x, np.transpose(wte))", "return softmax(np.matmul(x, np.transpose(wte)))"),
            (OTHER, "np.dot(x, wte.T)", "softmax(x @ wte.T)"),
        ],
        "last row only": [
            (ONE, "np.matmul(x, np", "np.matmul(x[-1], np"),
            (OTHER, "np.dot(x, wte.T)", "np.dot(x, wte.T)[len(inputs) - 1]"),
        ],
        "no projection": [
            (ONE, "return np.matmul(x, np.transpose(wte))", "return x"),
            (OTHER, "return np.dot(x, wte.T)", "return x"),
        ],
        "wte not transposed": [(ONE, "np.transpose(wte)", "wte"), (OTHER, "wte.T", "wte")],
    },
    "generate": {
        "prompt included": [(ONE, "text[len(inputs):]", "text"), (OTHER, "return new", "return list(inputs) + new")],
        "last prompt id included": [
            (ONE, "text[len(inputs):]", "text[len(inputs) - 1:]"),
            (OTHER, "return new", "return [inputs[-1], *new]"),
        ],
        "slice from the end": [
            (ONE, "text[len(inputs):]", "text[-n_tokens_to_generate:]"),
            (OTHER, "return new", "return (list(inputs) + new)[-n_tokens_to_generate:]"),
        ],
        "one token too many": [
            (ONE, "range(n_tokens_to_generate)", "range(n_tokens_to_generate + 1)"),
            (OTHER, "len(new) < n", "len(new) <= n"),
        ],
        "one token too few": [
            (ONE, "range(n_tokens_to_generate)", "range(1, n_tokens_to_generate)"),
            (OTHER, "return new", "return new[1:]"),
        ],
        "only the last id returned": [
            (ONE, "text[len(inputs):]", "text[-1:]"),
            (OTHER, "return new", "return (list(inputs) + new)[-1:]"),
        ],
        "first row": [(ONE, "logits[-1]", "logits[0]"), (OTHER, "past=past)[-1]", "past=past)[0]")],
        "wrong row": [
            (ONE, "logits[-1]", "logits[max(len(text) - 2, 0)]"),
            (OTHER, "past=past)[-1]", "past=past)[-2:][0]"),
        ],
        "least probable token": [(ONE, "argmax", "argmin"), (OTHER, "row.argmax()", "(-row).argmax()")],
        "argmax over all rows": [
            (ONE, "logits[-1].argmax()", "logits.argmax()"),
            (OTHER, "past=past)[-1]", "past=past)"),
        ],
        "new ids not fed back": [
            (ONE, "gpt2(text,", "gpt2(inputs,"),
            (OTHER, FED, FED.replace("fed,", "inputs,").replace("past=past", "past=0")),
        ],
        "only the newest id read": [
            (ONE, "gpt2(text,", "gpt2(text if step == 0 else text[-1:],"),
            (OTHER, "cache=cache, past=past", ""),
        ],
        "only the last id read": [
            (ONE, "gpt2(text,", "gpt2(text[-1:],"),
            (OTHER, "list(inputs), 0", "list(inputs)[-1:], 0", "cache=cache, past=past", ""),
        ],
        "prompt not cached": [
            (OTHER, "list(inputs), 0", "list(inputs)[-1:], len(inputs) - 1"),
            (OTHER, "    while", "    fed, past = [inputs[-1]], len(inputs) - 1\n    while"),
        ],
        "wrong past": [
            (OTHER, "past += len(fed)", "past += 1"),
            (OTHER, "past += len(fed)", "past = len(new) + 1"),
        ],
    },
}
