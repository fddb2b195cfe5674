"""The mistakes that tutorial/check.py recognizes: the correct functions, and a table of common ways to get them wrong.

First come the functions of gpt2.py, written as plainly as possible, then the table. A row is

    Mistake(function, name, message, (right, wrong), ...)

The mistake is made by replacing the text `right` with the text `wrong` in the source of the function. A tuple of four
texts makes two replacements at once; several tuples are several ways to make the same mistake. The checker runs each
result to see whether it gives the same numbers as the reader's function.
"""

import functools
import inspect
import math
import re

import numpy as np


def gelu(x):  # any shape -> same shape
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x ** 3)))


def softmax(x):  # [..., n] -> [..., n]
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, g, b, eps=1e-5):  # [..., n_embd] -> [..., n_embd]
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * g + b


def linear(x, w, b):  # [..., n_in], [n_in, n_out], [n_out] -> [..., n_out]
    return x @ w + b


def ffn(x, c_fc, c_proj):  # [n_seq, n_embd] -> [n_seq, n_embd]
    h = gelu(linear(x, **c_fc))
    return linear(h, **c_proj)


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [n_q, n_k] -> [..., n_q, d]
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    return softmax(scores + mask) @ v


def mha(x, c_attn, c_proj, n_head, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    n_seq, n_embd = x.shape
    q, k, v = np.split(linear(x, **c_attn), 3, axis=-1)
    q, k, v = [y.reshape(n_seq, n_head, -1).swapaxes(0, 1) for y in (q, k, v)]  # [n_head, n_seq, d]
    if kv is not None:
        kv[0, :, past:past + n_seq], kv[1, :, past:past + n_seq] = k, v
        k, v = kv[:, :, :past + n_seq]
    mask = (1 - np.tri(n_seq, past + n_seq, past, dtype=x.dtype)) * -1e10
    heads = attention(q, k, v, mask)
    return linear(heads.swapaxes(0, 1).reshape(n_seq, n_embd), **c_proj)


def transformer_block(x, mlp, attn, ln_1, ln_2, n_head, kv=None, past=0):  # [n_seq, n_embd] -> [n_seq, n_embd]
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)
    return x + ffn(layer_norm(x, **ln_2), **mlp)


def hidden_states(inputs, wte, wpe, blocks, ln_f, n_head, cache=None, past=0):  # [n_seq] -> [n_seq, n_embd]
    x = wte[inputs] + wpe[past:past + len(inputs)]
    for block, kv in zip(blocks, cache or [None] * len(blocks)):
        x = transformer_block(x, **block, n_head=n_head, kv=kv, past=past)
    return layer_norm(x, **ln_f)


def gpt2(inputs, wte, wpe, blocks, ln_f, n_head, cache=None, past=0):  # [n_seq] -> [n_seq, n_vocab]
    return hidden_states(inputs, wte, wpe, blocks, ln_f, n_head, cache, past) @ wte.T


def generate(inputs, params, n_head, n_tokens_to_generate):  # ids -> the ids that follow
    ids, past = list(inputs), 0
    d = params["wte"].shape[1] // n_head
    cache = [np.zeros((2, n_head, len(ids) + n_tokens_to_generate, d), np.float32) for _ in params["blocks"]]
    for _ in range(n_tokens_to_generate):
        logits = gpt2(ids[past:], **params, n_head=n_head, cache=cache, past=past)
        past = len(ids)
        ids.append(int(np.argmax(logits[-1])))
    return ids[len(inputs):]


RIGHT = {function.__name__: function for function in (
    gelu, softmax, layer_norm, linear, ffn, attention, mha, transformer_block, hidden_states, gpt2, generate)}
SOURCES = {name: inspect.getsource(function) for name, function in RIGHT.items()}


class Mistake:
    """A row of the table."""

    def __init__(self, function, name, message, *changes):
        self.function, self.name, self.message, self.changes = function, name, message, changes


SCALE, CUBE = "(2 / np.pi) ** 0.5", "0.044715 * x ** 3"
TANH = f"0.5 * x * (1 + np.tanh({SCALE} * (x + {CUBE})))"
MEAN_VARIANCE = "x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)"
SPLIT = "q, k, v = np.split"
HEADS = "reshape(n_seq, n_head, -1).swapaxes(0, 1)"
TRI = "1 - np.tri(n_seq, past + n_seq, past, dtype=x.dtype)"
FIRST, SECOND = "x = x + mha(layer_norm(x, **ln_1)", "return x + ffn(layer_norm(x, **ln_2)"
WPE = "wpe[past:past + len(inputs)]"
TO_CACHE = "kv[0, :, past:past + n_seq], kv[1, :, past:past + n_seq]"
CACHES = "blocks, cache or [None] * len(blocks)"
WITH_CACHE, WITHOUT = "ids[past:], **params, n_head=n_head, cache=cache, past=past", "ids, **params, n_head=n_head"
BLOCK = "        x = transformer_block(x, **block, n_head=n_head, kv=kv, past=past)\n"

