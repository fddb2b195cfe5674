"""Compiled loops on all cores: what NumPy does in several passes over memory, in one.

    python -m beyond.kernels "ROMEO:" --model_size shakespeare

NumPy applies the seven operations of gelu to the whole array one after another, on one core. A fused loop, compiled by
Numba, does all seven and adds the bias while each number is in a register, on all cores. Attention gains most: a query
reads only the keys up to its own position, so no mask is needed, no masked score is computed, and scores stay in the
processor's cache. With few rows, the matrix product here reads each weight once, while BLAS, which NumPy calls, first
copies the matrix; with more than MOST_ROWS rows, BLAS is called.

    params = kernels.prepare(params)
    ids = kernels.model.generate(inputs, params, n_head, 40)

kernels.model is gpt2.py with these functions. prepare only makes views of the weights, whose @ calls fast/products.py.
"""

from llvmlite.binding import get_host_cpu_features
import numpy as np

from beyond import preset, variant
from beyond.fast.lanes import FAST, FEW, compiled, larger, packed, power_of_two, prange, prefetch
from beyond.fast.products import product, tile
import cli
import gpt2
import utils

# with AVX-512 the product here beat BLAS at every size measured; elsewhere BLAS may be faster
MOST_ROWS = np.inf if get_host_cpu_features().get("avx512f") else 64
AHEAD = 2**11  # keys and values are prefetched this many numbers before they are needed


# --- the small layers ---


@compiled(fastmath=FAST, inline="always")
def exp(x):  # float32 -> float32, accurate to 2e-7; 2^n * e^r, |r| <= log(2) / 2, e^r by its Taylor series
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # log(2) in two parts, the first exact
    e = np.float32(1 / 5040)
    e = e * r + np.float32(1 / 720)
    e = e * r + np.float32(1 / 120)
    e = e * r + np.float32(1 / 24)
    e = e * r + np.float32(1 / 6)
    e = e * r + np.float32(0.5)
    return (e * r * r + r + np.float32(1)) * power_of_two(n)


@compiled(fastmath=FAST)
def gelu_row(x, b):  # [n], [n] -> x = gelu(x + b), in place
    for j in range(len(x)):
        a = x[j] + b[j]
        u = np.float32(-1.5957691216057308) * (a + np.float32(0.044715) * a * a * a)
        x[j] = a / (np.float32(1) + exp(u))  # (1 + tanh(u)) / 2 = 1 / (1 + e^(-2u))


@compiled(parallel=True)
def _gelu(x, b):  # [n, n_out], [n_out], in place
    if x.size <= FEW:
        for i in range(len(x)):
            gelu_row(x[i], b)
    else:
        for i in prange(len(x)):
            gelu_row(x[i], b)


def gelu(x):  # any shape -> same shape
    out = np.array(x, np.float32, order="C")
    _gelu(out.reshape(-1, x.shape[-1]), np.zeros(x.shape[-1], np.float32))
    return out


@compiled(parallel=True)
def _add(x, b):  # [n, n_out] += [n_out]
    for i in prange(len(x)):
        for j in range(len(b)):
            x[i, j] += b[j]


def linear(x, w, b):  # [..., n_in], [n_in, n_out], [n_out] -> [..., n_out]
    out = x @ w
    if out.size <= FEW:
        return out + b
    _add(out.reshape(-1, len(b)), b)
    return out


def ffn(x, c_fc, c_proj):  # [n_seq, n_embd] -> [n_seq, n_embd]
    up = x @ c_fc["w"]
    _gelu(up, c_fc["b"])
    return linear(up, **c_proj)


@compiled(fastmath=FAST)
def norm_row(x, g, b, eps, out):  # [n_embd] -> [n_embd]
    n_embd = len(x)
    mean = np.float32(0)
    for j in range(n_embd):
        mean += x[j]
    mean /= np.float32(n_embd)
    variance = np.float32(0)
    for j in range(n_embd):
        variance += (x[j] - mean) * (x[j] - mean)
    scale = np.float32(1) / np.sqrt(variance / np.float32(n_embd) + eps)
    for j in range(n_embd):
        out[j] = (x[j] - mean) * scale * g[j] + b[j]


