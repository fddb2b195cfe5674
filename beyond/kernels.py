"""The small layers compiled, on all cores: what NumPy does in many passes over memory, in one.

    python -m beyond.kernels "ROMEO:" --model_size shakespeare

NumPy runs gelu's seven operations one after the other over the whole array, on one core; a compiled loop (Numba) does
all seven, and adds the bias, while a number is in a register, on all cores. Attention gains most: a query looks only at
the keys up to its own, so neither a mask nor a score that a mask would hide is ever computed, and scores stay in the
cache. And the product of a few rows with a matrix, which NumPy's library copies first, reads each weight once. More
than MOST_ROWS stay with NumPy.

    params = kernels.prepare(params)
    ids = kernels.model.generate(inputs, params, n_head, 40)

kernels.model is gpt2.py with these functions; prepare only makes views, whose @ knows the product here.
"""

from llvmlite.binding import get_host_cpu_features
import numpy as np

from beyond import preset, variant
from beyond.fast.lanes import (
    FAST,
    FEW,
    compiled,
    fma,
    larger,
    load16,
    load64,
    no_floats,
    packed,
    power_of_two,
    prange,
    prefetch,
    store,
    summed,
)
import cli
import gpt2

# where registers hold 16 numbers, the product here was the faster one at any size; elsewhere NumPy's library may be
MOST_ROWS = np.inf if get_host_cpu_features().get("avx512f") else 64
AHEAD = 2**11  # numbers: keys and values are asked for so long before they are needed


# --- the small layers ---


@compiled(fastmath=FAST, inline="always")
def exp(x):  # float32 -> float32, exact to 2e-7; 2^n * e^r with |r| <= log(2) / 2, and e^r by its series
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # log(2) in two parts, the first one exact
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


# --- products with few rows ---