TABLE = [
    Mistake("gelu", "erf", "This is gelu computed with erf. It follows the paper's definition, but GPT-2 was trained "
            "with the tanh approximation, so that is the one to write here.",
            (TANH, "0.5 * x * (1 + np.vectorize(math.erf, otypes='f')(x / 2 ** 0.5))")),
    Mistake("gelu", "relu", "This is relu: 0 for every negative input. gelu dips slightly below 0 there.",
            (TANH, "np.maximum(x, 0)")),
    Mistake("gelu", "sigmoid", "This is x * sigmoid(1.702 * x), the gelu of some other models. GPT-2 uses the tanh "
            "form.", (TANH, "x / (1 + np.exp(-1.702 * x))")),
    Mistake("gelu", "silu", "This is silu (also called swish), x * sigmoid(x). GPT-2 uses gelu in its tanh form.",
            (TANH, "x / (1 + np.exp(-x))")),
    Mistake("gelu", "no 0.5", "Every value is twice as large as it should be: multiply by 0.5, since 1 + tanh ranges "
            "from 0 to 2.", ("return 0.5 * ", "return ")),
    Mistake("gelu", "no x", "This is only the gate, between 0 and 1. Multiply it by x.", ("0.5 * x * ", "0.5 * ")),
    Mistake("gelu", "no 1 +", "The 1 in 1 + tanh(...) is missing: without it, the gate ranges from -1 to 1 instead of "
            "0 to 2.", ("1 + np.tanh", "np.tanh")),
    Mistake("gelu", "wrong constant", "The constant is not 0.044715: check its zeros and digits.",
            *(("0.044715", wrong) for wrong in ("0.44715", "0.0044715", "0.04715", "0.04475", "0.044175"))),
    Mistake("gelu", "wrong cube", "Inside tanh, the sum is x + 0.044715 * x ** 3: cube only x, multiply by the "
            "constant, then add x.", ("x ** 3", "x ** 2"), (CUBE, "(0.044715 * x) ** 3"), (" + " + CUBE, ""),
            ("x + " + CUBE, CUBE), (f"(x + {CUBE})", f"x + {CUBE}")),
    Mistake("gelu", "wrong factor", "The factor before (x + 0.044715 * x ** 3) is the square root of 2 / pi, about "
            "0.798.",
            *((SCALE, wrong) for wrong in ("(2 / np.pi)", "(np.pi / 2) ** 0.5", "2 ** 0.5 / np.pi", "2 / np.pi ** 0.5",
                                           "1", "2 ** 0.5", "2 ** -0.5"))),

    Mistake("softmax", "no maximum", "Large inputs overflow: e^1000 does not fit in a float. Subtract each row's "
            "maximum first; the result stays the same.", (" - x.max(axis=-1, keepdims=True)", "")),
    Mistake("softmax", "one maximum for all rows", "All rows share one maximum, so a row of much smaller numbers "
            "becomes 0 / 0. Subtract each row's own: axis=-1, keepdims=True.",
            ("x.max(axis=-1, keepdims=True)", "x.max()")),
    Mistake("softmax", "wrong axis", "The columns sum to 1, but the rows should: sum over the last axis, axis=-1.",
            ("e.sum(axis=-1, keepdims=True)", "e.sum(axis=0, keepdims=True)"), ("axis=-1", "axis=0")),
    Mistake("softmax", "one sum for all rows", "All rows together sum to 1, but each row should: the sum needs "
            "axis=-1, keepdims=True.", ("e.sum(axis=-1, keepdims=True)", "e.sum()"),
            ("e.sum(axis=-1, keepdims=True)", "e.sum()", "x.max(axis=-1, keepdims=True)", "x.max()")),
    Mistake("softmax", "no keepdims", "Without keepdims=True, the row maxima or sums have shape [n], and broadcasting "
            "lines them up with the columns. With it, the shape is [n, 1], and each row gets its own.",
            (", keepdims=True", ""), ("e.sum(axis=-1, keepdims=True)", "e.sum(axis=-1)"),
            ("x.max(axis=-1, keepdims=True)", "x.max(axis=-1)")),
    Mistake("softmax", "no sum", "The rows do not sum to 1: divide each row by its sum.",
            (" / e.sum(axis=-1, keepdims=True)", "")),
    Mistake("softmax", "log_softmax", "These are log-probabilities (log_softmax). Return the probabilities themselves.",
            ("return e / e.sum(axis=-1, keepdims=True)", "return np.log(e / e.sum(axis=-1, keepdims=True))")),
    Mistake("softmax", "no exponential", "The exponential is missing: dividing numbers by their sum does not make them "
            "positive.", ("np.exp(x - x.max(axis=-1, keepdims=True))", "x"),
            ("np.exp(x - x.max(axis=-1, keepdims=True))", "x - x.max(axis=-1, keepdims=True)")),

    Mistake("layer_norm", "no eps", "If all numbers in a row are equal, this divides 0 by 0. Add eps to the variance.",
            (" + eps", "")),
    Mistake("layer_norm", "eps outside the root", "eps is added to the square root of the variance. Add it to the "
            "variance, under the root.", ("np.sqrt(variance + eps)", "(np.sqrt(variance) + eps)")),
    Mistake("layer_norm", "wrong eps", "eps is not 1e-5, the value that GPT-2 was trained with.",
            *(("+ eps", f"+ {wrong}") for wrong in ("1e-6", "1e-8", "1e-12", "1e-3", "1e-4"))),
    Mistake("layer_norm", "ddof", "The sum of squares is divided by n - 1. Divide it by n (ddof=0 in NumPy).",
            ("x.var(axis=-1, ", "x.var(axis=-1, ddof=1, ")),
    Mistake("layer_norm", "no square root", "This divides by the variance. Divide by its square root, the standard "
            "deviation.", ("np.sqrt(variance + eps)", "(variance + eps)")),
    Mistake("layer_norm", "no standard deviation", "The mean is subtracted, but the division by the standard deviation "
            "is missing.", (" / np.sqrt(variance + eps)", "")),
    Mistake("layer_norm", "no mean", "The mean is not subtracted: divide x - mean by the standard deviation, not x.",
            ("(x - mean)", "x")),
    Mistake("layer_norm", "mean of squares", "The variance is the mean of (x - mean) ** 2, but this computes the mean "
            "of x ** 2.", ("x.var(axis=-1, keepdims=True)", "(x * x).mean(axis=-1, keepdims=True)")),
    Mistake("layer_norm", "wrong axis", "Each token (row) has its own mean and variance over its n_embd numbers: use "
            "the last axis, axis=-1.", ("axis=-1", "axis=0"), ("axis=-1", "axis=None")),
    Mistake("layer_norm", "no keepdims", "Without keepdims=True, the row means or variances have shape [n_seq], and "
            "broadcasting lines them up with the columns. With it, the shape is [n_seq, 1], and each row gets its own.",
            (", keepdims=True", ""), ("x.mean(axis=-1, keepdims=True)", "x.mean(axis=-1)"),
            ("x.var(axis=-1, keepdims=True)", "x.var(axis=-1)"),
            (MEAN_VARIANCE, "x.mean(axis=-1), ((x - x.mean(axis=-1)) ** 2).mean(axis=-1)"),
            (MEAN_VARIANCE, "x.mean(axis=-1), ((x - x.mean(axis=-1)) ** 2).mean(axis=-1, keepdims=True)")),
    Mistake("layer_norm", "g and b swapped", "g and b are swapped: multiply by the gain g, then add the bias b.",
            ("* g + b", "* b + g")),
    Mistake("layer_norm", "no g or b", "The gain g or the bias b is missing: multiply by g, then add b.",
            (" * g + b", ""), (" * g + b", " * g"), (" * g + b", " + b")),
    Mistake("layer_norm", "b before g", "The bias b is added before the multiplication by the gain g. First * g, then "
            "+ b.",
            ("return (x - mean) / np.sqrt(variance + eps) * g + b",
             "return ((x - mean) / np.sqrt(variance + eps) + b) * g")),

    Mistake("linear", "no bias", "The bias b is missing: x @ w + b.", ("x @ w + b", "x @ w")),
    Mistake("linear", "w transposed", "w is transposed, but should not be. OpenAI stores it as [n_in, n_out], unlike "
            "PyTorch: x @ w.", ("x @ w", "x @ w.T")),
    Mistake("linear", "w @ x", "The order is x @ w: each row of x is multiplied by w.", ("x @ w", "w @ x")),
    Mistake("linear", "b too early", "The bias is added to x before the matrix product. Add it to the result: x @ w + "
            "b.", ("x @ w + b", "(x + b) @ w")),
    Mistake("linear", "elementwise product", "* multiplies element by element; the matrix product is @.",
            ("x @ w", "x * w")),

    Mistake("ffn", "no gelu", "The gelu in the middle is missing. Without it, two linear layers amount to one.",
            ("gelu(linear(x, **c_fc))", "linear(x, **c_fc)")),
    Mistake("ffn", "gelu twice", "gelu is applied after c_proj as well. Apply it only to the wide layer in the middle.",
            ("return linear(h, **c_proj)", "return gelu(linear(h, **c_proj))")),
    Mistake("ffn", "gelu in the wrong place", "gelu belongs after c_fc, between the two layers, not before them or "
            "after them.", ("gelu(linear(x, **c_fc))", "linear(gelu(x), **c_fc)"),
            ("gelu(linear(x, **c_fc))", "linear(x, **c_fc)", "linear(h, **c_proj)", "gelu(linear(h, **c_proj))")),
    Mistake("ffn", "layers swapped", "The layers are swapped: c_fc comes first and widens to 4 * n_embd, then c_proj "
            "narrows back to n_embd.", ("**c_fc", "**c_proj", "(h, **c_proj)", "(h, **c_fc)")),
    Mistake("ffn", "residual inside", "x is added to the result. ffn returns only the branch; transformer_block adds "
            "x.", ("return linear", "return x + linear")),
    Mistake("ffn", "no c_proj", "The second layer is missing: after gelu, c_proj maps 4 * n_embd numbers back to "
            "n_embd.", ("return linear(h, **c_proj)", "return h")),

    Mistake("attention", "no scale", "The scores are not divided by the square root of d.",
            (" / q.shape[-1] ** 0.5", "")),
    Mistake("attention", "scale by d", "The scores are divided by d. Divide them by its square root, d ** 0.5.",
            ("q.shape[-1] ** 0.5", "q.shape[-1]")),
    Mistake("attention", "scale multiplied", "The scores are multiplied by the square root of d. Divide them by it.",
            (" / q.shape[-1] ** 0.5", " * q.shape[-1] ** 0.5")),
    Mistake("attention", "scale by n", "The scores are divided by the square root of the number of tokens. d is the "
            "number of columns of q, the size of its last axis: q.shape[-1].", ("q.shape[-1]", "q.shape[-2]"),
            ("q.shape[-1]", "k.shape[-2]")),
    Mistake("attention", "scale after softmax", "The division by the square root of d comes too late. Divide the "
            "scores, before softmax.", (" / q.shape[-1] ** 0.5", "", "@ v", "@ v / q.shape[-1] ** 0.5")),
    Mistake("attention", "no mask", "The mask is not used: add it to the scores before softmax.", (" + mask", "")),
    Mistake("attention", "mask after softmax", "The mask is added after softmax. Add it before, so that softmax gives "
            "0 wherever a query may not look.", ("softmax(scores + mask)", "(softmax(scores) + mask)")),
    Mistake("attention", "mask multiplied", "The scores are multiplied by the mask. Add it instead: it is 0 where a "
            "query may look and -1e10 elsewhere.", ("scores + mask", "scores * mask")),
    Mistake("attention", "mask subtracted", "The mask is subtracted, which gives the forbidden keys all the weight. "
            "Add it.", ("scores + mask", "scores - mask")),
    Mistake("attention", "softmax over queries", "softmax runs down the columns. Each query (row) distributes its "
            "weight over the keys: the last axis sums to 1.",
            ("softmax(scores + mask)", "softmax((scores + mask).swapaxes(-1, -2)).swapaxes(-1, -2)")),
    Mistake("attention", "no softmax", "The softmax is missing: the weights must be positive, and each row must sum to "
            "1.", ("softmax(scores + mask)", "(scores + mask)")),
    Mistake("attention", "q and k swapped", "q and k are swapped: row i of the scores is query i against all keys, q @ "
            "k.T.", ("q @ k.swapaxes(-1, -2)", "k @ q.swapaxes(-1, -2)")),
    Mistake("attention", "k instead of v", "The weights are applied to the keys. Apply them to the values: weights @ "
            "v.", ("@ v", "@ k")),

    Mistake("mha", "no mask", "Each row of weights sums to 1, but position 0 sees position 1: the causal mask is "
            "missing.", (f"({TRI}) * -1e10", "0")),
    Mistake("mha", "mask reversed", "The mask is reversed: each position sees the later ones instead of the earlier "
            "ones. np.tri(n) is 1 where a query may look, so the mask is (1 - np.tri(n)) * -1e10.", (TRI, TRI[4:]),
            (TRI, TRI[4:].replace("past, dtype", "past - 1, dtype"))),
    Mistake("mha", "mask positive", "The mask has the wrong sign: later positions get 1e10, and so all the weight. Use "
            "-1e10.", ("* -1e10", "* 1e10")),
    Mistake("mha", "mask too small", "The mask is too small to hide anything. Multiply it by -1e10, so that softmax "
            "gives 0.", *(("* -1e10", wrong) for wrong in ("", "* -1", "* -10"))),
    Mistake("mha", "mask is nan", "0 * -inf is nan, so the mask is nan wherever a query may look. Multiply by -1e10 "
            "instead.", ("* -1e10", "* -np.inf")),
    Mistake("mha", "mask hides the token itself", "The mask hides one position too many: each position may also look "
            "at itself.", ("past, dtype", "past - 1, dtype")),
    Mistake("mha", "mask off by one", "Position i sees position i + 1: the mask starts one position too late.",
            ("past, dtype", "past + 1, dtype")),
    Mistake("mha", "q and k swapped", "q and k are swapped: c_attn returns q, k, v in this order.",
            (SPLIT, "k, q, v = np.split")),
    Mistake("mha", "wrong order of q, k, v", "c_attn returns q, k, v in this order: first, second and last third of "
            "the columns.",
            *((SPLIT, f"{order} = np.split") for order in ("q, v, k", "v, k, q", "v, q, k", "k, v, q"))),
    Mistake("mha", "heads split before q, k, v", "The 3 * n_embd columns are split into heads first and into q, k and "
            "v second. The checkpoint stores all of q, then all of k, then all of v, each with its heads side by side. "
            "So reshape to (n_seq, 3, n_head, d), not (n_seq, n_head, 3, d): both shapes work, but the numbers differ.",
            ("linear(x, **c_attn), 3", "linear(x, **c_attn).reshape(n_seq, n_head, -1), 3")),
    Mistake("mha", "heads by reshape alone", "reshape(n_head, n_seq, d) mixes tokens and heads, because it keeps all "
            "numbers in memory order. First reshape to (n_seq, n_head, d), then swap the axes.",
            (HEADS, "reshape(n_head, n_seq, -1)")),
    Mistake("mha", "heads interleaved", "Each head takes every n_head-th column. It should take d = n_embd / n_head "
            "adjacent columns: (n_seq, n_head, d), not (n_seq, d, n_head).",
            (HEADS, "reshape(n_seq, -1, n_head).transpose(2, 0, 1)"),
            (HEADS, "reshape(n_seq, -1, n_head).transpose(2, 0, 1)", "heads.swapaxes(0, 1)",
             "heads.transpose(1, 2, 0)")),
    Mistake("mha", "heads concatenated in the wrong order", "The heads are concatenated in the wrong order. A token's "
            "row holds head 0, then head 1, and so on: use np.hstack, or swap the axes to (n_seq, n_head, d) before "
            "reshaping.", ("heads.swapaxes(0, 1)", "heads"), ("heads.swapaxes(0, 1)", "heads.transpose(1, 2, 0)"),
            ("heads.swapaxes(0, 1)", "heads[::-1].swapaxes(0, 1)")),
    Mistake("mha", "one head", "This is attention with a single head of n_embd columns: n_head is not used.",
            (HEADS, "reshape(n_seq, 1, -1).swapaxes(0, 1)")),
    Mistake("mha", "scale by n_embd", "The scores are divided by the square root of n_embd. A head has d = n_embd / "
            "n_head columns: divide by the square root of d.",
            ("attention(q,", "attention(q * (q.shape[-1] / n_embd) ** 0.5,")),
    Mistake("mha", "scale twice", "The scores are divided by the square root of d twice. Do it once, in attention.",
            ("attention(q,", "attention(q / q.shape[-1] ** 0.5,")),
    Mistake("mha", "no c_proj", "The last step is missing: pass the concatenated heads through linear with c_proj.",
            ("linear(heads.swapaxes(0, 1).reshape(n_seq, n_embd), **c_proj)",
             "heads.swapaxes(0, 1).reshape(n_seq, n_embd)")),
    Mistake("mha", "no bias", "A bias is missing: c_attn and c_proj each have w and b.",
            ("linear(x, **c_attn)", 'x @ c_attn["w"]'),
            ("linear(heads.swapaxes(0, 1).reshape(n_seq, n_embd), **c_proj)",
             'heads.swapaxes(0, 1).reshape(n_seq, n_embd) @ c_proj["w"]')),
    Mistake("mha", "residual inside", "x is added to the result. mha returns only the branch; transformer_block adds "
            "x.", ("return linear", "return x + linear")),
    Mistake("mha", "mask ignores past", "With a cache, query 0 is at position past and may look at all past keys: the "
            "mask is (1 - np.tri(n_seq, past + n_seq, past)) * -1e10.", ("past, dtype", "0, dtype")),
    Mistake("mha", "cache written at the start", "The new keys and values belong in the cache at past:past + n_seq, "
            "after the old ones. Yours overwrite its beginning.", (TO_CACHE, "kv[0, :, :n_seq], kv[1, :, :n_seq]")),
    Mistake("mha", "keys and values swapped in the cache", "In the cache, kv[0] holds the keys and kv[1] the values.",
            (TO_CACHE + " = k, v", TO_CACHE + " = v, k", "k, v = kv[", "v, k = kv[")),
    Mistake("mha", "cache not filled", "The new keys and values are not written to the cache kv.",
            (TO_CACHE + " = k, v", "kv = kv.copy()", "k, v = kv[:, :, :past + n_seq]",
             "k, v = (np.concatenate([old[:, :past], new], axis=1) for old, new in zip(kv, (k, v)))")),

    Mistake("transformer_block", "no residual around mha", "The first residual connection is missing: x + mha(...).",
            ("x = x + mha", "x = mha")),
    Mistake("transformer_block", "no residual around ffn", "The second residual connection is missing: x + ffn(...).",
            ("return x + ffn", "return ffn")),
    Mistake("transformer_block", "no residuals", "Both residual connections are missing: x + mha(...), then x + "
            "ffn(...).", ("x = x + mha", "x = mha", "return x + ffn", "return ffn")),
    Mistake("transformer_block", "post-norm", "The layer norms come after the additions, as in the original "
            "transformer. GPT-2 normalizes the inputs of mha and ffn and leaves the sum alone (pre-norm).",
            ("x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)",
             "x = layer_norm(x + mha(x, **attn, n_head=n_head, kv=kv, past=past), **ln_1)",
             "return x + ffn(layer_norm(x, **ln_2), **mlp)", "return layer_norm(x + ffn(x, **mlp), **ln_2)")),
    Mistake("transformer_block", "norm after the branch", "The outputs of mha and ffn are normalized. Normalize their "
            "inputs instead.",
            ("mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)",
             "layer_norm(mha(x, **attn, n_head=n_head, kv=kv, past=past), **ln_1)", "ffn(layer_norm(x, **ln_2), **mlp)",
             "layer_norm(ffn(x, **mlp), **ln_2)")),
    Mistake("transformer_block", "same layer norm twice", "One layer norm is used twice: ln_1 is for mha, ln_2 for "
            "ffn.", ("**ln_2)", "**ln_1)"), ("**ln_1)", "**ln_2)")),
    Mistake("transformer_block", "layer norms swapped", "ln_1 and ln_2 are swapped: ln_1 is for mha, ln_2 for ffn.",
            ("(x, **ln_1)", "(x, **ln_2)", "ffn(layer_norm(x, **ln_2)", "ffn(layer_norm(x, **ln_1)")),
    Mistake("transformer_block", "no layer norm", "A layer norm is missing: mha takes layer_norm(x, **ln_1), ffn takes "
            "layer_norm(x, **ln_2).", ("layer_norm(x, **ln_1)", "x"), ("layer_norm(x, **ln_2)", "x"),
            ("layer_norm(x, **ln_1)", "x", "layer_norm(x, **ln_2)", "x")),
    Mistake("transformer_block", "residual from the normalized x", "The residual connection adds the normalized x. Add "
            "the original x: only the branch takes the normalized one.",
            (FIRST, "x = layer_norm(x, **ln_1)\n    x = x + mha(x"),
            (SECOND, "x = layer_norm(x, **ln_2)\n    return x + ffn(x"),
            (FIRST, "x = layer_norm(x, **ln_1)\n    x = x + mha(x", SECOND,
             "x = layer_norm(x, **ln_2)\n    return x + ffn(x")),
    Mistake("transformer_block", "parallel branches", "ffn gets x from before attention. It should get x with the "
            "result of mha added.", ("x = x + mha", "y = x + mha", "return x + ffn", "return y + ffn")),
    Mistake("transformer_block", "second residual from the first x", "The second sum adds the x that entered the "
            "block. It should add the x that already includes the result of mha.",
            ("x = x + mha", "y, x = x, x + mha", "return x", "return y")),
    Mistake("transformer_block", "ffn first", "ffn comes before mha. Tokens look at each other first; then each is "
            "processed alone.",
            (FIRST, "x = x + ffn(layer_norm(x, **ln_2), **mlp)\n    return x + mha(layer_norm(x, **ln_1)")),
    Mistake("transformer_block", "past not passed on", "past is not passed on to mha: past=past.",
            ("past=past", "past=0")),
    Mistake("transformer_block", "cache not passed on", "The cache is not passed on to mha: kv=kv.",
            ("kv=kv", "kv=None")),

    Mistake("hidden_states", "no wpe", "The position embeddings are missing: x = wte[inputs] + wpe[:n_seq].",
            (f" + {WPE}", "")),
    Mistake("hidden_states", "no wte", "The token embeddings are missing: x = wte[inputs] + wpe[:n_seq].",
            ("wte[inputs] + ", "")),
    Mistake("hidden_states", "positions shifted", "The positions start at the wrong row: the first token is at "
            "position 0, wpe[0].", (WPE, "wpe[past + 1:past + len(inputs) + 1]"), (WPE, "wpe[-len(inputs):]"),
            (WPE, "np.roll(wpe, 1, axis=0)[:len(inputs)]")),
    Mistake("hidden_states", "positions reversed", "The positions are counted backwards: the first token is at "
            "position 0.", (WPE, WPE + "[::-1]")),
    Mistake("hidden_states", "one position for all tokens", "All tokens get the same row of wpe. Position i takes row "
            "i.", (WPE, "wpe[0]"), (WPE, "wpe[len(inputs) - 1]"), (WPE, "wpe[len(inputs)]")),
    Mistake("hidden_states", "wpe indexed by id", "wpe is indexed by token id. Its rows are for positions: "
            "wpe[:n_seq].", (WPE, "wpe[inputs]")),
    Mistake("hidden_states", "embeddings multiplied", "wte and wpe are multiplied. Add them.",
            (f"wte[inputs] + {WPE}", f"wte[inputs] * {WPE}")),
    Mistake("hidden_states", "embeddings scaled", "The token embeddings are multiplied by the square root of n_embd, "
            "as in the original transformer. GPT-2 does not do that.",
            ("wte[inputs]", "wte[inputs] * wte.shape[1] ** 0.5")),
    Mistake("hidden_states", "no ln_f", "The final layer norm is missing: layer_norm(x, **ln_f) after the last block.",
            ("layer_norm(x, **ln_f)", "x")),
    Mistake("hidden_states", "ln_f after each block", "ln_f is applied after every block. Apply it once, after the "
            "last.", (BLOCK, BLOCK + "        x = layer_norm(x, **ln_f)\n"),
            (BLOCK, BLOCK + "        x = layer_norm(x, **ln_f)\n", "return layer_norm(x, **ln_f)", "return x")),
    Mistake("hidden_states", "ln_f too early", "ln_f is applied before the blocks. Apply it after the last one.",
            (f"wte[inputs] + {WPE}", f"layer_norm(wte[inputs] + {WPE}, **ln_f)", "return layer_norm(x, **ln_f)",
             "return x")),
    Mistake("hidden_states", "blocks skipped", "Not all blocks are applied in sequence: each takes the output of the "
            "one before.", (BLOCK, BLOCK.replace("x =", "y ="), "layer_norm(x, **ln_f)", "layer_norm(y, **ln_f)"),
            ("in zip(blocks", "in zip(blocks[:1]"), ("in zip(blocks", "in zip(blocks[1:]"),
            ("in zip(blocks", "in zip(blocks[:-1]"), (BLOCK, "        pass\n")),
    Mistake("hidden_states", "blocks in reverse", "The blocks are applied in reverse, from the last to the first.",
            ("in zip(blocks", "in zip(blocks[::-1]"), (CACHES, "blocks[::-1], (cache or [None] * len(blocks))[::-1]")),
    Mistake("hidden_states", "residual around the block", "The output of the block is added to x. Its residual "
            "connections are already inside: x = transformer_block(x, ...).",
            ("x = transformer_block", "x = x + transformer_block")),
    Mistake("hidden_states", "position ignores past", "With a cache, the new tokens are at positions past, past + 1 "
            "and so on: wpe[past:past + n_seq]. Yours start at 0 again.", (WPE, "wpe[:len(inputs)]")),
    Mistake("hidden_states", "past not passed on", "past is not passed on to the blocks: past=past.",
            ("past=past", "past=0")),

    Mistake("gpt2", "softmax at the end", "These are probabilities. gpt2 returns logits: no softmax at the end.",
            ("return hidden", "return softmax(hidden", "wte.T", "wte.T)")),
    Mistake("gpt2", "last row only", "This is only the last row. gpt2 returns one row of logits per token.",
            (" @ wte.T", "[-1] @ wte.T")),
    Mistake("gpt2", "no projection", "The projection is missing: x @ wte.T turns n_embd numbers into n_vocab logits.",
            (" @ wte.T", "")),
    Mistake("gpt2", "wte not transposed", "wte is [n_vocab, n_embd]; the projection uses its transpose, x @ wte.T.",
            ("wte.T", "wte")),

    Mistake("generate", "prompt included", "The result includes the prompt. Return only the new ids: "
            "ids[len(inputs):].", ("return ids[len(inputs):]", "return ids")),
    Mistake("generate", "last prompt id included", "The result includes the last id of the prompt: slice at "
            "len(inputs).", ("ids[len(inputs):]", "ids[len(inputs) - 1:]")),
    Mistake("generate", "slice from the end", "If n is 0, ids[-n:] is all of ids. Slice at the end of the prompt: "
            "ids[len(inputs):].", ("ids[len(inputs):]", "ids[-n_tokens_to_generate:]")),
    Mistake("generate", "one token too many", "One token too many: range(n_tokens_to_generate) gives exactly as many "
            "as requested.",
            ("in range(n_tokens_to_generate)", "in range(n_tokens_to_generate + 1)", "len(ids) + n",
             "len(ids) + 1 + n")),
    Mistake("generate", "one token too few", "One token too few: range(n_tokens_to_generate) gives exactly as many as "
            "requested.", ("in range(n_tokens_to_generate)", "in range(n_tokens_to_generate - 1)"),
            ("ids[len(inputs):]", "ids[len(inputs) + 1:]"), ("ids[len(inputs):]", "ids[len(inputs):-1]")),
    Mistake("generate", "only the last id returned", "Only the last of the new ids is returned. Return all of them.",
            ("ids[len(inputs):]", "ids[-1:]")),
    Mistake("generate", "first row", "The next token is taken from the first row of the logits. Use the last row, "
            "[-1], which has seen the whole text.", ("logits[-1]", "logits[0]"),
            (WITH_CACHE, WITHOUT, "logits[-1]", "logits[0]")),
    Mistake("generate", "wrong row", "The next token is taken from the second-to-last row. The last row is [-1].",
            ("logits[-1]", "logits[max(-2, -len(logits))]"),
            (WITH_CACHE, WITHOUT, "logits[-1]", "logits[max(-2, -len(logits))]")),
    Mistake("generate", "least probable token", "This takes the least probable token, the one with the smallest logit. "
            "Take the largest.", ("np.argmax", "np.argmin")),
    Mistake("generate", "argmax over all rows", "The maximum is taken over all rows at once. Take the last row first.",
            ("logits[-1]", "logits"), (WITH_CACHE, WITHOUT, "logits[-1]", "logits")),
    Mistake("generate", "new ids not fed back", "Each new token is predicted from the prompt alone. Append each new id "
            "to the text that gpt2 sees next, and predict from the last row.",
            (WITH_CACHE, "list(inputs), **params, n_head=n_head")),
    Mistake("generate", "only the newest id read", "After the first step, gpt2 sees only the newest id. Without a "
            "cache it needs the whole text every time.", ("cache=cache, past=past", "cache=None, past=0")),
    Mistake("generate", "only the last id read", "gpt2 sees only the last id. Without a cache it needs the whole text "
            "every time.", (WITH_CACHE, "ids[-1:], **params, n_head=n_head")),
    Mistake("generate", "prompt not cached", "When the second token is generated, the cache lacks the keys and values "
            "of the prompt: the first call takes the whole prompt, with past=0.",
            ("ids[past:]", "ids[-1:]", "past=past", "past=len(ids) - 1")),
    Mistake("generate", "wrong past", "After each call, past is the number of ids in the cache: len(ids) before the "
            "new one is appended.", ("past = len(ids)", "past = past + 1", "ids[past:]", "ids[past and -1:]")),
]


