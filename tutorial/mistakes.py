"""The mistakes that tutorial/check.py knows: how a function should be written, how it is often written, what to say.

Above, the functions of gpt2.py as plainly as they can be. Below, the table. A row is

    Mistake(function, name, what the reader is told, (right, wrong), ...)

It is made by putting the text `wrong` in place of the text `right` in the function's source. Four texts are two such
replacements at once; several tuples are several ways to make the same mistake. check.py runs what comes out and looks
whether the reader's function gives the same numbers.
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
    ids, past, d = list(inputs), 0, params["wte"].shape[1] // n_head
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

    def __init__(self, function, name, says, *changes):
        self.function, self.name, self.says, self.changes = function, name, says, changes


SCALE, CUBE = "(2 / np.pi) ** 0.5", "0.044715 * x ** 3"
TANH = f"0.5 * x * (1 + np.tanh({SCALE} * (x + {CUBE})))"
MEAN_VARIANCE = "x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)"
SPLIT, HEADS = "q, k, v = np.split", "reshape(n_seq, n_head, -1).swapaxes(0, 1)"
TRI = "1 - np.tri(n_seq, past + n_seq, past, dtype=x.dtype)"
FIRST, SECOND = "x = x + mha(layer_norm(x, **ln_1)", "return x + ffn(layer_norm(x, **ln_2)"
WPE, TO_CACHE = "wpe[past:past + len(inputs)]", "kv[0, :, past:past + n_seq], kv[1, :, past:past + n_seq]"
CACHES = "blocks, cache or [None] * len(blocks)"
WITH_CACHE, WITHOUT = "ids[past:], **params, n_head=n_head, cache=cache, past=past", "ids, **params, n_head=n_head"
BLOCK = "        x = transformer_block(x, **block, n_head=n_head, kv=kv, past=past)\n"

TABLE = [
    Mistake("gelu", "erf", "The numbers are those of gelu by erf. That is right by the paper's definition, but GPT-2 "
            "was "
            "trained with the approximation by tanh, so for us tanh is the definition.",
            (TANH, "0.5 * x * (1 + np.vectorize(math.erf, otypes='f')(x / 2 ** 0.5))")),
    Mistake("gelu", "relu", "This is relu: 0 for all that is negative. gelu goes a little below 0 there.",
            (TANH, "np.maximum(x, 0)")),
    Mistake("gelu", "sigmoid", "This is x * sigmoid(1.702 * x), the gelu of some other models. GPT-2 has the form with "
            "tanh.", (TANH, "x / (1 + np.exp(-1.702 * x))")),
    Mistake("gelu", "silu", "This is silu (or swish), x * sigmoid(x). GPT-2 has gelu, in the form with tanh.",
            (TANH, "x / (1 + np.exp(-x))")),
    Mistake("gelu", "no half", "Everything is twice as large as it should be: multiply by 0.5, as 1 + tanh goes from 0 "
            "to 2.", ("return 0.5 * ", "return ")),
    Mistake("gelu", "no x", "This is the gate alone, between 0 and 1. It has to be multiplied by x.",
            ("0.5 * x * ", "0.5 * ")),
    Mistake("gelu", "no 1 +", "The 1 in 1 + tanh(...) is missing: without it the gate goes from -1 to 1, not from 0 to "
            "2.", ("1 + np.tanh", "np.tanh")),
    Mistake("gelu", "constant", "The constant is not 0.044715: count its zeros and digits.",
            *(("0.044715", wrong) for wrong in ("0.44715", "0.0044715", "0.04715", "0.04475", "0.044175"))),
    Mistake("gelu", "cube", "Inside the tanh there is x + 0.044715 * x ** 3: the third power of x alone, added to x.",
            ("x ** 3", "x ** 2"), (CUBE, "(0.044715 * x) ** 3"), (" + " + CUBE, ""), ("x + " + CUBE, CUBE),
            (f"(x + {CUBE})", f"x + {CUBE}")),
    Mistake("gelu", "factor", "The factor in front of (x + 0.044715 * x ** 3) is the square root of 2 / pi, 0.798.",
            *((SCALE, wrong) for wrong in ("(2 / np.pi)", "(np.pi / 2) ** 0.5", "2 ** 0.5 / np.pi", "2 / np.pi ** 0.5",
                                           "1", "2 ** 0.5", "2 ** -0.5"))),

    Mistake("softmax", "no maximum", "Where the numbers are large this overflows: e^1000 is more than a float holds. "
            "Subtract each row's maximum first: it changes nothing else.", (" - x.max(axis=-1, keepdims=True)", "")),
    Mistake("softmax", "one maximum for all", "You subtract one maximum for all rows, so a row of much smaller numbers "
            "becomes 0 / 0. Each row needs its own: axis=-1, keepdims=True.", ("x.max(axis=-1, keepdims=True)",
             "x.max()")),
    Mistake("softmax", "axis", "Your columns sum to 1, and the rows should: the axis of the sum is -1, the last.",
            ("e.sum(axis=-1, keepdims=True)", "e.sum(axis=0, keepdims=True)"), ("axis=-1", "axis=0")),
    Mistake("softmax", "one sum for all", "All rows together sum to 1, and each row should: the sum needs axis=-1, "
            "keepdims=True.", ("e.sum(axis=-1, keepdims=True)", "e.sum()"),
            ("e.sum(axis=-1, keepdims=True)", "e.sum()", "x.max(axis=-1, keepdims=True)", "x.max()")),
    Mistake("softmax", "no keepdims", "Without keepdims=True, a maximum or a sum for each row has the shape [n], and "
            "NumPy lines it up with the columns. With it, it is [n, 1] and stays with its row.",
            (", keepdims=True", ""), ("e.sum(axis=-1, keepdims=True)", "e.sum(axis=-1)"),
            ("x.max(axis=-1, keepdims=True)", "x.max(axis=-1)")),
    Mistake("softmax", "no sum", "The rows do not sum to 1: divide by the sum of each row.",
            (" / e.sum(axis=-1, keepdims=True)", "")),
    Mistake("softmax", "logarithm", "These are logarithms of probabilities (log_softmax); the probabilities are "
            "wanted.",
            ("return e / e.sum(axis=-1, keepdims=True)", "return np.log(e / e.sum(axis=-1, keepdims=True))")),
    Mistake("softmax", "no exponential", "The exponential is missing: numbers divided by their sum keep their sign.",
            ("np.exp(x - x.max(axis=-1, keepdims=True))", "x"),
            ("np.exp(x - x.max(axis=-1, keepdims=True))", "x - x.max(axis=-1, keepdims=True)")),

    Mistake("layer_norm", "no eps", "Where all numbers of a row are equal, this divides 0 by 0. Add eps to the "
            "variance.",
            (" + eps", "")),
    Mistake("layer_norm", "eps outside", "eps is added to the square root of the variance. Add it to the variance, "
            "under the root.", ("np.sqrt(variance + eps)", "(np.sqrt(variance) + eps)")),
    Mistake("layer_norm", "another eps", "eps is not 1e-5, which is what GPT-2 was trained with.",
            *(("+ eps", f"+ {wrong}") for wrong in ("1e-6", "1e-8", "1e-12", "1e-3", "1e-4"))),
    Mistake("layer_norm", "ddof", "The sum of squares is divided by n - 1. Divide by n (in NumPy, ddof=0).",
            ("x.var(axis=-1, ", "x.var(axis=-1, ddof=1, ")),
    Mistake("layer_norm", "no root", "It divides by the variance. Divide by its square root, the standard deviation.",
            ("np.sqrt(variance + eps)", "(variance + eps)")),
    Mistake("layer_norm", "no variance", "The mean is subtracted, but nothing is divided by the standard deviation.",
            (" / np.sqrt(variance + eps)", "")),
    Mistake("layer_norm", "no mean", "The mean is not subtracted: only x - mean is divided by the standard deviation.",
            ("(x - mean)", "x")),
    Mistake("layer_norm", "mean of squares", "The variance is the mean of (x - mean) ** 2, and here it is the mean of "
            "x ** 2.", ("x.var(axis=-1, keepdims=True)", "(x * x).mean(axis=-1, keepdims=True)")),
    Mistake("layer_norm", "axis", "Each token, a row, has a mean and a variance of its own, over its n_embd numbers: "
            "the "
            "axis is -1, the last.", ("axis=-1", "axis=0"), ("axis=-1", "axis=None")),
    Mistake("layer_norm", "no keepdims", "Without keepdims=True, a mean for each row has the shape [n_seq], and NumPy "
            "lines it up with the columns. With it, it is [n_seq, 1] and stays with its row.",
            (", keepdims=True", ""), ("x.mean(axis=-1, keepdims=True)", "x.mean(axis=-1)"),
            ("x.var(axis=-1, keepdims=True)", "x.var(axis=-1)"),
            (MEAN_VARIANCE, "x.mean(axis=-1), ((x - x.mean(axis=-1)) ** 2).mean(axis=-1)"),
            (MEAN_VARIANCE, "x.mean(axis=-1), ((x - x.mean(axis=-1)) ** 2).mean(axis=-1, keepdims=True)")),
    Mistake("layer_norm", "g and b swapped", "g and b have changed places: the gain g multiplies, the bias b is added.",
            ("* g + b", "* b + g")),
    Mistake("layer_norm", "no g or b", "Both learned arrays are needed: multiply by the gain g, then add the bias b.",
            (" * g + b", ""), (" * g + b", " * g"), (" * g + b", " + b")),
    Mistake("layer_norm", "b before g", "The bias b is added before the gain g multiplies. First * g, then + b.",
            ("return (x - mean) / np.sqrt(variance + eps) * g + b",
             "return ((x - mean) / np.sqrt(variance + eps) + b) * g")),

    Mistake("linear", "no bias", "The bias b is missing: x @ w + b.", ("x @ w + b", "x @ w")),
    Mistake("linear", "w transposed", "w is transposed. OpenAI's w is [n_in, n_out] as it is, unlike PyTorch's: x @ w.",
            ("x @ w", "x @ w.T")),
    Mistake("linear", "w @ x", "The order is x @ w: each row of x, times w.", ("x @ w", "w @ x")),
    Mistake("linear", "b too early", "The bias is added to x before the product. It belongs to the result: x @ w + b.",
            ("x @ w + b", "(x + b) @ w")),
    Mistake("linear", "not a matrix product", "* multiplies number by number; the matrix product is @.",
            ("x @ w", "x * w")),

    Mistake("ffn", "no gelu", "The gelu in the middle is missing. Without it, two linear layers are one.",
            ("gelu(linear(x, **c_fc))", "linear(x, **c_fc)")),
    Mistake("ffn", "gelu twice", "There is a gelu after c_proj too. Only the wide layer in the middle has one.",
            ("return linear(h, **c_proj)", "return gelu(linear(h, **c_proj))")),
    Mistake("ffn", "gelu in the wrong place", "gelu comes after c_fc, between the two layers: not before, not at the "
            "end.",
            ("gelu(linear(x, **c_fc))", "linear(gelu(x), **c_fc)"),
            ("gelu(linear(x, **c_fc))", "linear(x, **c_fc)", "linear(h, **c_proj)", "gelu(linear(h, **c_proj))")),
    Mistake("ffn", "layers exchanged", "c_proj comes first here. c_fc goes up to 4 * n_embd, c_proj comes back.",
            ("**c_fc", "**c_proj", "(h, **c_proj)", "(h, **c_fc)")),
    Mistake("ffn", "residual inside", "x is added to the result. ffn gives only the branch; the block adds x.",
            ("return linear", "return x + linear")),
    Mistake("ffn", "no c_proj", "The way back is missing: after gelu, c_proj brings 4 * n_embd numbers to n_embd.",
            ("return linear(h, **c_proj)", "return h")),

    Mistake("attention", "no scale", "This is what comes out when the scores are not divided by the square root of d.",
            (" / q.shape[-1] ** 0.5", "")),
    Mistake("attention", "scale by d", "The scores are divided by d. Divide them by its square root, d ** 0.5.",
            ("q.shape[-1] ** 0.5", "q.shape[-1]")),
    Mistake("attention", "scale multiplies", "The scores are multiplied by the square root of d. Divide them by it.",
            (" / q.shape[-1] ** 0.5", " * q.shape[-1] ** 0.5")),
    Mistake("attention", "scale by n", "The scores are divided by the root of the number of tokens. d is the number of "
            "columns of q, its last axis: q.shape[-1].", ("q.shape[-1]", "q.shape[-2]"), ("q.shape[-1]",
             "k.shape[-2]")),
    Mistake("attention", "scale after softmax", "The division by the root of d comes too late. It belongs to the "
            "scores, "
            "before softmax.", (" / q.shape[-1] ** 0.5", "", "@ v", "@ v / q.shape[-1] ** 0.5")),
    Mistake("attention", "no mask", "The mask is not used: add it to the scores, before softmax.", (" + mask", "")),
    Mistake("attention", "mask after softmax", "The mask is added after softmax. It must be added before, so that "
            "softmax turns it into 0.", ("softmax(scores + mask)", "(softmax(scores) + mask)")),
    Mistake("attention", "mask multiplies", "The scores are multiplied by the mask. It is made to be added: 0 where a "
            "query may look, -1e10 where not.", ("scores + mask", "scores * mask")),
    Mistake("attention", "mask subtracted", "The mask is subtracted, so that what is forbidden gets all the weight. "
            "Add it.",
            ("scores + mask", "scores - mask")),
    Mistake("attention", "softmax over queries", "The softmax goes down the columns. Each query, a row, shares out its "
            "weights over the keys: the sum over the last axis is 1.",
            ("softmax(scores + mask)", "softmax((scores + mask).swapaxes(-1, -2)).swapaxes(-1, -2)")),
    Mistake("attention", "no softmax", "The softmax is missing: the weights must be positive, and 1 in all for each "
            "row.",
            ("softmax(scores + mask)", "(scores + mask)")),
    Mistake("attention", "q and k swapped", "q and k have changed places: row i of the scores is query i with all "
            "keys, "
            "q @ k.T.", ("q @ k.swapaxes(-1, -2)", "k @ q.swapaxes(-1, -2)")),
    Mistake("attention", "k for v", "The weights mix the keys. They should mix the values: weights @ v.", ("@ v",
            "@ k")),

    Mistake("mha", "no mask", "Your rows sum to 1, but position 0 sees position 1: the causal mask is missing.",
            (f"({TRI}) * -1e10", "0")),
    Mistake("mha", "mask turned round", "The mask is turned round: each position sees what comes after it, not what "
            "came "
            "before. np.tri(n) is 1 where a query may look, so the mask is (1 - np.tri(n)) * -1e10.",
            (TRI, TRI[4:]), (TRI, TRI[4:].replace("past, dtype", "past - 1, dtype"))),
    Mistake("mha", "mask positive", "The mask has the wrong sign: what comes later gets 1e10, and with that all the "
            "weight. It should be -1e10.", ("* -1e10", "* 1e10")),
    Mistake("mha", "mask too small", "The mask is there, but too small to hide anything. Multiply it by -1e10, so that "
            "softmax gives 0.", *(("* -1e10", wrong) for wrong in ("", "* -1", "* -10"))),
    Mistake("mha", "mask nan", "0 * -inf is nan, so the mask is nan wherever a query may look. Multiply by -1e10.",
            ("* -1e10", "* -np.inf")),
    Mistake("mha", "mask hides the token itself", "The mask is one place too far: a position may see itself, too.",
            ("past, dtype", "past - 1, dtype")),
    Mistake("mha", "mask sees one ahead", "Position i sees position i + 1: the mask begins one place too late.",
            ("past, dtype", "past + 1, dtype")),
    Mistake("mha", "q and k swapped", "q and k have changed places: c_attn gives q, k, v in this order.",
            (SPLIT, "k, q, v = np.split")),
    Mistake("mha", "order of q, k, v", "c_attn gives q, k, v in this order: the first third, the second, the last.",
            *((SPLIT, f"{order} = np.split") for order in ("q, v, k", "v, k, q", "v, q, k", "k, v, q"))),
    Mistake("mha", "heads before q, k, v", "The 3 * n_embd numbers are cut into heads first, then into q, k and v. The "
            "checkpoint has it the other way: all of q, all of k, all of v, each with its heads side by side. So it is "
            "(n_seq, 3, n_head, d), not (n_seq, n_head, 3, d): the shape is right either way, the numbers are not.",
            ("linear(x, **c_attn), 3", "linear(x, **c_attn).reshape(n_seq, n_head, -1), 3")),
    Mistake("mha", "reshape to heads", "reshape(n_head, n_seq, d) mixes tokens and heads, as it keeps the order of all "
            "numbers in memory. First reshape to (n_seq, n_head, d), then change the axes round.",
            (HEADS, "reshape(n_head, n_seq, -1)")),
    Mistake("mha", "heads interleaved", "A head takes every n_head-th column. It should take d = n_embd / n_head "
            "columns "
            "side by side: (n_seq, n_head, d), not (n_seq, d, n_head).",
            (HEADS, "reshape(n_seq, -1, n_head).transpose(2, 0, 1)"),
            (HEADS, "reshape(n_seq, -1, n_head).transpose(2, 0, 1)", "heads.swapaxes(0, 1)",
             "heads.transpose(1, 2, 0)")),
    Mistake("mha", "heads not joined side by side", "The heads are joined in the wrong order. A token's row is its "
            "head "
            "0, then its head 1, and so on: np.hstack, or change the axes to (n_seq, n_head, d) before reshape.",
            ("heads.swapaxes(0, 1)", "heads"), ("heads.swapaxes(0, 1)", "heads.transpose(1, 2, 0)"),
            ("heads.swapaxes(0, 1)", "heads[::-1].swapaxes(0, 1)")),
    Mistake("mha", "one head", "This is attention with a single head of n_embd columns: n_head is not used.",
            (HEADS, "reshape(n_seq, 1, -1).swapaxes(0, 1)")),
    Mistake("mha", "scale by n_embd", "The scores are divided by the root of n_embd. A head has d = n_embd / n_head "
            "columns: divide by the root of d.", ("attention(q,", "attention(q * (q.shape[-1] / n_embd) ** 0.5,")),
    Mistake("mha", "scale twice", "The scores are divided by the root of d twice. Once is enough, in attention.",
            ("attention(q,", "attention(q / q.shape[-1] ** 0.5,")),
    Mistake("mha", "no c_proj", "The last step is missing: after the heads are joined, linear with c_proj.",
            ("linear(heads.swapaxes(0, 1).reshape(n_seq, n_embd), **c_proj)",
             "heads.swapaxes(0, 1).reshape(n_seq, n_embd)")),
    Mistake("mha", "no bias", "A bias is missing: c_attn and c_proj each have w and b.",
            ("linear(x, **c_attn)", 'x @ c_attn["w"]'),
            ("linear(heads.swapaxes(0, 1).reshape(n_seq, n_embd), **c_proj)",
             'heads.swapaxes(0, 1).reshape(n_seq, n_embd) @ c_proj["w"]')),
    Mistake("mha", "residual inside", "x is added to the result. mha gives only the branch; the block adds x.",
            ("return linear", "return x + linear")),
    Mistake("mha", "mask without past", "With a cache, query 0 is at position past and may see all past keys: the mask "
            "is 1 - np.tri(n_seq, past + n_seq, past).", ("past, dtype", "0, dtype")),
    Mistake("mha", "cache written at the start", "The new keys and values go into the cache at past:past + n_seq, "
            "after "
            "the old ones. Yours overwrite its beginning.", (TO_CACHE, "kv[0, :, :n_seq], kv[1, :, :n_seq]")),
    Mistake("mha", "cache: keys and values exchanged", "In the cache, kv[0] is for the keys and kv[1] for the values.",
            (TO_CACHE + " = k, v", TO_CACHE + " = v, k", "k, v = kv[", "v, k = kv[")),
    Mistake("mha", "cache not filled", "The new keys and values are not written into the cache kv.",
            (TO_CACHE + " = k, v", "kv = kv.copy()", "k, v = kv[:, :, :past + n_seq]",
             "k, v = (np.concatenate([old[:, :past], new], axis=1) for old, new in zip(kv, (k, v)))")),

    Mistake("transformer_block", "no residual around mha", "The first residual connection is missing: x + mha(...).",
            ("x = x + mha", "x = mha")),
    Mistake("transformer_block", "no residual around ffn", "The second residual connection is missing: x + ffn(...).",
            ("return x + ffn", "return ffn")),
    Mistake("transformer_block", "no residuals", "Both residual connections are missing: x + mha(...), then x + "
            "ffn(...).",
            ("x = x + mha", "x = mha", "return x + ffn", "return ffn")),
    Mistake("transformer_block", "post-norm", "The layer norms come after the sums, as in the first transformer. GPT-2 "
            "normalizes what goes into mha and ffn, and leaves the sum alone (pre-norm).",
            ("x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)",
             "x = layer_norm(x + mha(x, **attn, n_head=n_head, kv=kv, past=past), **ln_1)",
             "return x + ffn(layer_norm(x, **ln_2), **mlp)", "return layer_norm(x + ffn(x, **mlp), **ln_2)")),
    Mistake("transformer_block", "norm after the branch", "What mha and ffn give is normalized, not what goes into "
            "them.",
            ("mha(layer_norm(x, **ln_1), **attn, n_head=n_head, kv=kv, past=past)",
             "layer_norm(mha(x, **attn, n_head=n_head, kv=kv, past=past), **ln_1)",
             "ffn(layer_norm(x, **ln_2), **mlp)", "layer_norm(ffn(x, **mlp), **ln_2)")),
    Mistake("transformer_block", "one layer norm twice", "One layer norm is used twice: ln_1 is for mha, ln_2 for ffn.",
            ("**ln_2)", "**ln_1)"), ("**ln_1)", "**ln_2)")),
    Mistake("transformer_block", "layer norms exchanged", "ln_1 and ln_2 have changed places: ln_1 is for mha.",
            ("(x, **ln_1)", "(x, **ln_2)", "ffn(layer_norm(x, **ln_2)", "ffn(layer_norm(x, **ln_1)")),
    Mistake("transformer_block", "no layer norm", "A layer norm is missing: mha gets layer_norm(x, **ln_1), ffn gets "
            "layer_norm(x, **ln_2).", ("layer_norm(x, **ln_1)", "x"), ("layer_norm(x, **ln_2)", "x"),
            ("layer_norm(x, **ln_1)", "x", "layer_norm(x, **ln_2)", "x")),
    Mistake("transformer_block", "residual from the normalized x",
            "The normalized x is added to the branch. Add x as it "
            "came in: only the branch sees it normalized.",
            (FIRST, "x = layer_norm(x, **ln_1)\n    x = x + mha(x"),
             (SECOND, "x = layer_norm(x, **ln_2)\n    return x + ffn(x"),
            (FIRST, "x = layer_norm(x, **ln_1)\n    x = x + mha(x",
             SECOND, "x = layer_norm(x, **ln_2)\n    return x + ffn(x")),
    Mistake("transformer_block", "parallel branches", "ffn gets the x from before attention. It should get x after "
            "mha's result has been added to it.", ("x = x + mha", "y = x + mha", "return x + ffn", "return y + ffn")),
    Mistake("transformer_block", "first x added twice", "The second sum adds the x that came into the block. It should "
            "add the x that already has mha's result.", ("x = x + mha", "y, x = x, x + mha", "return x", "return y")),
    Mistake("transformer_block", "ffn first", "ffn comes before mha. First tokens look at each other, then each is "
            "worked "
            "on alone.", (FIRST, "x = x + ffn(layer_norm(x, **ln_2), **mlp)\n    return x + mha(layer_norm(x, "
            "**ln_1)")),
    Mistake("transformer_block", "past not handed on", "past is not handed on to mha: past=past.", ("past=past",
            "past=0")),
    Mistake("transformer_block", "cache not handed on", "The cache is not handed on to mha: kv=kv.", ("kv=kv",
            "kv=None")),

    Mistake("hidden_states", "no wpe", "The positions are missing: x = wte[inputs] + wpe[:n_seq].", (f" + {WPE}", "")),
    Mistake("hidden_states", "no wte", "The tokens are missing: x = wte[inputs] + wpe[:n_seq].", ("wte[inputs] + ",
            "")),
    Mistake("hidden_states", "positions moved", "The positions begin at the wrong row: the first token is at 0, "
            "wpe[0].",
            (WPE, "wpe[past + 1:past + len(inputs) + 1]"), (WPE, "wpe[-len(inputs):]"),
            (WPE, "np.roll(wpe, 1, axis=0)[:len(inputs)]")),
    Mistake("hidden_states", "positions reversed", "The positions are counted backwards: the first token is at 0.",
            (WPE, WPE + "[::-1]")),
    Mistake("hidden_states", "one position for all", "All tokens get the same row of wpe. Position i gets row i.",
            (WPE, "wpe[0]"), (WPE, "wpe[len(inputs) - 1]"), (WPE, "wpe[len(inputs)]")),
    Mistake("hidden_states", "wpe by id", "wpe is looked up by the token's id. Its rows are for positions: "
            "wpe[:n_seq].",
            (WPE, "wpe[inputs]")),
    Mistake("hidden_states", "embeddings multiplied", "wte and wpe are multiplied. Add them.",
            (f"wte[inputs] + {WPE}", f"wte[inputs] * {WPE}")),
    Mistake("hidden_states", "embeddings scaled", "The token embeddings are multiplied by the root of n_embd, as in "
            "the "
            "first transformer. GPT-2 does not do that.", ("wte[inputs]", "wte[inputs] * wte.shape[1] ** 0.5")),
    Mistake("hidden_states", "no ln_f", "The final layer norm is missing: layer_norm(x, **ln_f) after the last block.",
            ("layer_norm(x, **ln_f)", "x")),
    Mistake("hidden_states", "ln_f in each block", "ln_f is used after each block. It comes once, after the last.",
            (BLOCK, BLOCK + "        x = layer_norm(x, **ln_f)\n"),
            (BLOCK, BLOCK + "        x = layer_norm(x, **ln_f)\n", "return layer_norm(x, **ln_f)", "return x")),
    Mistake("hidden_states", "ln_f too early", "ln_f is used before the blocks. It comes after the last.",
            (f"wte[inputs] + {WPE}", f"layer_norm(wte[inputs] + {WPE}, **ln_f)", "return layer_norm(x, **ln_f)",
             "return x")),
    Mistake("hidden_states", "only one block", "Not all blocks are used one after the other: each gets what the one "
            "before gave.", (BLOCK, BLOCK.replace("x =", "y ="), "layer_norm(x, **ln_f)", "layer_norm(y, **ln_f)"),
            ("in zip(blocks", "in zip(blocks[:1]"), ("in zip(blocks", "in zip(blocks[1:]"), ("in zip(blocks",
             "in zip(blocks[:-1]"),
            (BLOCK, "        pass\n")),
    Mistake("hidden_states", "blocks in reverse", "The blocks are used from the last to the first.",
            ("in zip(blocks", "in zip(blocks[::-1]"),
            (CACHES, "blocks[::-1], (cache or [None] * len(blocks))[::-1]")),
    Mistake("hidden_states", "residual around the block", "The block's result is added to x. The block has its "
            "residuals inside: x = transformer_block(x, ...).", ("x = transformer_block", "x = x + transformer_block")),
    Mistake("hidden_states", "position without past", "With a cache, the new tokens are at past, past + 1 and so on: "
            "wpe[past:past + n_seq]. Yours begin at 0 again.", (WPE, "wpe[:len(inputs)]")),
    Mistake("hidden_states", "past not handed on", "past is not handed on to the blocks: past=past.", ("past=past",
            "past=0")),

    Mistake("gpt2", "softmax at the end", "These are probabilities. gpt2 gives logits: no softmax at the end.",
            ("return hidden", "return softmax(hidden", "wte.T", "wte.T)")),
    Mistake("gpt2", "last row only", "This is the last row alone. gpt2 gives one row of logits for each token.",
            (" @ wte.T", "[-1] @ wte.T")),
    Mistake("gpt2", "no projection", "The projection is missing: x @ wte.T makes n_vocab logits of n_embd numbers.",
            (" @ wte.T", "")),
    Mistake("gpt2", "wte not transposed", "wte is [n_vocab, n_embd]; the projection needs it transposed, x @ wte.T.",
            ("wte.T", "wte")),

    Mistake("generate", "the prompt too", "The prompt is returned, too. Only the new ids are wanted: "
            "ids[len(inputs):].",
            ("return ids[len(inputs):]", "return ids")),
    Mistake("generate", "one id of the prompt too", "The last id of the prompt is returned, too: cut at len(inputs).",
            ("ids[len(inputs):]", "ids[len(inputs) - 1:]")),
    Mistake("generate", "cut from the end", "ids[-n:] is all of ids when n is 0. Cut at the prompt: ids[len(inputs):].",
            ("ids[len(inputs):]", "ids[-n_tokens_to_generate:]")),
    Mistake("generate", "one too many", "One token too many: range(n_tokens_to_generate) makes as many as are asked "
            "for.",
            ("in range(n_tokens_to_generate)", "in range(n_tokens_to_generate + 1)", "len(ids) + n",
             "len(ids) + 1 + n")),
    Mistake("generate", "one too few", "One token too few: range(n_tokens_to_generate) makes as many as are asked for.",
            ("in range(n_tokens_to_generate)", "in range(n_tokens_to_generate - 1)"),
            ("ids[len(inputs):]", "ids[len(inputs) + 1:]"), ("ids[len(inputs):]", "ids[len(inputs):-1]")),
    Mistake("generate", "the last id only", "Only the last of the new ids is returned. All of them are wanted.",
            ("ids[len(inputs):]", "ids[-1:]")),
    Mistake("generate", "first row", "The next token is read from the first row of the logits. The last row, [-1], "
            "is the "
            "one that has seen the whole text.", ("logits[-1]", "logits[0]"), (WITH_CACHE, WITHOUT, "logits[-1]",
             "logits[0]")),
    Mistake("generate", "another row", "The next token is read from the row before the last: the last is [-1].",
            ("logits[-1]", "logits[max(-2, -len(logits))]"),
            (WITH_CACHE, WITHOUT, "logits[-1]", "logits[max(-2, -len(logits))]")),
    Mistake("generate", "least probable", "This takes the least probable token, the smallest logit. Take the largest.",
            ("np.argmax", "np.argmin")),
    Mistake("generate", "argmax over all rows", "The maximum is sought in all rows at once. Take the last row first.",
            ("logits[-1]", "logits"),
            (WITH_CACHE, WITHOUT, "logits[-1]", "logits")),
    Mistake("generate", "new ids not fed back", "Each new token comes from the prompt alone. The new id has to join "
            "the "
            "text that the next step sees, and the next token is read from its last row.",
            (WITH_CACHE, "list(inputs), **params, n_head=n_head")),
    Mistake("generate", "new id alone", "After the first step, gpt2 sees only the newest id. Without a cache it "
            "needs the "
            "whole text each time.", ("cache=cache, past=past", "cache=None, past=0")),
    Mistake("generate", "last id alone", "gpt2 sees only the last id. Without a cache it needs the whole text each "
            "time.",
            (WITH_CACHE, "ids[-1:], **params, n_head=n_head")),
    Mistake("generate", "prompt not read with the cache", "The prompt's keys and values are not in the cache when the "
            "second token is made: the first call gets the whole prompt, and past is 0.",
            ("ids[past:]", "ids[-1:]", "past=past", "past=len(ids) - 1")),
    Mistake("generate", "past counts wrong", "After each call, past is the number of ids that are in the cache, "
            "len(ids) "
            "before the new one joins.", ("past = len(ids)", "past = past + 1", "ids[past:]", "ids[past and -1:]")),
]


@functools.cache
def compiled(name, change):
    """The code of a function with its texts replaced, or None if a text is not there."""
    source = SOURCES[name]
    for right, wrong in zip(change[::2], change[1::2]):
        if right not in source:
            return None
        source = source.replace(right, wrong)
    return compile(source, f"{name} with a mistake", "exec")


def variant(*mistakes):
    """{name: function} in which these (mistake, change) are made, or None if two of them change the same text."""
    changes = {}
    for one, change in mistakes:
        changes[one.function] = changes.get(one.function, ()) + change
    functions = {"np": np, "math": math}
    for name in SOURCES:
        code = compiled(name, changes.get(name, ()))
        if code is None:
            return None
        exec(code, functions)
    return functions


def called_by(name, without=()):
    """The functions that one calls, directly or not, the nearest first; not through those in without."""
    found = []
    for other in reversed(SOURCES):
        users = [name, *found]
        if other != name and other not in without and any(re.search(rf"\b{other}\(", SOURCES[user].split("\n", 1)[1])
                                                          for user in users):
            found.append(other)
    return found


def made_in(name, without=()):
    """[(mistake, change)] that a function may show: its own first, then those of what it calls."""
    order = [name, *called_by(name, without)]
    return [(one, change) for function in order for one in TABLE if one.function == function for change in one.changes]