@compiled(parallel=True, fastmath=FAST)
def _row(x, w, out):  # [n_in], [n_in, n_out] -> [n, n_out], n parts of the sum
    n = len(out)
    for part in prange(n):  # each reads w in the order in which it lies in memory
        out[part] = 0
        for k in range(len(x) // 4 * part // n * 4, len(x) // 4 * (part + 1) // n * 4, 4):
            for c in range(w.shape[1]):
                four = x[k] * w[k, c] + x[k + 1] * w[k + 1, c] + x[k + 2] * w[k + 2, c] + x[k + 3] * w[k + 3, c]
                out[part, c] += four


@compiled(parallel=True, fastmath=FAST)
def _row_transposed(x, w, out):  # [n_in], [n_out, n_in] -> [n_out]
    for n in prange(len(w)):
        total = np.float32(0)
        for k in range(len(x)):
            total += x[k] * w[n, k]
        out[n] = total


@compiled(inline="always")
def tile(x, j, n_in, w, i, n_out, out, o, width, n):  # all flat: four rows of out[o:o + 64] += x[j:j + n] @ w[i:, :64]
    """n_in, n_out and width: how far apart the rows of x, w and out are."""
    a, b, c, d = load64(out, o), load64(out, o + width), load64(out, o + 2 * width), load64(out, o + 3 * width)
    for k in range(j, j + n):
        prefetch(w, i + 64)
        weights = load64(w, i)  # each for four rows
        a, b = fma(a, x[k], weights), fma(b, x[k + n_in], weights)
        c, d = fma(c, x[k + 2 * n_in], weights), fma(d, x[k + 3 * n_in], weights)
        i += n_out
    store(a, out, o), store(b, out, o + width), store(c, out, o + 2 * width), store(d, out, o + 3 * width)


@compiled(parallel=True)
def _product(x, w, out):  # out = [4 * n, n_in] @ [n_in, 64 * m]
    (n_in, n_out), n_strips = w.shape, w.shape[1] // 64
    flat_x, flat_w, flat = x.reshape(-1), w.reshape(-1), out.reshape(-1)
    for part in prange((n_strips + 5) // 6):
        for first in range(0, len(x), 64):  # so many rows of x, and of out, stay in the nearest caches
            out[first : first + 64, part * 384 : part * 384 + 384] = 0
            for k in range(0, n_in, 64):  # so much of w is read side by side, and used for all of these rows
                n = min(64, n_in - k)
                for c in range(part * 384, min(part * 384 + 384, n_out), 64):
                    for r in range(first, min(first + 64, len(x)), 4):
                        tile(flat_x, r * n_in + k, n_in, flat_w, k * n_out + c, n_out, flat, r * n_out + c, n_out, n)


@compiled(inline="always")
def fma4(total, x, w):
    return fma(total[0], x, w[0]), fma(total[1], x, w[1]), fma(total[2], x, w[2]), fma(total[3], x, w[3])


@compiled(inline="always")
def four_rows(flat, i, step):  # 16 numbers of each
    return load16(flat, i), load16(flat, i + step), load16(flat, i + 2 * step), load16(flat, i + 3 * step)


@compiled(parallel=True)
def _product_transposed(x, w, out):  # [4 * n, 16 * m] @ [n_out, 16 * m].T
    n_in, flat_x, flat_w = w.shape[1], x.reshape(-1), w.reshape(-1)
    for part in prange((len(w) + 3) // 4):
        n = min(part * 4, len(w) - 4)
        for r in range(0, len(x), 4):  # out[r:r + 4, n:n + 4] = x[r:r + 4] @ w[n:n + 4].T
            a = no_floats(), no_floats(), no_floats(), no_floats()
            b, c, d = a, a, a
            for k in range(0, n_in, 16):
                i, four = r * n_in + k, four_rows(flat_w, n * n_in + k, n_in)
                a, b = fma4(a, load16(flat_x, i), four), fma4(b, load16(flat_x, i + n_in), four)
                c, d = fma4(c, load16(flat_x, i + 2 * n_in), four), fma4(d, load16(flat_x, i + 3 * n_in), four)
            for j in range(4):
                out[r, n + j], out[r + 1, n + j] = summed(a[j]), summed(b[j])
                out[r + 2, n + j], out[r + 3, n + j] = summed(c[j]), summed(d[j])


def one_row(x, w, straight):  # [n_in], [n_in, n_out] -> [n_out]
    if straight:
        parts = np.empty((8, w.shape[1]), np.float32)  # on any number of threads, so that all round alike
        _row(x, w, parts)
        return parts.sum(axis=0)
    out = np.empty(w.shape[1], np.float32)
    _row_transposed(x, w.T, out)
    return out


class Matrix(np.ndarray):
    """A matrix of weights, for which x @ w is the product here where that is the faster one."""

    def __rmatmul__(self, x):  # [..., n_in] @ [n_in, n_out] -> [..., n_out]
        w = self.view(np.ndarray)
        straight = w.flags.c_contiguous and w.shape[1] % 64 == 0 and len(w) % 4 == 0
        turned = w.flags.f_contiguous and w.shape[0] % 16 == 0 and w.shape[1] >= 4
        most = MOST_ROWS if straight else 64 if turned else 0
        if x.ndim > 2 or x.size > most * len(w) or w.dtype != x.dtype:
            return x @ w
        if x.size == len(w):
            return one_row(np.ascontiguousarray(x).reshape(-1), w, straight).reshape(*x.shape[:-1], -1)
        rows = np.ascontiguousarray(np.pad(x, ((0, -len(x) % 4), (0, 0))) if len(x) % 4 else x)  # four rows at a time
        out = np.empty((len(rows), w.shape[1]), np.float32)
        _product(rows, w, out) if straight else _product_transposed(rows, w.T, out)
        return out[: len(x)]


def prepare(params):
    """The same params, in which each matrix of weights is a Matrix; others (beyond/quantize.py) stay what they are."""
    if isinstance(params, dict):
        return {name: value if name == "wpe" else prepare(value) for name, value in params.items()}
    if isinstance(params, (list, tuple)):
        return [prepare(value) for value in params]
    return params.view(Matrix) if type(params) is np.ndarray and params.ndim == 2 else params


# --- attention ---


@compiled(fastmath=FAST)
def softmax(scores, n):  # [at least n] in place: of the first n, as in gpt2.py; what follows becomes 0
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
def look(q, k, v, seen, scale, out):  # [n_q, d], [n_k, d], [n_k, d], [n_q] -> [n_q, d]: one query after the other
    d, scores = q.shape[1], np.empty(len(k), np.float32)
    query, found, flat_k, flat_v = np.empty(d, np.float32), np.empty(d, np.float32), k.reshape(-1), v.reshape(-1)
    for i in range(len(q)):
        for c in range(d):
            query[c], found[c] = q[i, c] * scale, 0
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
                found[c] += scores[j] * v[j, c]
        for c in range(d):
            out[i, c] = found[c]


@compiled(fastmath=FAST)
def look_together(q, k, v, seen, scale, out):  # [n_q, d], [n_k, d], [n_k, d] -> [n_q, d]: 16 queries at a time
    (n_q, d), (n_k, width) = q.shape, (len(k), (q.shape[1] + 63) // 64 * 64)
    keys, values = np.zeros((d, (n_k + 63) // 64 * 64), np.float32), np.zeros((n_k, width), np.float32)
    keys[:, :n_k], values[:, :d] = k.T, v
    queries, scores = np.zeros((16, d), np.float32), np.zeros((16, keys.shape[1]), np.float32)
    found, n = np.zeros((16, width), np.float32), keys.shape[1]
    flat_q, flat_k, flat_v = queries.reshape(-1), keys.reshape(-1), values.reshape(-1)
    flat_scores, flat_found = scores.reshape(-1), found.reshape(-1)
    for first in range(0, n_q, 16):
        n_rows = min(16, n_q - first)
        queries[:n_rows] = q[first : first + n_rows] * scale
        longest = seen[first : first + n_rows].max()
        scores[:], found[:] = 0, 0
        for c in range(0, longest, 64):
            for r in range(0, n_rows, 4):
                tile(flat_q, r * d, d, flat_k, c, n, flat_scores, r * n + c, n, d)
        for r in range(n_rows):
            softmax(scores[r], seen[first + r])
        for c in range(0, width, 64):
            for r in range(0, n_rows, 4):
                tile(flat_scores, r * n, n, flat_v, c, width, flat_found, r * width + c, width, longest)
        out[first : first + n_rows] = found[:n_rows, :d]


@compiled(fastmath=FAST)
def attend_head(q, k, v, seen, out):  # [n_q, d], [n_k, d], [n_k, d], [n_q] -> [n_q, d]
    scale = np.float32(1) / np.sqrt(np.float32(q.shape[1]))
    if len(q) >= 4:
        look_together(q, packed(k), packed(v), seen, scale, out)
    else:
        look(q, packed(k), packed(v), seen, scale, out)


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
    """Query i looks at its first seen[i] keys; n heads after one another have a row of seen in common."""
    k, v = (x if x.strides[1:] == (4 * x.shape[2], 4) else np.ascontiguousarray(x) for x in (k, v))
    # the heads of a query side by side, as gpt2.mha joins them without a copy
    out = np.empty((q.shape[1], q.shape[0], q.shape[2]), np.float32).swapaxes(0, 1)
    _attend(q, k, v, seen, out)
    return out


def attention(q, k, v, mask):  # [..., n_q, d], [..., n_k, d], [..., n_k, d], [..., n_q, n_k] -> [..., n_q, d]
    """As gpt2.attention; of the mask it only takes how many keys each query may look at, always the first ones."""
    (*heads, n_q, d), n_k = q.shape, k.shape[-2]
    seen = np.full((1, n_q), n_k) if np.ndim(mask) == 0 else np.count_nonzero(mask == 0, axis=-1).reshape(-1, n_q)
    return attend(*(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)), seen).reshape(*heads, n_q, d)


def causal_attention(q, k, v):  # [n_head, n_q, d], [n_head, n_k, d], [n_head, n_k, d] -> [n_head, n_q, d]
    return attend(q, k, v, np.arange(k.shape[1] - q.shape[1] + 1, k.shape[1] + 1)[None])


model = variant(
    gpt2,
    gelu=gelu,
    layer_norm=layer_norm,
    linear=linear,
    ffn=ffn,
    attention=attention,
    causal_attention=causal_attention,
)


if __name__ == "__main__":
    cli.run(preset("complete", kernels=True))