@functools.cache
def compiled(name, change):
    """The code of a function after the replacements, or None if a text to replace is not in it."""
    source = SOURCES[name]
    for right, wrong in zip(change[::2], change[1::2]):
        if right not in source:
            return None
        source = source.replace(right, wrong)
    return compile(source, f"{name} with a mistake", "exec")


def variant(*mistakes):
    """{name: function} with these (mistake, change) made, or None if two of them change the same text."""
    changes = {}
    for mistake, change in mistakes:
        changes[mistake.function] = changes.get(mistake.function, ()) + change
    functions = {"np": np, "math": math}
    for name in SOURCES:
        code = compiled(name, changes.get(name, ()))
        if code is None:
            return None
        exec(code, functions)
    return functions


def called_by(name, without=()):
    """The functions that a function calls, directly or indirectly, nearest first, but not those in `without`."""
    found = []
    for other in reversed(SOURCES):
        bodies = (SOURCES[caller].split("\n", 1)[1] for caller in [name, *found])
        if other != name and other not in without and any(re.search(rf"\b{other}\(", body) for body in bodies):
            found.append(other)
    return found


def made_in(name, without=()):
    """[(mistake, change)] that can affect a function: its own first, then those of the functions it calls."""
    order = [name, *called_by(name, without)]
    return [(one, change) for function in order for one in TABLE if one.function == function for change in one.changes]