@compiled(parallel=True, fastmath=FAST)
def _layer_norm(x, g, b, eps, out):  # [n, n_embd] -> [n, n_embd]
    if x.size <= FEW:
        for i in range(len(x)):
            norm_row(x[i], g, b, eps, out[i])
    else:
        for i in prange(len(x)):
            norm_row(x[i], g, b, eps, out[i])


def layer_norm(x, g, b, eps=1e-5):  # [..., n_embd] -> [..., n_embd]
    out = np.empty(x.shape, np.float32)
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    _layer_norm(rows, g, b, np.float32(eps), out.reshape(rows.shape))
    return out


# --- matrix products ---


class Matrix(np.ndarray):
    """A weight matrix. x @ w calls products.product where that is faster than BLAS."""

    def __rmatmul__(self, x):  # [..., n_in] @ [n_in, n_out] -> [..., n_out]
        w = self.view(np.ndarray)
        straight = w.flags.c_contiguous and w.shape[1] % 64 == 0 and len(w) % 4 == 0
        transposed = w.flags.f_contiguous and w.shape[0] % 16 == 0 and w.shape[1] >= 4
        most = MOST_ROWS if straight else 64 if transposed else 0
        if x.ndim > 2 or x.size > most * len(w) or w.dtype != x.dtype or x.shape[-1] != len(w):
            return x @ w
        return product(x.reshape(-1, len(w)), w, straight).reshape(*x.shape[:-1], -1)


def prepare(params):
    """The same params with each float32 weight matrix, except wpe, as a Matrix; quantized ones stay as they are."""
    found = dict(utils.named_arrays(params))
    for name, w in found.items():
        found[name] = w.view(Matrix) if type(w) is np.ndarray and w.ndim == 2 and name != "wpe" else w
    return utils.nested(found)


# --- attention ---


@compiled(fastmath=FAST)
def softmax(scores, n):  # [at least n] in place: gpt2.softmax of the first n; the rest becomes 0
    highest, total = scores[0], np.float32(0)
    for i in range(1, n):
        highest = larger(highest, scores[i])
    for i in range(n):
        scores[i] = exp(scores[i] - highest)
        total += scores[i]
    for i in range(n):
        scores[i] /= total
    scores[n:] = 0


@compiled(fastmath=FAST)
def attend_one_by_one(q, k, v, seen, scale, out):  # [n_q, d], [n_k, d], [n_k, d], [n_q] -> [n_q, d]
    d = q.shape[1]
    scores = np.empty(len(k), np.float32)
    query, mean = np.empty(d, np.float32), np.empty(d, np.float32)
    flat_k, flat_v = k.reshape(-1), v.reshape(-1)
    for i in range(len(q)):
        for c in range(d):
            query[c], mean[c] = q[i, c] * scale, 0
        for j in range(seen[i]):
            prefetch(flat_k, j * d + AHEAD)
            score = np.float32(0)
            for c in range(d):
                score += query[c] * k[j, c]
            scores[j] = score
        softmax(scores, seen[i])
        for j in range(seen[i]):
            prefetch(flat_v, j * d + AHEAD)
            for c in range(d):
                mean[c] += scores[j] * v[j, c]
        for c in range(d):
            out[i, c] = mean[c]


@compiled(fastmath=FAST)
def attend_in_blocks(q, k, v, seen, scale, out):  # like attend_one_by_one, but 16 queries at a time, with tile
    (n_q, d), n_k = q.shape, len(k)
    n, width = (n_k + 63) // 64 * 64, (d + 63) // 64 * 64
    keys, values = np.zeros((d, n), np.float32), np.zeros((n_k, width), np.float32)
    keys[:, :n_k], values[:, :d] = k.T, v
    queries, scores = np.zeros((16, d), np.float32), np.zeros((16, n), np.float32)
    means = np.zeros((16, width), np.float32)
    flat_q, flat_k, flat_v = queries.reshape(-1), keys.reshape(-1), values.reshape(-1)
    flat_scores, flat_means = scores.reshape(-1), means.reshape(-1)
    for first in range(0, n_q, 16):
        n_rows = min(16, n_q - first)
        queries[:n_rows] = q[first : first + n_rows] * scale
        longest = seen[first : first + n_rows].max()
        scores[:], means[:] = 0, 0
        for c in range(0, longest, 64):
            for r in range(0, n_rows, 4):
                tile(flat_q, r * d, d, flat_k, c, n, flat_scores, r * n + c, n, d)
        for r in range(n_rows):
            softmax(scores[r], seen[first + r])
        for c in range(0, width, 64):
            for r in range(0, n_rows, 4):
                tile(flat_scores, r * n, n, flat_v, c, width, flat_means, r * width + c, width, longest)
        out[first : first + n_rows] = means[:n_rows, :d]


@compiled(fastmath=FAST)
def attend_head(q, k, v, seen, out):  # [n_q, d], [n_k, d], [n_k, d], [n_q] -> [n_q, d]
    scale = np.float32(1) / np.sqrt(np.float32(q.shape[1]))
    if len(q) >= 4:
        attend_in_blocks(q, packed(k), packed(v), seen, scale, out)
    else:
        attend_one_by_one(q, packed(k), packed(v), seen, scale, out)


@compiled(parallel=True)
def _attend(q, k, v, seen, out):  # [h, n_q, d], [h, n_k, d], [h, n_k, d], [h / n, n_q] -> [h, n_q, d]
    shared = len(q) // len(seen)
    if k.size * q.shape[1] <= FEW:
        for h in range(len(q)):
            attend_head(q[h], k[h], v[h], seen[h // shared], out[h])
    else:
        for h in prange(len(q)):
            attend_head(q[h], k[h], v[h], seen[h // shared], out[h])


def attend(q, k, v, seen):  # [h, n_q, d], [h, n_k, d], [h, n_k, d], [h / n, n_q] -> [h, n_q, d]
    """Query i attends to the first seen[i] keys. Each row of seen is shared by n consecutive heads."""
    k, v = (x if x.strides[1:] == (4 * x.shape[2], 4) else np.ascontiguousarray(x) for x in (k, v))
    # laid out as [n_q, h, d] in memory, so that gpt2.mha merges the heads without a copy
    out = np.empty((q.shape[1], q.shape[0], q.shape[2]), np.float32).swapaxes(0, 1)
    _attend(q, k, v, seen, out)
    return out


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [..., n_q, n_k] -> [..., n_q, d]
    """Like gpt2.attention. The mask must allow each query a prefix of the keys; only the prefix lengths are used."""
    (*heads, n_q, d), n_k = q.shape, k.shape[-2]
    seen = np.full((1, n_q), n_k) if np.ndim(mask) == 0 else np.count_nonzero(mask == 0, axis=-1).reshape(-1, n_q)
    return attend(*(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)), seen).reshape(*heads, n_q, d)


def causal_attention(q, k, v):  # [n_head, n_q, d], [n_head, n_k, d], [n_head, n_k, d] -> [n_head, n_q, d]
    return attend(q, k, v, np.arange(k.shape[1] - q.shape[1] + 1, k.shape[1] + 1)[None])


SMALL_LAYERS = {"gelu": gelu, "layer_norm": layer_norm, "linear": linear, "ffn": ffn}
model = variant(gpt2, **SMALL_LAYERS, attention=attention, causal_attention=causal_attention)


if __name__ == "__main__":
    cli.run(preset("complete", kernels=True))
